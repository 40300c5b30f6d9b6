"""Random deltas from several writers, clears, restarts and retirements: mirror == direct == a plain model."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.exceptions import ConnectionError

from router.index.memory import MemoryIndex
from router.index.redis.connect import connect
from router.index.redis.direct import RedisDirectIndex
from router.index.redis.layout import Layout
from router.index.redis.leases import ReplicaMeta
from router.index.redis.mirror import RedisMirror
from router.index.redis.registry import Registry
from router.index.redis.store import Store
from router.index.redis.writer import RedisWriter
from router.index.types import Cleared, Delta, Match, Tier

Start = Callable[[Awaitable[Any]], "asyncio.Task[Any]"]


class Agent:
    """A writer whose cache is known here."""

    def __init__(self, name: str, store: Store, layout: Layout, start: Start) -> None:
        self.name, self.store, self.layout, self.start = name, store, layout, start
        self.held: dict[Tier, set[int]] = {tier: set() for tier in Tier}
        self.restart()

    def snapshot(self) -> Delta:
        return Delta(cleared=Cleared.EMPTIED, stored={tier: list(keys) for tier, keys in self.held.items() if keys})

    def restart(self) -> None:
        meta = ReplicaMeta("http://" + self.name)
        self.writer = RedisWriter(
            self.store, self.layout, self.name, meta, self.snapshot, chunk=7, linger_s=0, quarantine_ms=0
        )
        self.task = self.start(self.writer.run())

    def change(self, choose: random.Random, keys: int) -> None:
        delta = Delta(cleared=Cleared.EMPTIED if choose.random() < 0.05 else Cleared.NO)
        if delta.cleared:
            self.held = {tier: set() for tier in Tier}
        for tier in choose.choices(list(Tier), weights=[8, 1, 1], k=choose.randint(1, 2)):
            if tier in delta.stored:
                continue
            picked = choose.sample(range(keys), choose.randint(0, 30))
            cut = choose.randint(0, len(picked))
            delta.stored[tier], delta.dropped[tier] = picked[:cut], picked[cut:]
            self.held[tier] |= set(picked[:cut])
            self.held[tier] -= set(picked[cut:])
        self.writer.apply(self.name, delta)


def truth(agents: list[Agent], chain: list[int]) -> dict[str, Match]:
    found = {}
    for agent in agents:
        depth = lower = 0
        for key in chain:
            if not any(key in held for held in agent.held.values()):
                break
            depth += 1
            lower += key not in agent.held[Tier.DEVICE]
        if depth:
            found[agent.name] = Match(depth, lower)
    return found


async def live(registry: Registry) -> int:
    try:
        return len((await registry.refresh()).live)
    except ConnectionError:  # an idle connection to the server before its restart
        return 0


@pytest.mark.parametrize("seed", range(3))
async def test_mirror_direct_and_model_agree(store: Store, server: Any, running: Start, seed: int) -> None:
    layout = Layout(f"pool {seed}")
    choose = random.Random(seed)
    registry = Registry(store, layout, poll_s=0.02)
    mirror = RedisMirror(store, layout, registry, MemoryIndex(100_000))
    direct = RedisDirectIndex(store, layout, registry, timeout_s=5)
    running(registry.run())
    running(mirror.run())
    agents = [Agent(f"replica-{n}", store, layout, running) for n in range(5)]
    late: RedisMirror | None = None
    for round_ in range(25):
        for agent in choose.sample(agents, 3):
            for _ in range(choose.randint(1, 6)):
                agent.change(choose, 60)
            if choose.random() < 0.1:
                agent.task.cancel()
                agent.restart()
        if round_ == 8:
            server.restart()
        if round_ == 15:
            late_registry = Registry(store, layout, poll_s=0.02)
            late = RedisMirror(store, layout, late_registry, MemoryIndex(100_000))
            running(late_registry.run())
            running(late.run())
        async with asyncio.timeout(20):  # a restarted server is found by the next write or renewal
            while await live(registry) < len(agents):
                await asyncio.sleep(0.02)
            # Only now: a writer that has not noticed yet that Redis is empty is idle too.
            await asyncio.gather(*(agent.writer.flush() for agent in agents))
        await mirror.caught_up()
        await registry.refresh()
        if late is not None:
            await late.caught_up()
        for _ in range(10):
            chain = choose.sample(range(60), 12)
            expected = truth(agents, chain)
            assert mirror.match(chain) == expected
            assert await direct.lookup(chain) == expected
            if late is not None:
                assert late.match(chain) == expected
    assert mirror.status().malformed == 0
    assert not any(agent.writer.status().trouble for agent in agents)


async def test_what_a_replica_leaves_behind_is_swept_to_the_last_key(
    store: Store, layout: Layout, running: Start, until: Callable[..., Awaitable[None]]
) -> None:
    choose = random.Random(1)
    agents = [Agent(f"replica-{n}", store, layout, running) for n in range(3)]
    for _ in range(20):
        for agent in agents:
            agent.change(choose, 500)
    await asyncio.gather(*(agent.writer.flush() for agent in agents))
    for agent in agents:
        agent.task.cancel()
        await asyncio.gather(agent.task, return_exceptions=True)
        await agent.writer.release()
    registry = Registry(store, layout, poll_s=0.01)
    running(registry.run())
    await until(lambda: registry.roster and not registry.roster.unswept)
    keys = set(await store.execute("KEYS", layout.prefix + b"*"))
    assert {key[len(layout.prefix) :] for key in keys} <= {b"h", b"t", b"f", b"k"}


async def test_layout_versions_do_not_mix(store: Store, layout: Layout, running: Start) -> None:
    await store.execute("HSET", layout.head, "v", "1")
    registry = Registry(store, layout)
    with pytest.raises(Exception, match=r"layout 1.*upgrade"):
        await registry.refresh()
    agent = Agent("a", store, layout, running)
    while not agent.writer.status().trouble:
        await asyncio.sleep(0.005)
    assert agent.writer.status().trouble == "layout"


def test_connect_is_lazy() -> None:
    connect("redis://127.0.0.1:1")
