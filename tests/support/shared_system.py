"""A simulated fleet whose index is shared: agents, one Redis (or a name for it), routers, all but Redis in one loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
from support.waiting import until

from replica.publication import LoadReader, Publication
from replica.simulator.config import MODEL_DIR, ReplicaConfig
from replica.simulator.fleet import SimulatedFleet, SimulatedReplica
from replica.simulator.timing import time_model
from router.app import App
from router.config import load_config
from router.engines import ENGINES
from router.fleet.replica import Feed, Health
from router.index.redis.connect import connect
from router.index.redis.layout import Layout

SYSTEM = {"role": "system", "content": "You are a careful coding agent. " * 40}


class Shared:
    """A simulated fleet with an agent each, one Redis, any number of routers."""

    def __init__(
        self,
        fleet: SimulatedFleet,
        url: str,
        stack: AsyncExitStack,
        redis: dict[str, Any] | None = None,
        lease_s: float = 3.0,
    ) -> None:
        self.fleet = fleet
        self.url = url
        self.redis = {"timeout_s": 5, **(redis or {})}
        self.lease_s = lease_s
        self.stack = stack
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))
        self.agents: list[asyncio.Task[None]] = []
        self.publications: list[Publication] = []

    async def agent(self, simulated: SimulatedReplica) -> Publication:
        """Start an agent beside a replica."""
        engine = ENGINES["vllm"]
        info = await engine.inspect(self.session, simulated.url)
        publication = Publication(
            simulated.url.removeprefix("http://"), simulated.url, info, info.events[0], connect(self.url, **self.redis),
            Layout("default"), model="sim", block_size=16, interval_s=0.05, lease_s=self.lease_s,
        )  # fmt: skip
        self.agents.append(asyncio.create_task(publication.run(LoadReader(engine, self.session, simulated.url, 0.05))))
        self.publications.append(publication)
        return publication

    async def router(
        self,
        lookup: str = "mirror",
        *,
        replicas: list[dict[str, Any]] | None = None,
        settings: dict[str, Any] | None = None,
        **redis: Any,
    ) -> App:
        """A router; `redis` are settings of that section."""
        settings = {
            "listen.port": 0, "admin.port": 0, "health.interval_s": 0.1, "shutdown.grace_s": 1,
            "index.backend": "redis", "index.lookup": lookup, "redis.url": self.url,
            "redis.timeout_s": 5, "redis.lookup_timeout_s": 5,
            **{f"redis.{name}": value for name, value in redis.items()}, **(settings or {}),
        }  # fmt: skip
        if replicas is not None:
            settings["replicas"] = replicas
        app = App(load_config(overrides=list(settings.items())), model_files=str(MODEL_DIR))
        await app.start()
        self.stack.push_async_callback(app.stop)
        return app

    async def up(self, app: App) -> None:
        def known() -> bool:
            replicas = list(app.fleet)
            shared = app.feeds.shared
            assert shared is not None
            return len(replicas) == len(self.fleet) and all(
                r.health is Health.UP and shared.feed(r, 16)[0] is Feed.EVENTS for r in replicas
            )

        await until(known, f"replicas joined from leases: {[(r.id, r.health, r.reason) for r in app.fleet]}")

    async def ask(self, app: App, messages: list[dict[str, Any]], **fields: Any) -> tuple[dict[str, str], Any]:
        body = {"model": "sim", "messages": messages, "max_tokens": 4, **fields}
        url = f"http://127.0.0.1:{app.server.port}/v1/chat/completions"
        async with self.session.post(url, json=body) as answer:
            assert answer.status == 200, await answer.text()
            return {k.lower(): v for k, v in answer.headers.items()}, await answer.json()

    def knows_truth(self, app: App) -> bool:
        """Every live block of every replica is in the mirror, and nothing else."""
        for simulated in self.fleet:
            name = simulated.url.removeprefix("http://")
            truth = simulated.own_hashes()
            matches = [app.index.match([key]).get(name) for key in truth]
            if any(match is None or match.predicted for match in matches):
                return False
            if app.index.replica_blocks(name) != len(truth):
                return False
        return True

    async def exact(self, app: App) -> None:
        await until(lambda: self.knows_truth(app), "the mirror equals the replicas' caches")

    async def close(self) -> None:
        for task in self.agents:
            task.cancel()
        await asyncio.gather(*self.agents, return_exceptions=True)
        await self.session.close()


@asynccontextmanager
async def shared_system(
    url: str, replicas: int = 2, *, redis: dict[str, Any] | None = None, lease_s: float = 3.0, **simulator: Any
) -> AsyncIterator[Shared]:
    """A fleet with its agents, which publish to the Redis at `url`; `redis` are settings of their connections.

    `lease_s`: of the agents. One that runs out makes its replica unknown for a moment, here too.
    """
    async with AsyncExitStack() as stack:
        options = {"model": "sim", "timing": time_model("instant"), **simulator}
        fleet = await stack.enter_async_context(SimulatedFleet(replicas, ReplicaConfig(**options)))
        system = Shared(fleet, url, stack, redis, lease_s)
        stack.push_async_callback(system.close)
        for simulated in fleet:
            await system.agent(simulated)
        yield system
