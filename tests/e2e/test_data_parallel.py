"""An engine of several data-parallel ranks, without Redis: the router follows each rank and pins requests to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from support.dp_engine import DataParallelEngine
from support.waiting import until

from replica.simulator.config import MODEL_DIR, ReplicaConfig
from replica.simulator.timing import time_model
from router.app import App
from router.config import load_config
from router.fleet.replica import Feed, Health, Replica

SYSTEM = {"role": "system", "content": "You are careful and cite every file that you have read. " * 12}


class Site:
    """An engine of `ranks` ranks and a router that knows only its URL."""

    def __init__(self, stack: AsyncExitStack, client: aiohttp.ClientSession) -> None:
        self.stack = stack
        self.client = client

    async def start(self, ranks: int, **options: Any) -> None:
        config = ReplicaConfig(model="sim", timing=time_model("instant"))
        self.engine = await self.stack.enter_async_context(DataParallelEngine(ranks, config, **options))
        replica: dict[str, Any] = {"url": self.engine.url}
        if not self.engine.tells_sources:
            first = self.engine.first_port
            replica["events"] = {
                "endpoint": f"tcp://127.0.0.1:{first}",
                "replay_endpoint": f"tcp://127.0.0.1:{first + ranks}",
            }
        settings = {
            "listen.port": 0,
            "admin.port": 0,
            "health.interval_s": 0.1,
            "health.load_interval_s": 0.1,
            "shutdown.grace_s": 1,
            "replicas": [replica],
        }
        self.app = App(load_config(overrides=list(settings.items())), model_files=str(MODEL_DIR))
        await self.app.start()
        self.stack.push_async_callback(self.app.stop)
        await self.followed(ranks)

    async def followed(self, ranks: int) -> None:
        name = self.engine.url.removeprefix("http://")
        names = [f"{name}/dp{rank}" for rank in range(ranks)] if ranks > 1 else [name]
        await until(
            lambda: [(r.id, r.health, r.feed) for r in self.app.fleet] == [(n, Health.UP, Feed.EVENTS) for n in names],
            f"{names} are followed: {[(r.id, r.health, r.feed, r.feed_reason) for r in self.app.fleet]}",
        )

    async def settled(self) -> None:
        for replica, rank in zip(self.app.fleet, self.engine.ranks, strict=True):
            await until(
                lambda replica=replica, rank=rank: (  # type: ignore[misc]
                    self.app.feeds.status()[replica.id]["last_seq"] == rank.next_seq - 1
                ),
                f"events of {replica.id}",
            )

    async def ask(self, messages: list[dict[str, Any]]) -> tuple[str, int, dict[str, Any]]:
        """(replica, matched tokens, answer)."""
        url = f"http://127.0.0.1:{self.app.server.port}/v1/chat/completions"
        body = {"model": "sim", "messages": messages, "max_tokens": 4}
        async with self.client.post(url, json=body) as answer:
            assert answer.status == 200, await answer.text()
            headers = answer.headers
            return (
                headers["x-prefix-router-replica"],
                int(headers["x-prefix-router-matched-tokens"]),
                await answer.json(),
            )


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        yield Site(stack, await stack.enter_async_context(aiohttp.ClientSession()))


@pytest.mark.parametrize("told", [True, False], ids=["the engine tells", "the configuration tells"])
async def test_sessions_stay_on_the_rank_that_has_their_blocks(site: Site, told: bool) -> None:
    await site.start(3, tells_sources=told)
    sessions = [[SYSTEM, {"role": "user", "content": f"question {number}"}] for number in range(6)]
    used = set()
    for _ in range(3):
        for history in sessions:
            await site.settled()
            replica, matched, answer = await site.ask(history)
            used.add(replica)
            cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert matched == cached, "what the router knows of that rank is what that rank has"
            history += [answer["choices"][0]["message"], {"role": "user", "content": "go on"}]
    assert None not in site.engine.asked, "every request names a rank"
    assert {f"dp{rank}" for rank in site.engine.asked} == {name.rpartition("/")[2] for name in used}


async def test_load_is_told_for_each_rank(site: Site) -> None:
    await site.start(2)
    first, second = site.app.fleet
    site.engine.ranks[1].fault(paused=True)
    url, body = site.engine.url + "/v1/completions", {"model": "sim", "prompt": "a prompt", "max_tokens": 2}
    async with site.client.post(url, json=body, headers={"x-data-parallel-rank": "0"}) as answer:
        assert answer.status == 200
    waiting = asyncio.create_task(site.client.post(url, json=body, headers={"x-data-parallel-rank": "1"}))

    def busy(replica: Replica) -> int:
        return replica.reported.running + replica.reported.waiting if replica.reported else -1

    await until(lambda: (busy(first), busy(second)) == (0, 1), "the load of rank 1 alone")
    site.engine.ranks[1].clear_faults()
    (await waiting).release()


async def test_an_engine_that_comes_back_with_other_ranks(site: Site) -> None:
    await site.start(2)
    await site.engine.stop()
    await until(lambda: all(replica.health is Health.DOWN for replica in site.app.fleet), "down")
    removed = site.engine.ranks.pop()
    await site.engine.start()
    await site.followed(1)
    await site.ask([SYSTEM, {"role": "user", "content": "one rank"}])
    await site.engine.stop()
    await until(lambda: all(replica.health is Health.DOWN for replica in site.app.fleet), "down")
    site.engine.ranks.append(removed)
    await site.engine.start()
    await site.followed(2)
    await site.ask([SYSTEM, {"role": "user", "content": "two ranks"}])
