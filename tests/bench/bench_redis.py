"""Lookups over 64 replicas, and staleness from writer to mirror. Run: python tests/bench/bench_redis.py URL."""

from __future__ import annotations

import asyncio
import sys
import time

from router.index.memory import MemoryIndex
from router.index.redis.connect import connect
from router.index.redis.direct import RedisDirectIndex
from router.index.redis.layout import Layout
from router.index.redis.leases import ReplicaMeta
from router.index.redis.mirror import RedisMirror
from router.index.redis.registry import Registry
from router.index.redis.writer import RedisWriter
from router.index.types import Delta, Tier


async def main(url: str) -> None:
    store, layout = connect(url, max_connections=200), Layout("bench")
    registry = Registry(store, layout)
    mirror = RedisMirror(store, layout, registry, MemoryIndex())
    direct = RedisDirectIndex(store, layout, registry, timeout_s=1)
    chain = [n * 0x9E3779B97F4A7C15 % 2**64 for n in range(1, 2049)]
    full = Delta(cleared=True, stored={Tier.DEVICE: chain})
    writers = [RedisWriter(store, layout, f"r{n}", ReplicaMeta("http://r"), lambda: full) for n in range(64)]
    tasks = [asyncio.create_task(work.run()) for work in (registry, mirror, *writers)]
    await asyncio.gather(*(writer.flush() for writer in writers))
    await mirror.caught_up()
    await registry.refresh()
    for blocks in (128, 512, 2048):
        for name, index in (("mirror", mirror), ("direct", direct)):
            cpu = time.process_time()
            for _ in range(50):
                assert len(await index.lookup(chain[:blocks])) == 64
            print(f"{name} {blocks} blocks: {(time.process_time() - cpu) / 50 * 1e6:.0f} us CPU")
    lags = []
    for n in range(300):
        started = time.perf_counter()
        writers[0].apply("r0", Delta(stored={Tier.DEVICE: [n]}))
        while not mirror.match([n]):
            await asyncio.sleep(0)
        lags.append((time.perf_counter() - started) * 1e3)
    lags.sort()
    print(f"staleness ms: p50 {lags[150]:.1f} p99 {lags[297]:.1f}")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
