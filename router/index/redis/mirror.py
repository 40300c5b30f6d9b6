"""A router's copy of the shared index, in memory: no network on the request path.

Bootstrap reads each replica's reverse sets page by page and follows the delta stream in between, so it neither blocks
the loop nor falls behind; then the stream alone. Why that ends in the truth: a page is never older than the stream
position it is applied at, SSCAN returns what was there all along, and what came or went meanwhile is in the stream
after that position; applying it twice changes nothing.

It bootstraps again when the stream has a hole (trimmed), its numbers belong to another server or pool (restart,
failover), or they run backwards. While Redis is away the last copy stays in use.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from router.index.memory import MemoryIndex
from router.index.redis import scripts
from router.index.redis.health import STORE_ERRORS, Backoff, Health, Trouble
from router.index.redis.layout import Layout
from router.index.redis.records import (
    ASSIGN,
    DELTA,
    GONE,
    RecordError,
    head_of,
    read_assign,
    read_delta,
    unpack_hashes,
)
from router.index.redis.registry import Incarnation, Origin, Registry, Roster
from router.index.redis.store import Store
from router.index.types import Cleared, Delta, Match, Tier

log = logging.getLogger(__name__)

PAGE = 2048
"""Hashes read in one step of the bootstrap: about 1 ms of Redis and of the loop."""
ENTRIES = 100
"""Stream entries read in one step."""
TURN = 2048
"""Hashes applied before the loop gets a turn: about 0.5 ms."""
BLOCK_MS = 500
SWEEP_BUDGET = 4096


class StreamGap(Exception):
    """Entries of the stream were trimmed before they were read."""


class MirrorState(StrEnum):
    BOOTSTRAPPING = "bootstrapping"
    """Replicas become known one by one; what is known is right."""
    LIVE = "live"
    DEGRADED = "degraded"
    """Redis is away: the last copy is in use."""


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    """`since` is the Unix time at which the trouble began, or the last one ended; `number` the stream position."""

    state: MirrorState
    trouble: Trouble | None
    reason: str
    since: float
    number: int
    replicas: int
    blocks: int
    bootstraps: int
    gaps: int
    malformed: int


class RedisMirror:
    """A BlockIndex fed from Redis; `run` follows until cancelled, and `registry` is run by the owner beside it.

    `add_replica`, `apply` and so on reach the copy only: they are for replicas that no agent publishes (an engine
    without events, modelled here). `index` must not be fed by anyone else.
    """

    def __init__(self, store: Store, layout: Layout, registry: Registry, index: MemoryIndex) -> None:
        self.index = index
        self._store, self._layout, self._registry = store, layout, registry
        self._slots: dict[int, str] = {}
        self._absent: frozenset[str] = frozenset()
        self._origin: Origin | None = None
        self._number = 0
        self._fresh = False
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self.health = Health(f"index mirror of pool {layout.pool}", log)
        self.bootstraps = self.gaps = self.malformed = 0
        registry.changed = self._roster_changed

    def add_replica(self, replica_id: str) -> int:
        """Add a replica that no agent publishes."""
        return self.index.add_replica(replica_id)

    def remove_replica(self, replica_id: str) -> None:
        """Forget a replica that no agent publishes."""
        self.index.remove_replica(replica_id)

    def clear_replica(self, replica_id: str, why: Cleared = Cleared.EMPTIED) -> None:
        """Forget the blocks of a replica that no agent publishes."""
        self.index.clear_replica(replica_id, why)

    def apply(self, replica_id: str, delta: Delta) -> None:
        """Apply a delta of a replica that no agent publishes."""
        self.index.apply(replica_id, delta)

    def match(self, chain: Sequence[int]) -> dict[str, Match]:
        """As MemoryIndex.match, without the replicas whose lease has run out."""
        return self._present(self.index.match(chain))

    async def lookup(self, chain: Sequence[int]) -> dict[str, Match]:
        """`match` without holding up the loop."""
        return self._present(await self.index.lookup(chain))

    def _present(self, found: dict[str, Match]) -> dict[str, Match]:
        absent = self._absent
        if absent:
            return {replica_id: match for replica_id, match in found.items() if replica_id not in absent}
        return found

    def status(self) -> MirrorStatus:
        health = self.health
        if health.trouble is not None:
            state = MirrorState.DEGRADED
        else:
            state = MirrorState.LIVE if self._fresh else MirrorState.BOOTSTRAPPING
        return MirrorStatus(
            state=state,
            trouble=health.trouble,
            reason=health.why,
            since=health.since,
            number=self._number,
            replicas=len(self._slots),
            blocks=self.index.blocks,
            bootstraps=self.bootstraps,
            gaps=self.gaps,
            malformed=self.malformed,
        )

    async def caught_up(self) -> None:
        """Wait until everything that is in Redis now is here, and is not to be read anew. Errors are the store's."""
        roster = await self._registry.refresh()
        while not (self._fresh and roster.origin == self._origin and self._number >= roster.number):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((roster.number, future))
            await future
            roster = await self._registry.refresh() if roster.origin != self._origin else roster

    async def run(self) -> None:
        """Follow Redis until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sweep(), name="mirror sweep")
            await self._follow()

    async def _follow(self) -> None:
        backoff = Backoff()
        while True:
            try:
                roster = await self._registry.refresh()
                if roster.origin != self._origin or roster.number < self._number:
                    await self._bootstrap(roster)
                self.health.ok()
                backoff.reset()
                await self._tail()
            except StreamGap as gap:
                log.warning("%s: %s", self.health.name, gap)
                await backoff.wait()
            except STORE_ERRORS as error:
                if self.health.fail(error) in (Trouble.DOWN, Trouble.READONLY, Trouble.LOADING):
                    await self._store.drop_connections()
                await backoff.wait()

    async def _bootstrap(self, roster: Roster) -> None:
        """Load every replica again, one after the other; those not loaded yet keep what was known of them."""
        self._origin, self._fresh = None, False
        self.bootstraps += 1
        started = time.monotonic()
        for replica_id in set(self._slots.values()) - {each.replica_id for each in roster.incarnations}:
            self.index.remove_replica(replica_id)
        self._slots = {each.slot: each.replica_id for each in roster.incarnations}
        self._number = roster.number
        for who in roster.incarnations:
            self.index.add_replica(who.replica_id)
            if self._slots.get(who.slot) == who.replica_id:
                self.index.clear_replica(who.replica_id)
                for tier in roster.tiers:
                    await self._load(who, tier)
        while await self._read_on(0) == ENTRIES:
            pass
        self._origin, self._fresh = roster.origin, True
        self._tell_waiting()
        log.info(
            "%s: %d blocks of %d replicas loaded in %.2f s",
            self.health.name,
            self.index.blocks,
            len(self._slots),
            time.monotonic() - started,
        )

    async def _load(self, who: Incarnation, tier: Tier) -> None:
        reverse, cursor = self._layout.reverse(tier, who.slot), b"0"
        while True:
            _, cursor, packed = await self._store.run(scripts.SCAN, self._layout, reverse, cursor, PAGE)
            if self._slots.get(who.slot) != who.replica_id:
                return  # cleared, or gone: the stream has said what it has now
            for at in range(0, len(packed), 8 * TURN):
                self.index.apply(who.replica_id, Delta(stored={tier: unpack_hashes(packed[at : at + 8 * TURN])}))
                await asyncio.sleep(0)
            if cursor == b"0":
                return
            await self._read_on(0)

    async def _tail(self) -> None:
        """Follow the stream; returns when it turns out to be another one."""
        while True:
            await self._read_on(BLOCK_MS)
            self.health.ok()
            roster = self._registry.roster
            if self._origin is not None and not self._origin.generation:
                roster = await self._registry.refresh()  # the pool's first record makes it another origin: don't wait
            if roster is not None and roster.origin != self._origin:
                return

    async def _read_on(self, block_ms: int) -> int:
        entries = await self._store.read_stream(self._layout.stream, self._number, count=ENTRIES, block_ms=block_ms)
        done = 0
        for number, record in entries:
            if number != self._number + 1:
                self.gaps += 1
                self._origin, self._fresh = None, False
                raise StreamGap(f"stream entries {self._number + 1}..{number - 1} are gone: bootstrapping again")
            self._apply(record)
            self._number = number
            done += len(record)
            if done > 8 * TURN:
                done = 0
                await asyncio.sleep(0)
        if entries:
            self._tell_waiting()
        return len(entries)

    def _apply(self, record: bytes) -> None:
        try:
            kind, slot = head_of(record)
            replica_id = self._slots.get(slot)
            if kind == DELTA and replica_id is not None:
                self.index.apply(replica_id, read_delta(record))
            elif kind == ASSIGN:
                self._assign(slot, *read_assign(record))
            elif kind == GONE and replica_id is not None:
                del self._slots[slot]
                self.index.remove_replica(replica_id)
        except RecordError as error:
            self.malformed += 1
            log.debug("%s: %s", self.health.name, error)

    def _assign(self, slot: int, replica_id: str, why: Cleared) -> None:
        self._slots = {old: owner for old, owner in self._slots.items() if owner != replica_id}
        self._slots[slot] = replica_id
        self.index.add_replica(replica_id)
        self.index.clear_replica(replica_id, why)

    def _roster_changed(self, roster: Roster) -> None:
        self._absent = frozenset(each.replica_id for each in roster.incarnations) - roster.live

    def _tell_waiting(self) -> None:
        if not self._fresh:
            return
        for number, future in self._waiting:
            if number <= self._number and not future.done():
                future.set_result(None)
        self._waiting = [(number, future) for number, future in self._waiting if not future.done()]

    async def _sweep(self) -> None:
        while True:
            more = self.index.sweep(SWEEP_BUDGET)
            await asyncio.sleep(0.002 if more else 0.1)
