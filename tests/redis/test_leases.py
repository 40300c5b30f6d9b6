"""Who owns a replica: leases that run out, agents that stop and come back, newer agents, several routers' work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from router.index.memory import MemoryIndex
from router.index.redis.connect import connect
from router.index.redis.inflight import NONE, InFlight, InFlightShare
from router.index.redis.layout import Layout
from router.index.redis.leases import ReplicaMeta
from router.index.redis.mirror import RedisMirror
from router.index.redis.registry import Registry
from router.index.redis.store import Store
from router.index.redis.writer import RedisWriter, WriterState
from router.index.types import Cleared, Delta, Match, Tier

Until = Callable[..., Awaitable[None]]
LEASE_S = 0.5


class Agent:
    """An agent's writer, whose process can be held as SIGSTOP holds it: no call it makes goes out, none returns."""

    def __init__(self, name: str, url: str, layout: Layout, keys: list[int]) -> None:
        self.keys = keys
        self._go_on = asyncio.Event()
        self._go_on.set()
        self.store = connect(url)
        execute = self.store.execute

        async def held(*args: Any) -> Any:
            await self._go_on.wait()
            answer = await execute(*args)
            await self._go_on.wait()
            return answer

        self.store.execute = held  # type: ignore[method-assign]
        meta = ReplicaMeta(f"http://{name}")
        self.writer = RedisWriter(self.store, layout, name, meta, self.snapshot, lease_s=LEASE_S, renew_s=0.05)

    def snapshot(self) -> Delta:
        return Delta(cleared=Cleared.EMPTIED, stored={Tier.DEVICE: list(self.keys)})

    def store_blocks(self, *keys: int) -> None:
        self.keys += keys
        self.writer.apply(self.writer.replica_id, Delta(stored={Tier.DEVICE: list(keys)}))

    def stop(self) -> None:
        self._go_on.clear()

    def go_on(self) -> None:
        self._go_on.set()


@pytest.fixture
async def follower(store: Store, layout: Layout, running: Any) -> tuple[Registry, RedisMirror]:
    """A router that retires a replica 0.1 s after its lease ran out."""
    registry = Registry(store, layout, poll_s=0.02, retire_grace_s=0.1)
    mirror = RedisMirror(store, layout, registry, MemoryIndex(10_000))
    running(registry.run())
    running(mirror.run())
    return registry, mirror


async def test_a_dead_agents_replica_leaves_lookups_and_then_every_key(
    server: Any, store: Store, layout: Layout, follower: Any, running: Any, until: Until
) -> None:
    registry, mirror = follower
    dead, alive = Agent("dead", server.url, layout, list(range(3000))), Agent("alive", server.url, layout, [1, 2])
    task = running(dead.writer.run())
    running(alive.writer.run())
    await asyncio.gather(dead.writer.flush(), alive.writer.flush())
    await mirror.caught_up()
    assert mirror.match([1, 2, 3]) == {"dead": Match(3), "alive": Match(2)}
    dead.stop()
    await until(lambda: mirror.match([1, 2, 3]) == {"alive": Match(2)})

    async def swept() -> bool:
        if await store.execute("SCARD", layout.prefix + b"w"):
            return False
        return set(await store.execute("KEYS", layout.prefix + b"0*")) == set(layout.blocks(Tier.DEVICE, [1, 2]))

    await until(swept)
    task.cancel()
    assert {each.replica_id for each in (await registry.refresh()).incarnations} == {"alive"}
    assert len(await store.execute("KEYS", layout.prefix + b"r*")) == 1, "one reverse set, of the living"


async def test_an_agent_that_comes_back_after_its_lease_ran_out_publishes_what_is_true_now(
    server: Any, layout: Layout, follower: Any, running: Any, until: Until
) -> None:
    registry, mirror = follower
    agent = Agent("a", server.url, layout, [1, 2, 3])
    running(agent.writer.run())
    await agent.writer.flush()
    await registry.refresh()
    agent.stop()
    agent.store_blocks(4)
    await until(lambda: registry.roster.incarnations == ())
    agent.keys.remove(3)  # evicted while it was held: its events are still unread
    agent.go_on()
    await until(lambda: mirror.match([1, 2, 3, 4]) == {"a": Match(2)})
    assert mirror.match([4]) == {"a": Match(1)}
    assert agent.writer.status().state is WriterState.LIVE


async def test_an_agent_that_comes_back_to_find_a_newer_one_leaves_its_blocks_alone(
    server: Any, store: Store, layout: Layout, follower: Any, running: Any, until: Until
) -> None:
    registry, mirror = follower
    old = Agent("a", server.url, layout, [1, 2, 3])
    running(old.writer.run())
    await old.writer.flush()
    await registry.refresh()
    old.stop()
    old.store_blocks(4, 5)
    await until(lambda: registry.roster.incarnations == ())
    new = Agent("a", server.url, layout, [1, 9])
    running(new.writer.run())
    await new.writer.flush()
    old.go_on()
    await until(lambda: old.writer.status().state is WriterState.SUPERSEDED)
    await mirror.caught_up()
    assert [mirror.match([key]) for key in (1, 9)] == [{"a": Match(1)}] * 2
    assert not any(mirror.match([key]) for key in (2, 3, 4, 5))

    async def swept() -> bool:
        return not await store.execute("EXISTS", *layout.blocks(Tier.DEVICE, [2, 3, 4, 5]))

    await until(swept)
    await old.writer.release()
    assert mirror.match([1]) == {"a": Match(1)}, "a superseded agent has nothing to give back"


def share(url: str, layout: Layout, name: str, work: dict[str, InFlight]) -> InFlightShare:
    return InFlightShare(connect(url), layout, name, lambda: work, interval_s=0.05, expiry_s=0.4)


async def test_routers_see_the_sum_of_the_others_work_until_it_ends(
    server: Any, layout: Layout, running: Any, until: Until
) -> None:
    work = [{"a": InFlight(1000, 1)}, {"a": InFlight(200, 2), "b": InFlight(5, 1)}, {"a": NONE}]
    shares = [share(server.url, layout, f"router {n}", each) for n, each in enumerate(work)]
    tasks = [running(each.run()) for each in shares]
    await until(lambda: shares[2].others("a") == InFlight(1200, 3) and shares[2].routers == 2)
    assert shares[2].others("b") == InFlight(5, 1)
    await until(lambda: shares[0].others("a") == InFlight(200, 2))
    work[1].clear()
    await until(lambda: shares[0].others("a") == NONE)
    tasks[0].cancel()  # it leaves in good order
    await until(lambda: shares[2].others("a") == NONE and shares[2].routers == 1)


async def test_a_lost_routers_work_runs_out(server: Any, layout: Layout, running: Any, until: Until) -> None:
    lost = share(server.url, layout, "lost", {"a": InFlight(7, 7)})
    other = share(server.url, layout, "other", {})
    running(other.run())

    async def seen() -> bool:
        await lost.exchange()  # for as long as it takes: the other may be slower than what it is told is good for
        return other.others("a") == InFlight(7, 7)

    await until(seen)
    await until(lambda: other.others("a") == NONE)
    await until(seen)
    server.pause()
    try:
        await until(lambda: other.others("a") == NONE)  # without Redis it runs out here
    finally:
        server.resume()
