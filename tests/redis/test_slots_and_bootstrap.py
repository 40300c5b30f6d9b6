"""A slot's next owner never inherits blocks, and reading a large index leaves the loop free."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from router.index.memory import MemoryIndex
from router.index.redis import scripts
from router.index.redis.layout import Layout
from router.index.redis.leases import ReplicaLoad, ReplicaMeta, encode
from router.index.redis.mirror import TURN, RedisMirror
from router.index.redis.records import delta_records
from router.index.redis.registry import Registry
from router.index.redis.store import Store
from router.index.redis.writer import RedisWriter
from router.index.types import Cleared, Delta, Match, Tier

Until = Callable[..., Awaitable[None]]
BLOCKS = 50_000


async def test_a_slot_is_given_out_again_only_swept_and_rested(store: Store, layout: Layout) -> None:
    async def claim(name: str, rest_ms: int = 0) -> tuple[int, int]:
        meta, load = encode(ReplicaMeta("http://" + name)), encode(ReplicaLoad())
        answer = await store.run(
            scripts.CLAIM, layout, layout.pool, "g", name, "", "writer", meta, 60_000, load, 100, rest_ms, 1
        )
        return int(answer[1]), int(answer[2])

    async def sweep(most: int) -> int:
        return int((await store.run(scripts.SWEEP, layout, "me", 1000, most))[2])

    epoch, slot = await claim("a")
    (record,) = delta_records(Delta(stored={Tier.DEVICE: [1, 2, 3]}), slot, 512)
    await store.run(scripts.APPLY, layout, "a", epoch, 1, 100, record)
    await store.run(scripts.RETIRE, layout, 100, "now", "a", epoch)
    assert (await claim("b"))[1] != slot, "its blocks are still there"
    assert await sweep(2) == 1, "not all of them are gone yet"
    assert (await claim("c"))[1] != slot
    assert await sweep(512) == 0
    assert await store.execute("EXISTS", *layout.blocks(Tier.DEVICE, [1, 2, 3])) == 0
    assert (await claim("d", rest_ms=60_000))[1] != slot, "a reader's roster may still name its old owner"
    assert (await claim("e"))[1] == slot


async def test_a_bootstrap_gives_the_loop_a_turn_after_each_chunk(
    store: Store, layout: Layout, running: Any, until: Until
) -> None:
    full = Delta(cleared=Cleared.EMPTIED, stored={Tier.DEVICE: list(range(1, BLOCKS + 1))})
    writer = RedisWriter(store, layout, "a", ReplicaMeta("http://a"), lambda: full, lease_s=60, stream_cap=1)
    publishing = running(writer.run())
    await writer.flush()
    publishing.cancel()
    registry = Registry(store, layout)
    mirror = RedisMirror(store, layout, registry, MemoryIndex())
    grown = []

    async def watch() -> None:
        while True:
            before = mirror.index.blocks
            await asyncio.sleep(0)
            grown.append(mirror.index.blocks - before)

    running(watch())
    running(registry.run())
    running(mirror.run())
    await mirror.caught_up()
    assert mirror.match(range(1, BLOCKS + 1)) == {"a": Match(BLOCKS)}
    assert sum(grown) == BLOCKS
    assert max(grown) <= TURN
