"""The index shared through Redis: what agents publish about replicas, and what routers tell each other.

One object for one pool. It keeps the lookup (mirror, or Redis asked directly), takes loads and membership from the
agents' leases, and exchanges in-flight work with the other routers. While Redis is away everything goes on with what
was last known; `degraded` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence

from router.engines import EngineLoad
from router.fleet.discovery import Endpoint
from router.fleet.fleet import Fleet
from router.fleet.replica import Feed, Replica
from router.index.memory import MemoryIndex
from router.index.redis.direct import RedisDirectIndex
from router.index.redis.inflight import NONE, InFlight, InFlightShare
from router.index.redis.layout import Layout
from router.index.redis.mirror import MirrorState, RedisMirror
from router.index.redis.notes import NoteStream
from router.index.redis.registry import Registry, ReplicaRecord
from router.index.redis.store import Store
from router.index.types import Match

log = logging.getLogger(__name__)

TICK_S = 0.1
NO_AGENT = "no agent publishes it"


class SharedIndex:
    """`index` holds the mirror's copy, or with `direct` only what this router models itself.

    `joined` is told who is published, whenever that changes: a replica leaves when its agent is gone for good.
    `siblings`: the work of this router's other workers, which share its `router_id`: each tells the work of all.
    """

    def __init__(
        self,
        store: Store,
        pool: str,
        index: MemoryIndex,
        fleet: Fleet,
        *,
        router_id: str,
        direct: bool,
        direct_timeout_s: float,
        joined: Callable[[list[Endpoint]], None] | None,
        siblings: Callable[[str], InFlight] = lambda replica_id: NONE,
    ) -> None:
        layout = Layout(pool)
        self._store = store
        self._fleet = fleet
        self._index = index
        self._joined = joined
        self._siblings = siblings
        self._published: list[Endpoint] = []
        self._records: dict[str, ReplicaRecord] = {}
        self.registry = Registry(store, layout)
        self.mirror = None if direct else RedisMirror(store, layout, self.registry, index)
        self.direct = RedisDirectIndex(store, layout, self.registry, timeout_s=direct_timeout_s) if direct else None
        self.share = InFlightShare(store, layout, router_id, self._own_work)
        self.notes = NoteStream(store, layout, router_id)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to follow Redis; nothing waits for it to be there."""
        runs = [self.registry.run(), self.share.run(), self.notes.run(), self._follow()]
        if self.mirror is not None:
            runs.append(self.mirror.run())
        self._tasks = [asyncio.create_task(run) for run in runs]

    async def close(self) -> None:
        """Stop following, and take this router's work out of the others' sight."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(Exception):
            await self._store.close()

    async def lookup(self, chain: Sequence[int]) -> dict[str, Match]:
        """As BlockIndex.lookup, over what agents publish and what this router models and predicts."""
        if self.mirror is not None:
            return await self.mirror.lookup(chain)
        assert self.direct is not None
        found = await self._index.lookup(chain)
        for replica_id, match in (await self.direct.lookup(chain)).items():
            if match.blocks >= found.get(replica_id, match).blocks:
                found[replica_id] = match
        return found

    def feed(self, replica: Replica, block_size: int) -> tuple[Feed, str]:
        """How this replica's cache is known, and why not better."""
        record = self._records.get(replica.id)
        if record is None or not record.live or record.meta is None:
            return Feed.SHADOW, NO_AGENT
        if not record.meta.events:
            return Feed.SHADOW, "its agent finds no KV events"
        if record.load is not None and record.load.events:
            return Feed.SHADOW, record.load.events
        if record.meta.block_size != block_size:
            return Feed.SHADOW, (
                f"its agent publishes blocks of {record.meta.block_size} tokens, this router uses {block_size}: "
                "give both the same size (--block-size, models[].block_size)"
            )
        return Feed.EVENTS, ""

    @property
    def answers(self) -> bool:
        """Whether Redis tells now what agents publish."""
        reader = self.mirror or self.direct
        return self.registry.health.trouble is None and (reader is None or reader.health.trouble is None)

    @property
    def failures(self) -> int:
        """How often it did not, since the start; single lookups that took too long don't count."""
        return self.registry.health.failures + (0 if self.mirror is None else self.mirror.health.failures)

    def degraded(self) -> Iterator[str]:
        """What is wrong with the shared index, for /ready."""
        if self.registry.health.trouble is not None:
            yield f"redis: {self.registry.health.why}; routing with what was last known"
        elif self.mirror is not None:
            status = self.mirror.status()
            if status.state is not MirrorState.LIVE:
                yield f"index mirror is {status.state}: {status.reason or 'reading what agents published'}"
        elif self.direct is not None and self.direct.health.trouble is not None:
            yield f"direct lookups fail: {self.direct.health.why}"
        if self.registry.health.trouble is None:
            for replica_id, why in self.stuck():
                yield f"replica {replica_id}: its agent can't write what its cache holds: {why}"

    def stuck(self) -> list[tuple[str, str]]:
        """Replicas whose agents reach Redis but can't write to it, and why."""
        return [
            (record.replica_id, record.load.stuck)
            for record in self._records.values()
            if record.live and record.load is not None and record.load.stuck
        ]

    def _own_work(self) -> dict[str, InFlight]:
        work = {}
        for replica in self._fleet:
            own, theirs = replica.load, self._siblings(replica.id)
            work[replica.id] = InFlight(own.pending_prefill + theirs.prefill_tokens, own.running + theirs.requests)
        return work

    async def _follow(self) -> None:
        while True:
            self._records = {record.replica_id: record for record in self.registry.replicas()}
            self._tell_membership()
            for replica in self._fleet:
                others, siblings = self.share.others(replica.id), self._siblings(replica.id)
                replica.load.other_prefill = others.prefill_tokens + siblings.prefill_tokens
                replica.load.other_running = others.requests + siblings.requests
                record = self._records.get(replica.id)
                if record is not None and record.live and record.load is not None:
                    load = record.load
                    replica.reported = EngineLoad(
                        load.running, load.waiting, load.kv_use, waiting_tokens=load.waiting_tokens
                    )
                    replica.reported_at = load.sampled
            await asyncio.sleep(TICK_S)

    def _tell_membership(self) -> None:
        published = [
            Endpoint(
                record.replica_id,
                record.meta.url.rstrip("/"),
                rank=record.meta.rank if record.meta.ranks > 1 else None,
            )
            for record in self._records.values()
            if record.meta is not None
        ]
        if self._joined is not None and published != self._published:
            self._published = published
            self._joined(published)
