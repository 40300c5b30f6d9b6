"""One vLLM of several data-parallel ranks: simulated replicas, each a rank, behind one address."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from dataclasses import replace
from typing import Any, Self

import aiohttp
from aiohttp import web
from support.ports import free_run

from replica.simulator.config import ReplicaConfig
from replica.simulator.fleet import SimulatedReplica

HOP = {"content-length", "connection", "keep-alive", "transfer-encoding", "host"}


class DataParallelEngine:
    """Rank r is `ranks[r]`. A request goes to the rank of its X-data-parallel-rank, else to one after the other.

    `tells_sources` False: as vLLM before 0.31, which has its events on ports in a row from `first_port` on (events of
    all ranks, then their replays).
    """

    def __init__(self, ranks: int, config: ReplicaConfig, *, tells_sources: bool = True) -> None:
        self.first_port = 0 if tells_sources else free_run(2 * ranks)
        self.ranks = [SimulatedReplica(self._of_rank(config, rank, ranks)) for rank in range(ranks)]
        self.asked: Counter[str | None] = Counter()
        """Requests by the rank they named."""
        self.tells_sources = tells_sources
        self.port = 0
        self._turn = itertools.count()
        self._runner: web.AppRunner | None = None
        self._client: aiohttp.ClientSession | None = None

    def _of_rank(self, config: ReplicaConfig, rank: int, ranks: int) -> ReplicaConfig:
        if not self.first_port:
            return config
        events = [f"tcp://127.0.0.1:{self.first_port + offset}" for offset in (rank, ranks + rank)]
        return replace(config, endpoint=events[0], replay_endpoint=events[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        for rank in self.ranks:
            await rank.start()
        self._client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60), auto_decompress=False)
        app = web.Application()
        app.router.add_get("/kv_event_sources", self._sources)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_route("*", "/{path:.*}", self._forward)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """May be started again, at the same address."""
        if self._client is not None and self._runner is not None:
            await self._runner.cleanup()
            await self._client.close()
        for rank in self.ranks:
            await rank.stop()

    async def _each(self, path: str) -> list[Any]:
        assert self._client is not None

        async def read(rank: SimulatedReplica) -> str:
            assert self._client is not None
            async with self._client.get(rank.url + path) as answer:
                return await answer.text()

        return await asyncio.gather(*map(read, self.ranks))

    async def _sources(self, request: web.Request) -> web.StreamResponse:
        if not self.tells_sources:
            return web.json_response({"detail": "Not Found"}, status=404)
        assert self._client is not None
        found = {}
        for number, rank in enumerate(self.ranks):
            async with self._client.get(rank.url + "/kv_event_sources") as answer:
                found[str(number)] = (await answer.json())["0"]
        return web.json_response(found)

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        pages = [
            page.replace('engine="0"', f'engine="{number}"') for number, page in enumerate(await self._each("/metrics"))
        ]
        return web.Response(text="".join(pages))

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        assert self._client is not None
        named = request.headers.get("x-data-parallel-rank")
        number = 0 if request.method == "GET" else int(named) if named else next(self._turn) % len(self.ranks)
        if request.path.endswith("completions"):
            self.asked[named] += 1
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
        url = self.ranks[number].url + request.path_qs
        async with self._client.request(request.method, url, headers=headers, data=await request.read()) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP}
            return web.Response(status=answer.status, headers=kept, body=await answer.read())
