"""Every step of every shipped agent session: real vLLM's prompt ids are the router's.

Run by `make test-engines`. One vLLM at a time loads the tiny weights with a real model's tokenizer and template, and
its render endpoint says what it would feed the model: its own validation, conversion, template and tokenizer. With the
tiny model's own tokenizer it is also asked the other way, by generating a token with `return_token_ids`.
PREFIX_ROUTER_SESSIONS names another file of sessions than the shipped one.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.ports import free_port

from router.api.parity import matching
from router.blocks import TOKEN_BYTES, pack
from router.prompt.model import load_model
from router.prompt.pipelines import CLASSES
from router.prompt.requests import parse_request
from router.prompt.stage import ModelSpec, PromptStage

pytestmark = pytest.mark.engines

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".cache" / "vllm" / "bin" / "python"
TINY = ROOT / ".cache" / "tiny-model"
SESSIONS = Path(os.environ.get("PREFIX_ROUTER_SESSIONS", ROOT / "loadtest" / "data" / "agent_sessions.jsonl.gz"))
MODEL_TYPES = {"qwen3": "qwen3", "llama3_1": "llama", "deepseek_v3": "deepseek_v3"}
TOKENIZERS = ("tiny", *MODEL_TYPES)
START_S = 300
CHAT = "/v1/chat/completions"


@pytest.fixture(params=TOKENIZERS)
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[str, Path]]:
    """(base URL, tokenizer directory) of a vLLM."""
    assert PYTHON.exists() and (TINY / "model.safetensors").exists(), "run `make test-engines`: it installs vLLM"
    name = str(request.param)
    directory = TINY if name == "tiny" else ROOT / ".cache" / "tokenizers" / name
    if not (directory / "tokenizer.json").is_file():
        pytest.skip(f"{name}: not downloaded; run: python tests/prompt/fetch_tokenizers.py")
    if name in MODEL_TYPES:  # without it transformers takes DeepSeek's files for Llama's
        directory = Path(shutil.copytree(directory, tmp_path / name))
        (directory / "config.json").write_text(json.dumps({"model_type": MODEL_TYPES[name]}))
    port = free_port()
    command = [
        str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(TINY), "--tokenizer", str(directory),
        "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port),
        "--distributed-executor-backend", "uni", "--enforce-eager", "--dtype", "float32",
        "--max-model-len", "65536", "--max-num-seqs", "8", "--max-num-batched-tokens", "8192",
        "--block-size", "32", "--kv-cache-memory-bytes", "134217728", "--enable-prefix-caching",
        "--enable-scale-out", "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
    ]  # fmt: skip
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1", "VLLM_HOST_IP": "127.0.0.1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    }  # fmt: skip
    log = tmp_path / "engine.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_S
        async with aiohttp.ClientSession() as session:
            while True:
                said = log.read_text(errors="replace")[-3000:]
                assert process.poll() is None and time.monotonic() < deadline, said
                try:
                    async with session.get(url + "/health") as answer:
                        if answer.status == 200:
                            break
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.2)
        yield url, directory
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def steps() -> list[dict[str, Any]]:
    """The request of each LLM call of each session."""
    bodies: list[dict[str, Any]] = []
    with gzip.open(SESSIONS) as lines:
        for line in lines:
            row = json.loads(line)
            tools = {"tools": row["tools"]} if row.get("tools") else {}
            bodies += [{"model": "tiny", "messages": row["messages"][:end], **tools} for end in row["steps"]]
    return bodies


async def test_ids_of_every_session_are_the_engines(engine: tuple[str, Path]) -> None:
    url, directory = engine
    models = {"file": load_model(directory)} | {name: load_model(directory, tokenizer_class=name) for name in CLASSES}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        reading = await matching(session, url, "vllm", "tiny", ModelSpec("tiny", models["file"]), models)
        assert reading is not None, "the probes of the comparison at join differ already"
        stage = PromptStage({"tiny": ModelSpec("tiny", models[reading])})

        async def asked(path: str, body: dict[str, Any]) -> tuple[int, Any]:
            async with session.post(url + path, json=body) as answer:
                return answer.status, await answer.json()

        tokens = compared = refused = generated = 0
        for number, body in enumerate(steps()):
            prompt = await stage.prepare(parse_request(CHAT, json.dumps(body).encode()))
            status, told = await asked(f"{CHAT}/render", {**body, "mm_payload": "none"})
            if status == 400 and not prompt.exact:
                refused += 1  # the template takes no such conversation, here as there
                continue
            assert status == 200, f"step {number}: {told}"
            assert prompt.exact and prompt.ids is not None, f"step {number}: {prompt.reason}"
            assert prompt.ids == pack(told["token_ids"]), f"step {number} of {directory.name}"
            compared += 1
            tokens += len(prompt.ids) // TOKEN_BYTES
            if directory == TINY and number % 40 == 0:
                fields = {"max_tokens": 1, "return_token_ids": True}
                status, told = await asked(CHAT, {**body, **fields})
                assert status == 200 and prompt.ids == pack(told["prompt_token_ids"]), f"step {number}, generated"
                generated += 1
        stage.close()
        print(
            f"{directory.name} ({reading}): {compared} prompts, {tokens} tokens equal to vLLM's, {generated} of them "
            f"also as generated from, {refused} refused by both"
        )
        assert compared > 0.9 * len(steps()) > 200
