"""Faults of Redis and of agents: each leaves a clear status, and the truth comes back by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from router.index.memory import MemoryIndex
from router.index.redis.connect import connect
from router.index.redis.direct import RedisDirectIndex
from router.index.redis.layout import Layout
from router.index.redis.leases import ReplicaMeta
from router.index.redis.mirror import RedisMirror
from router.index.redis.registry import Registry
from router.index.redis.store import Store
from router.index.redis.writer import RedisWriter, WriterState
from router.index.types import Cleared, Delta, Match, Tier

Until = Callable[..., Awaitable[None]]


def writer_of(store: Store, layout: Layout, keys: list[int], **options: Any) -> RedisWriter:
    def snapshot() -> Delta:
        return Delta(cleared=Cleared.EMPTIED, stored={Tier.DEVICE: keys})

    return RedisWriter(store, layout, "a", ReplicaMeta("http://a"), snapshot, renew_s=0.05, **options)


async def test_the_newer_of_two_agents_wins(store: Store, layout: Layout, running: Any, until: Until) -> None:
    old = writer_of(store, layout, [1, 2])
    running(old.run())
    await old.flush()
    new = writer_of(store, layout, [1])
    running(new.run())
    await new.flush()
    await until(lambda: old.status().state is WriterState.SUPERSEDED)
    assert new.status().state is WriterState.LIVE


async def test_down_at_start_slow_and_restarted_empty(
    stopped_server: Any, layout: Layout, running: Any, until: Until
) -> None:
    server = stopped_server
    store = connect(server.url, timeout_s=0.2)
    writer = writer_of(store, layout, [1, 2, 3])
    registry = Registry(store, layout, poll_s=0.05)
    mirror = RedisMirror(store, layout, registry, MemoryIndex(1000))
    for work in (writer.run(), registry.run(), mirror.run()):
        running(work)
    await until(lambda: writer.status().trouble == "down" and mirror.status().trouble == "down")
    server.start()
    await until(lambda: "a" in mirror.match([1, 2, 3]))
    await mirror.caught_up()
    server.pause()
    await until(lambda: writer.status().trouble == "slow" and mirror.status().trouble == "slow")
    assert mirror.match([1, 2, 3])["a"].blocks == 3, "the last copy stays in use"
    server.resume()
    await until(lambda: writer.status().state is WriterState.LIVE and not mirror.status().trouble)
    bootstraps = mirror.status().bootstraps
    server.restart()
    await until(lambda: mirror.status().bootstraps > bootstraps and "a" in mirror.match([1, 2, 3]))


async def test_wrong_password(stopped_server: Any, layout: Layout, running: Any, until: Until) -> None:
    stopped_server.start("--requirepass", "right")
    writer = writer_of(connect(stopped_server.url, password="wrong"), layout, [1])
    running(writer.run())
    await until(lambda: writer.status().trouble == "auth")
    assert "wrong" not in writer.status().reason.replace("WRONGPASS", "")


async def test_full(stopped_server: Any, layout: Layout, running: Any, until: Until) -> None:
    stopped_server.start("--maxmemory-policy", "noeviction")
    store = connect(stopped_server.url)
    writer = writer_of(store, layout, [1])
    running(writer.run())
    await writer.flush()
    await store.execute("CONFIG", "SET", "maxmemory", "1")
    writer.apply("a", Delta(stored={Tier.DEVICE: [2]}))
    await until(lambda: writer.status().trouble == "full")
    await store.execute("CONFIG", "SET", "maxmemory", "0")
    await writer.flush()
    assert await store.execute("EXISTS", *layout.blocks(Tier.DEVICE, [1, 2])) == 2


async def renewed(store: Store, layout: Layout, until: Until) -> None:
    """The lease has longer to live than it had."""
    left = int(await store.execute("PTTL", layout.prefix + b"la"))

    async def longer() -> bool:
        nonlocal left
        before, left = left, int(await store.execute("PTTL", layout.prefix + b"la"))
        return left > before

    await until(longer)


async def test_drops_make_room_in_a_full_redis_and_the_lease_lives_on(
    stopped_server: Any, layout: Layout, running: Any, until: Until
) -> None:
    stopped_server.start("--maxmemory-policy", "noeviction")
    store = connect(stopped_server.url)
    keys = [1, 2, 3]
    writer = writer_of(store, layout, keys)
    running(writer.run())
    await writer.flush()
    await store.execute("CONFIG", "SET", "maxmemory", "1")
    writer.apply("a", Delta(dropped={Tier.DEVICE: [1]}))
    await writer.flush()
    assert await store.execute("EXISTS", *layout.blocks(Tier.DEVICE, [1])) == 0
    writer.apply("a", Delta(stored={Tier.DEVICE: [4]}))
    await until(lambda: writer.status().trouble == "full")
    writer.apply("a", Delta(dropped={Tier.DEVICE: [2]}))

    async def dropped() -> bool:
        return not await store.execute("EXISTS", *layout.blocks(Tier.DEVICE, [2]))

    await until(dropped)
    await renewed(store, layout, until)
    assert (await Registry(store, layout).refresh()).live == {"a"}
    await store.execute("CONFIG", "SET", "maxmemory", "0")
    await writer.flush()
    held = [await store.execute("EXISTS", key) for key in layout.blocks(Tier.DEVICE, [1, 2, 3, 4])]
    assert held == [0, 0, 1, 1]


@pytest.mark.parametrize("restarted", ["engine", "agent"])
async def test_after_a_restart_in_a_full_redis_no_old_block_is_left(
    stopped_server: Any, layout: Layout, running: Any, until: Until, restarted: str
) -> None:
    stopped_server.start("--maxmemory-policy", "noeviction")
    store = connect(stopped_server.url)
    keys = [1, 2]
    writer = writer_of(store, layout, keys)
    registry = Registry(store, layout, poll_s=0.05)
    mirror = RedisMirror(store, layout, registry, MemoryIndex(1000))
    for work in (writer.run(), registry.run(), mirror.run()):
        running(work)
    await writer.flush()
    await mirror.caught_up()
    await store.execute("CONFIG", "SET", "maxmemory", "1")
    keys[:] = [9]
    if restarted == "engine":
        writer.apply("a", Delta(cleared=Cleared.EMPTIED, stored={Tier.DEVICE: [9]}))
    else:
        writer = writer_of(store, layout, keys)
        running(writer.run())
    await until(lambda: mirror.match([1, 2]) == {})
    await until(lambda: writer.status().trouble == "full")
    assert (await registry.refresh()).live == {"a"}
    assert writer.stuck.startswith("Redis is full")
    await store.execute("CONFIG", "SET", "maxmemory", "0")
    await writer.flush()
    await until(lambda: mirror.match([9]) == {"a": Match(1)} and not writer.stuck)


async def test_too_many_waiting_deltas_become_a_snapshot(
    server: Any, layout: Layout, running: Any, until: Until
) -> None:
    store = connect(server.url, timeout_s=0.2)
    keys = [1]
    writer = writer_of(store, layout, keys, max_pending=1000)
    registry = Registry(store, layout, poll_s=0.05)
    mirror = RedisMirror(store, layout, registry, MemoryIndex(100_000))
    for work in (writer.run(), registry.run(), mirror.run()):
        running(work)
    await writer.flush()
    await mirror.caught_up()
    server.pause()
    for start in range(10, 5010, 50):
        keys += range(start, start + 50)
        writer.apply("a", Delta(stored={Tier.DEVICE: list(range(start, start + 50))}))
        assert writer.status().pending <= 1050
        await asyncio.sleep(0)
    server.resume()
    await writer.flush()
    assert writer.status().snapshots == 2
    await until(lambda: not mirror.status().trouble)
    await mirror.caught_up()
    assert mirror.index.replica_blocks("a") == 5001
    assert mirror.match(range(10, 5010)) == {"a": Match(5000)}


async def test_a_mirror_that_finds_the_stream_trimmed_bootstraps_again(
    store: Store, layout: Layout, running: Any, until: Until
) -> None:
    writer = writer_of(store, layout, [1, 2, 3], stream_cap=1, chunk=1024)
    registry = Registry(store, layout, poll_s=0.05)
    mirror = RedisMirror(store, layout, registry, MemoryIndex(100_000))
    running(registry.run())
    running(writer.run())
    await writer.flush()  # first: a pool's first record makes another origin, and a mirror bootstraps once more for it
    follow = running(mirror.run())
    await mirror.caught_up()
    bootstraps = mirror.status().bootstraps
    follow.cancel()  # a router that is held up
    await asyncio.gather(follow, return_exceptions=True)
    writer.apply("a", Delta(dropped={Tier.DEVICE: [2]}))
    for start in range(100, 10100, 1000):
        writer.apply("a", Delta(stored={Tier.DEVICE: list(range(start, start + 1000))}))
        await writer.flush()
    running(mirror.run())
    await until(lambda: mirror.status().gaps == 1 and mirror.status().bootstraps == bootstraps + 1)
    await mirror.caught_up()
    assert mirror.match([1, 2]) == {"a": Match(1)}
    assert mirror.match(range(100, 10100)) == {"a": Match(10000)}
    assert mirror.index.replica_blocks("a") == 10002


async def test_a_primary_that_became_a_replica_and_back(
    server: Any, store: Store, layout: Layout, running: Any, until: Until
) -> None:
    writer = writer_of(store, layout, [1, 2])
    registry = Registry(store, layout, poll_s=0.05)
    mirror = RedisMirror(store, layout, registry, MemoryIndex(100_000))
    for work in (writer.run(), registry.run(), mirror.run()):
        running(work)
    await writer.flush()
    await mirror.caught_up()
    nobody, admin = ("127.0.0.1", "1"), connect(server.url)  # the writer drops the connections of its own store
    await admin.execute("REPLICAOF", *nobody)
    writer.apply("a", Delta(stored={Tier.DEVICE: [3]}))
    await until(lambda: writer.status().trouble == "readonly")
    assert writer.status().state is WriterState.DEGRADED
    await admin.execute("CONFIG", "SET", "replica-serve-stale-data", "no")
    await until(lambda: registry.health.trouble == "loading" and writer.status().trouble == "loading")
    assert mirror.match([1, 2, 3]) == {"a": Match(2)}, "the last copy stays in use"
    await admin.execute("REPLICAOF", "NO", "ONE")
    await writer.flush()
    await until(lambda: mirror.match([1, 2, 3]) == {"a": Match(3)})
    await until(lambda: writer.status().state is WriterState.LIVE and not registry.health.trouble)
    await admin.close()


async def test_direct_lookups_cost_nothing_while_redis_is_away(
    stopped_server: Any, layout: Layout, running: Any, until: Until
) -> None:
    server = stopped_server
    server.start()
    store = connect(server.url, timeout_s=0.2)
    writer = writer_of(store, layout, [1, 2])
    registry = Registry(store, layout, poll_s=0.05)
    direct = RedisDirectIndex(connect(server.url), layout, registry, timeout_s=0.05)
    running(registry.run())
    running(writer.run())
    await writer.flush()

    async def found() -> bool:
        return await direct.lookup([1, 2, 3]) == {"a": Match(2)}

    await until(found)
    server.pause()
    assert await direct.lookup([1]) == {}
    await until(lambda: registry.health.trouble == "slow")
    asked, skipped, took = direct.counters.timeouts, direct.counters.skipped, []
    for _ in range(3):  # the collector may run in one of them
        started = time.process_time()
        for _ in range(100):
            assert await direct.lookup([1]) == {}
        took.append(time.process_time() - started)
    assert min(took) < 0.05
    assert direct.counters.skipped == skipped + 300
    assert direct.counters.timeouts == asked >= 1
    assert direct.health.trouble == "slow"
    server.resume()
    await until(found)
    server.stop()
    assert await direct.lookup([1]) == {}
    skipped = direct.counters.skipped
    assert await direct.lookup([1]) == {}
    assert direct.counters.skipped == skipped + 1
    server.start()
    await until(found)
    assert direct.health.trouble is None
