"""Requests that need state of one replica go there, over real HTTP: stored responses, SGLang's open sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiohttp
import pytest
from aiohttp import web
from support.waiting import until

from router.app import App
from router.config import load_config
from router.fleet.replica import Health


class StatefulEngine:
    """What the router needs to see of a vLLM, and an engine's memory of its responses and sessions."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.known: set[str] = set()
        self.port = 0

    async def start(self, stack: AsyncExitStack) -> None:
        app = web.Application()
        app.router.add_get("/health", lambda _: web.Response())
        app.router.add_get("/version", lambda _: web.json_response({"version": "0.32.0"}))
        entry = {"id": "m", "object": "model", "owned_by": "vllm", "max_model_len": 4096}
        app.router.add_get("/v1/models", lambda _: web.json_response({"object": "list", "data": [entry]}))
        app.router.add_post("/v1/responses", self.create)
        app.router.add_get("/v1/responses/{id}", self.read)
        app.router.add_post("/open_session", self.open)
        app.router.add_post("/generate", self.generate)
        runner = web.AppRunner(app)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]

    async def create(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        before = body.get("previous_response_id")
        if before is not None and before not in self.known:
            return web.json_response({"error": {"message": f"no response {before}"}}, status=404)
        made = f"resp_{self.number}_{len(self.known)}"
        self.known.add(made)
        if not body.get("stream"):
            return web.json_response({"id": made, "object": "response", "output": []})
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        event = f'event: response.created\ndata: {{"type":"response.created","response":{{"id":"{made}"}}}}\n\n'
        await answer.write(event.encode())
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def read(self, request: web.Request) -> web.Response:
        known = request.match_info["id"] in self.known
        return web.json_response({"id": request.match_info["id"]} if known else {}, status=200 if known else 404)

    async def open(self, request: web.Request) -> web.Response:
        made = (await request.json()).get("session_id") or f"open-{self.number}-{len(self.known)}"
        self.known.add(made)
        return web.json_response(made)

    async def generate(self, request: web.Request) -> web.Response:
        session = (await request.json())["session_params"]["id"]
        return web.json_response({"text": ""}, status=200 if session in self.known else 400)


System = tuple[App, aiohttp.ClientSession, list[StatefulEngine]]


@pytest.fixture
async def system() -> AsyncIterator[System]:
    async with AsyncExitStack() as stack:
        engines = [StatefulEngine(number) for number in range(3)]
        for engine in engines:
            await engine.start(stack)
        replicas = [{"url": f"http://127.0.0.1:{engine.port}", "engine": "vllm"} for engine in engines]
        settings = {"listen.port": 0, "admin.port": 0, "health.interval_s": 0.1, "routing.policy": "round_robin"}
        app = App(load_config(overrides=[*settings.items(), ("replicas", replicas)]))
        await app.start()
        stack.push_async_callback(app.stop)
        await until(lambda: [r.health for r in app.fleet] == [Health.UP] * 3, "three replicas up")
        client = await stack.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{app.server.port}"))
        yield app, client, engines


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_is_continued_and_read_where_it_was_made(system: System, stream: bool) -> None:
    _, client, engines = system
    for _ in range(4):
        async with client.post("/v1/responses", json={"model": "m", "input": "hi", "stream": stream}) as answer:
            await answer.read()
    assert sum(len(engine.known) for engine in engines) == 4
    for engine in engines:
        for made in sorted(engine.known):
            body = {"model": "m", "input": "more", "previous_response_id": made}
            async with client.post("/v1/responses", json=body) as answer:
                assert answer.status == 200
                assert answer.headers["x-prefix-router-reason"] == "sticky"
            async with client.get(f"/v1/responses/{made}") as answer:
                assert (answer.status, (await answer.json())["id"]) == (200, made)


@pytest.mark.parametrize("named", [None, "mine"])
async def test_an_open_session_is_used_where_it_was_opened(system: System, named: str | None) -> None:
    _, client, _ = system
    async with client.post("/open_session", json={"capacity_of_str_len": 100, "session_id": named}) as answer:
        session = await answer.json()
    for _ in range(4):
        body = {"text": "hi", "session_params": {"id": session}}
        async with client.post("/generate", json=body) as answer:
            assert (answer.status, answer.headers["x-prefix-router-reason"]) == (200, "sticky")


async def test_state_of_a_replica_that_is_gone_is_a_clear_error(system: System) -> None:
    app, client, engines = system
    async with client.post("/v1/responses", json={"model": "m", "input": "hi"}) as answer:
        made = (await answer.json())["id"]
        home = answer.headers["x-prefix-router-replica"]
    await app.remove(home)
    async with client.post("/v1/responses", json={"model": "m", "input": "x", "previous_response_id": made}) as answer:
        assert answer.status == 503
        assert (await answer.json())["error"]["code"] == "state_unavailable"
        assert answer.headers["retry-after"]
    async with client.get("/v1/responses/resp_unknown") as answer:
        assert answer.status == 404
    assert len(engines) == 3
