"""A whole system in one event loop: simulated replicas, the router's App, real sockets between them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from support.waiting import until

from replica.simulator.config import MODEL_DIR, ReplicaConfig
from replica.simulator.fleet import SimulatedFleet
from replica.simulator.timing import time_model
from router.app import App
from router.config import load_config
from router.fleet.replica import Feed, Health, Replica

MODEL = "sim"


class Stack:
    """One router over one simulated fleet."""

    def __init__(self, fleet: SimulatedFleet, app: App, client: aiohttp.ClientSession) -> None:
        self.fleet = fleet
        self.app = app
        self.client = client

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.app.server.port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.app.admin_port}"

    def replica(self, index: int) -> Replica:
        """The router's view of a simulated replica."""
        found = self.app.fleet.get(self.fleet[index].url.removeprefix("http://"))
        assert found is not None
        return found

    async def up(self) -> None:
        """Every configured replica is up and its events are followed."""
        if not self.app.config.replicas:
            return
        wanted = [Feed.EVENTS if simulated.events_endpoint else Feed.SHADOW for simulated in self.fleet]
        await until(
            lambda: [(v.health, v.feed) for v in self.app.fleet] == [(Health.UP, feed) for feed in wanted],
            "replicas up and followed",
        )

    async def settled(self, index: int | None = None) -> None:
        """The router applied every event published so far."""
        for at, simulated in enumerate(self.fleet):
            if index in (None, at) and simulated.events_endpoint:
                name = self.replica(at).id
                await until(
                    lambda name=name, simulated=simulated: (  # type: ignore[misc]
                        (status := self.app.feeds.status()[name])["last_seq"] == simulated.next_seq - 1
                        and status["state"] == "live"
                    ),
                    f"events of {name} applied: {self.app.feeds.status()[name]}, next {simulated.next_seq}",
                )

    def replays(self, index: int) -> int:
        """How often the replica's events were asked for from the start: with each connection to it, at least."""
        return int(self.app.feeds.status()[self.replica(index).id]["replays"])

    async def restart(self, index: int) -> None:
        """Restart a replica; return when its reader has noticed. Until then it says what it knows of the old one."""
        before = self.replays(index)
        await self.fleet[index].restart()
        await until(lambda: self.replays(index) > before, f"the restart of replica {index} is noticed")
        await self.settled(index)

    async def idle(self) -> None:
        """Nothing is under way anywhere, in the router's books and on the replicas."""
        await until(lambda: all(s.in_flight == 0 and s.used_blocks == 0 for s in self.fleet), "replicas idle")
        await until(
            lambda: all((r.load.running, r.load.pending_prefill) == (0, 0) for r in self.app.fleet),
            f"counters back to zero: {[(r.id, r.load.running, r.load.pending_prefill) for r in self.app.fleet]}",
        )

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, str], Any]:
        """(status, headers, JSON) of one request."""
        async with self.client.post(self.url + path, json=body, headers=headers) as answer:
            return (
                answer.status,
                {name.lower(): value for name, value in answer.headers.items()},
                await answer.json(content_type=None),
            )

    async def chat(self, messages: list[dict[str, Any]], **fields: Any) -> tuple[dict[str, str], Any]:
        """A chat completion that must succeed: (headers, JSON)."""
        body = {"model": MODEL, "messages": messages, "max_tokens": 4, **fields}
        status, headers, answer = await self.post("/v1/chat/completions", body)
        assert status == 200, answer
        return headers, answer


def receipt(headers: dict[str, str], name: str) -> str:
    return headers[f"x-prefix-router-{name}"]


Build = Callable[..., Awaitable[Stack]]


@pytest.fixture
async def build() -> AsyncIterator[Build]:
    """Starts systems: `await build(replicas=3, simulator={...}, settings={...})`."""
    async with AsyncExitStack() as stack:

        async def start(
            replicas: int = 2,
            *,
            simulator: dict[str, Any] | None = None,
            settings: dict[str, Any] | None = None,
            model_files: str | None = str(MODEL_DIR),
            replica_settings: dict[str, Any] | None = None,
        ) -> Stack:
            options = {"model": MODEL, "timing": time_model("instant"), **(simulator or {})}
            fleet = await stack.enter_async_context(SimulatedFleet(replicas, ReplicaConfig(**options)))
            overrides: dict[str, Any] = {
                "listen.port": 0,
                "admin.port": 0,
                "health.interval_s": 0.1,
                "health.load_interval_s": 0.1,
                "shutdown.grace_s": 5,
                "replicas": [{"url": url, **(replica_settings or {})} for url in fleet.urls],
                **(settings or {}),
            }
            app = App(load_config(overrides=list(overrides.items())), model_files=model_files)
            await app.start()
            stack.push_async_callback(app.stop)
            client = await stack.enter_async_context(
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60), connector=aiohttp.TCPConnector(limit=0))
            )
            system = Stack(fleet, app, client)
            await system.up()
            return system

        yield start
