"""Faults of Redis and of agents: each leaves a clear status, and the truth comes back by itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from router.index.memory import MemoryIndex
from router.index.redis.connect import connect
from router.index.redis.layout import Layout
from router.index.redis.leases import ReplicaMeta
from router.index.redis.mirror import RedisMirror
from router.index.redis.registry import Registry
from router.index.redis.store import Store
from router.index.redis.writer import RedisWriter, WriterState
from router.index.types import Delta, Tier

Until = Callable[..., Awaitable[None]]


def writer_of(store: Store, layout: Layout, keys: list[int]) -> RedisWriter:
    def snapshot() -> Delta:
        return Delta(cleared=True, stored={Tier.DEVICE: keys})

    return RedisWriter(store, layout, "a", ReplicaMeta("http://a"), snapshot, renew_s=0.05)


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
    server.pause()
    await until(lambda: writer.status().trouble == "slow" and mirror.status().trouble == "slow")
    assert mirror.match([1, 2, 3])["a"].blocks == 3, "the last copy stays in use"
    server.resume()
    await until(lambda: writer.status().state is WriterState.LIVE and not mirror.status().trouble)
    server.restart()
    await until(lambda: mirror.status().bootstraps >= 2 and "a" in mirror.match([1, 2, 3]))


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
