"""A router's view of who is there: polls leases, names live replicas, retires and sweeps those whose lease ran out.

Every script it calls is atomic and harmless to repeat; a lock with a TTL lets one router sweep at a time, which only
saves work.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from router.index.redis import scripts
from router.index.redis.health import STORE_ERRORS, Health, LayoutError, Trouble
from router.index.redis.layout import CHUNK, STREAM_CAP, VERSION, Layout
from router.index.redis.leases import ReplicaLoad, ReplicaMeta, decode_load, decode_meta
from router.index.redis.store import Store
from router.index.types import Tier

log = logging.getLogger(__name__)

SWEEP_ROUNDS = 8
RETIRE_GRACE_S = 2.0
"""How long a lease must have been seen missing before the replica is retired: a Redis that restarts from a dump has
lost every lease, and the agents need a moment to renew."""


class Origin(NamedTuple):
    """What the stream numbers belong to. Another one means: bootstrap again."""

    generation: str
    run_id: str


class Incarnation(NamedTuple):
    replica_id: str
    epoch: int
    slot: int


@dataclass(frozen=True, slots=True)
class ReplicaRecord:
    """One replica as its agent described it. `last_seen` is `time.monotonic()` of the last poll that found its lease;
    `live` whether that was the last poll. `load` is None when it could not be read."""

    replica_id: str
    epoch: int
    slot: int
    meta: ReplicaMeta | None
    load: ReplicaLoad | None
    live: bool
    last_seen: float


@dataclass(frozen=True, slots=True)
class Roster:
    """One answer of Redis. `number` is the last stream entry; `tiers` are those with blocks, now or once."""

    origin: Origin
    number: int
    tiers: tuple[Tier, ...]
    live: frozenset[str]
    incarnations: tuple[Incarnation, ...]
    unswept: int


@dataclass(slots=True)
class _Known:
    record: ReplicaRecord
    meta_bytes: bytes
    missing_since: float | None


class Registry:
    """Polls every `poll_s`. A replica that Redis no longer names stays in `replicas()`, not live, for `forget_s`:
    agents need a moment to come back to a Redis that restarted empty.

    `changed` is called after every successful poll with the roster.
    """

    def __init__(
        self,
        store: Store,
        layout: Layout,
        *,
        poll_s: float = 0.25,
        forget_s: float = 30.0,
        retire_grace_s: float = RETIRE_GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._layout = store, layout
        self._poll_s, self._forget_s, self._grace_s, self._clock = poll_s, forget_s, retire_grace_s, clock
        self._known: dict[str, _Known] = {}
        self._me = secrets.token_hex(8)
        self.roster: Roster | None = None
        self.polled = clock()
        self.swept = self.retired = 0
        self.health = Health(f"index registry of pool {layout.pool}", log)
        self.changed: Callable[[Roster], None] | None = None

    def replicas(self) -> list[ReplicaRecord]:
        """Everyone known from leases, live or lately gone."""
        return [known.record for known in self._known.values()]

    async def run(self) -> None:
        """Poll, retire and sweep until cancelled; the last answer stays while Redis is away."""
        while True:
            try:
                roster = await self.refresh()
                await self._retire()
                if roster.unswept:
                    await self._sweep()
            except STORE_ERRORS as error:
                if self.health.fail(error) in (Trouble.DOWN, Trouble.READONLY, Trouble.LOADING):
                    await self._store.drop_connections()
            await asyncio.sleep(self._poll_s)

    async def refresh(self) -> Roster:
        """Ask Redis now. Errors are the store's, or LayoutError for another layout version."""
        answer = await self._store.run(scripts.ROSTER, self._layout)
        if answer[0] != b"OK":
            raise LayoutError(
                f"Redis holds index layout {answer[1].decode()} for pool {self._layout.pool!r}, this build reads "
                f"layout {VERSION}; upgrade all agents and routers, or use another Redis database"
            )
        self.health.ok()
        now = self._clock()
        if now - self.polled > self._grace_s:  # Redis was away: the agents get their grace again
            for known in self._known.values():
                known.missing_since = None
        self.polled = now
        incarnations, live = [], set()
        for at in range(7, len(answer), 4):
            replica_id = answer[at].decode("utf-8", "replace")
            epoch, slot, _ = answer[at + 1].split(b" ", 2)
            incarnations.append(Incarnation(replica_id, int(epoch), int(slot)))
            if answer[at + 3]:
                live.add(replica_id)
            self._note(incarnations[-1], answer[at + 2], answer[at + 3], now)
        self._forget({each.replica_id for each in incarnations}, now)
        self.roster = Roster(
            origin=Origin(answer[1].decode(), answer[2].decode()),
            number=int(answer[3]),
            tiers=(Tier.DEVICE, *(tier for tier, used in ((Tier.HOST, answer[4]), (Tier.DISK, answer[5])) if used)),
            live=frozenset(live),
            incarnations=tuple(incarnations),
            unswept=int(answer[6]),
        )
        if self.changed is not None:
            self.changed(self.roster)
        return self.roster

    def _note(self, who: Incarnation, meta: bytes, lease: bytes, now: float) -> None:
        known = self._known.get(who.replica_id)
        old = known.record if known else None
        same_meta = known is not None and known.meta_bytes == meta
        record = ReplicaRecord(
            *who,
            meta=old.meta if old and same_meta else decode_meta(meta),
            load=decode_load(lease) if lease else (old.load if old else None),
            live=bool(lease),
            last_seen=now if lease or old is None else old.last_seen,
        )
        missing = None if lease else now
        if known and known.missing_since is not None and not lease:
            missing = known.missing_since
        self._known[who.replica_id] = _Known(record, meta, missing)

    def _forget(self, named: set[str], now: float) -> None:
        for replica_id, known in list(self._known.items()):
            record = known.record
            if replica_id in named:
                continue
            if now - record.last_seen >= self._forget_s:
                del self._known[replica_id]
            elif record.live:
                known.record = replace(record, live=False)
                known.missing_since = None

    async def _retire(self) -> None:
        assert self.roster is not None
        now, expired = self._clock(), []
        for who in self.roster.incarnations:
            since = self._known[who.replica_id].missing_since
            if since is not None and now - since >= self._grace_s:
                expired += [who.replica_id, str(who.epoch)]
        if expired:
            answer = await self._store.run(scripts.RETIRE, self._layout, STREAM_CAP, "expired", *expired)
            self.retired += int(answer[1])
            log.info("retired replicas whose lease ran out: %s", ", ".join(expired[::2]))

    async def _sweep(self) -> None:
        for _ in range(SWEEP_ROUNDS):
            answer = await self._store.run(scripts.SWEEP, self._layout, self._me, 1000, CHUNK)
            if answer[0] != b"OK":
                return
            self.swept += int(answer[1])
            if not answer[2]:
                return
