"""A small OpenAI-like server with known cached tokens and faults, on a real loopback socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any

import pytest
from aiohttp import web


@dataclass
class Engine:
    """Answers chats and completions. Prompt tokens are the number of words; cached tokens are `cached(request number)`.

    fail: request number -> "500", "error_event", "truncate" or "hang_up". One event per word of `answer`.
    """

    answer: tuple[str, ...] = ("one", "two", "three")
    cached: Any = lambda number: 4
    replicas: tuple[str, ...] = ("a",)
    fail: dict[int, str] = field(default_factory=dict)
    matched: Any = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    queried: int = 0
    hit: int = 0
    running: set[str] = field(default_factory=set)
    overlapped: bool = False
    most_running: int = 0
    url: str = ""

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/metrics", self.metrics)
        return app

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "tiny"}]})

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            text="# TYPE vllm:prefix_cache_queries_total counter\n"
            f'vllm:prefix_cache_queries_total{{engine="0"}} {self.queried}\n'
            "# TYPE vllm:prefix_cache_hits_total counter\n"
            f'vllm:prefix_cache_hits_total{{engine="0"}} {self.hit}\n'
        )

    async def complete(self, request: web.Request) -> web.StreamResponse:
        number = len(self.bodies)
        body = await request.json()
        self.bodies.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        session = request.headers.get("x-session-id", str(number))
        self.overlapped |= session in self.running
        self.running.add(session)
        self.most_running = max(self.most_running, len(self.running))
        try:
            return await self.reply(request, body, number)
        finally:
            self.running.discard(session)

    async def reply(self, request: web.Request, body: dict[str, Any], number: int) -> web.StreamResponse:
        fault = self.fail.get(number)
        if fault == "500":
            return web.json_response({"error": {"message": "broken"}}, status=500)
        usage = self.usage(body, number)
        replica = self.replicas[number % len(self.replicas)]
        headers = {"x-prefix-router-replica": replica, "x-prefix-router-reason": "prefix"}
        if self.matched is not None:
            headers["x-prefix-router-matched-tokens"] = str(self.matched(number))
        if not body.get("stream"):
            choice = {"message": {"role": "assistant", "content": " ".join(self.answer)}}
            return web.json_response({"choices": [choice], "usage": usage}, headers=headers)
        response = web.StreamResponse(headers={**headers, "content-type": "text/event-stream"})
        await response.prepare(request)
        await event(response, {"choices": [{"delta": {"role": "assistant", "content": ""}}], "usage": None})
        for word in self.answer:
            await event(response, {"choices": [{"delta": {"content": word}, "text": word}], "usage": None})
            await asyncio.sleep(0)
        if fault == "hang_up":
            assert request.transport is not None
            request.transport.abort()
            return response
        if fault == "error_event":
            await event(response, {"error": {"message": "out of memory"}})
        await event(response, {"choices": [], "usage": usage})
        if fault != "truncate":
            await response.write(b"data: [DONE]\n\n")
        return response

    def usage(self, body: dict[str, Any], number: int) -> dict[str, Any]:
        text = json.dumps(body.get("messages") or body["prompt"])
        prompt = len(text.split())
        cached = self.cached(number)
        self.queried += prompt
        self.hit += cached or 0
        details = None if cached is None else {"cached_tokens": cached}
        return {"prompt_tokens": prompt, "completion_tokens": len(self.answer), "prompt_tokens_details": details}


async def event(response: web.StreamResponse, data: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(data).encode() + b"\n\n")


@asynccontextmanager
async def serving(engine: Engine) -> AsyncIterator[Engine]:
    runner = web.AppRunner(engine.app())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    engine.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield engine
    finally:
        await runner.cleanup()


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with serving(Engine()) as running:
        yield running


@pytest.fixture
def engine_in_thread() -> Iterator[Engine]:
    """For the command, which runs its own event loop."""
    with threaded(Engine()) as running:
        yield running


@contextmanager
def threaded(engine: Engine) -> Iterator[Engine]:
    up = Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        async with serving(engine):
            up.set()
            await stop.wait()

    thread = Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        assert up.wait(60), "the engine did not start"
        yield engine
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        loop.close()
