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
from router.blocks import TOKEN_BYTES, pack, unpack
from router.prompt.forward_ids import with_token_ids
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


@pytest.mark.parametrize("engine", ["tiny"], indirect=True)
async def test_a_chat_with_sent_ids_is_answered_as_without(engine: tuple[str, Path]) -> None:
    """Tools, tool choices, streams: the answer to the ids alone is the answer to the messages."""
    url, directory = engine
    models = {"file": load_model(directory)} | {name: load_model(directory, tokenizer_class=name) for name in CLASSES}
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    short = {"model": "tiny", "messages": [{"role": "user", "content": "é <|im_end|> look"}], "tools": [tool]}
    named = {"type": "function", "function": {"name": "look"}}
    bodies = [*steps()[:60:12], short, {**short, "tool_choice": "none"}, {**short, "tool_choice": named}]
    settings = {"max_tokens": 12, "temperature": 0, "return_token_ids": True}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        reading = await matching(session, url, "vllm", "tiny", ModelSpec("tiny", models["file"]), models)
        assert reading is not None
        stage = PromptStage({"tiny": ModelSpec("tiny", models[reading])})

        async def answers(data: bytes) -> list[dict[str, Any]]:
            """The answer, or the stream's events, without what is new in each."""
            async with session.post(url + CHAT, data=data, headers={"content-type": "application/json"}) as answer:
                text = await answer.text()
                assert answer.status == 200, text
            lines = [line[6:] for line in text.splitlines() if line.startswith("data: {")] or [text]
            events = [json.loads(line) for line in lines]
            for event in events:
                for choice in event["choices"]:
                    for call in (choice.get("message") or choice.get("delta") or {}).get("tool_calls") or ():
                        call.pop("id", None)
            return [{name: event.get(name) for name in ("choices", "usage", "prompt_token_ids")} for event in events]

        for body in bodies:
            for stream in (False, True):
                asked = json.dumps({**body, **settings, "stream": stream}).encode()
                prompt = await stage.prepare(parse_request(CHAT, asked))
                assert prompt.exact and prompt.ids is not None
                plain, sent = await answers(asked), await answers(with_token_ids(asked, prompt.ids, "vllm"))
                assert plain[0]["prompt_token_ids"] == unpack(prompt.ids)
                assert _said(sent) == _said(plain)
        stage.close()


def _said(events: list[dict[str, Any]]) -> list[Any]:
    """What an answer says, however a stream of it is cut into events."""
    choices = [choice for event in events for choice in event["choices"]]
    told = [choice.get("message") or choice.get("delta") or {} for choice in choices]
    return [
        *("".join(one.get(name) or "" for one in told) for name in ("role", "content", "reasoning")),
        [token for choice in choices for token in choice.get("token_ids") or []],
        [call for one in told for call in one.get("tool_calls") or []],
        [choice["finish_reason"] for choice in choices if choice.get("finish_reason")],
    ]


@pytest.mark.parametrize("engine", ["tiny"], indirect=True)
async def test_items_are_scored_on_the_prompts_the_router_makes(engine: tuple[str, Path]) -> None:
    """By their number of tokens, which `/generative_scoring` tells."""
    url, directory = engine
    models = {"file": load_model(directory)} | {name: load_model(directory, tokenizer_class=name) for name in CLASSES}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        reading = await matching(session, url, "vllm", "tiny", ModelSpec("tiny", models["file"]), models)
        assert reading is not None
        stage = PromptStage({"tiny": ModelSpec("tiny", models[reading])})
        text = {"query": "Is é a <|im_end|> vowel? It is ", "items": ["one of those", " no", "1234567 it's"]}
        for fields in (text, {**text, "item_first": True}, {"query": [5, 6, 7], "items": [[8], [9, 10]]}):
            body = {"model": "tiny", "label_token_ids": [5, 6], **fields}
            prompt = await stage.prepare(parse_request("/generative_scoring", json.dumps(body).encode()))
            assert prompt.exact, prompt.reason
            async with session.post(url + "/generative_scoring", json=body) as answer:
                told = await answer.json()
                assert answer.status == 200, told
            assert told["usage"]["prompt_tokens"] == prompt.tokens
        stage.close()
