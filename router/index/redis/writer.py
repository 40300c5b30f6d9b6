"""An agent's side of the shared index: publishes the truth about one replica's cache, and its lease with its load.

Deltas are merged while Redis is busy or away and written in chunks of a script call each. Whenever it is not certain
that Redis holds all of it (first contact, Redis restarted empty or lost writes in a failover, too many deltas waited),
the writer claims a fresh slot, empty from that moment on, and publishes a full snapshot.

Every write carries (epoch, sequence number of the slot): repeated after a lost answer it does nothing, out of step it
is refused, and a writer whose replica was claimed by a newer one stops: state SUPERSEDED.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from router.index.redis import scripts
from router.index.redis.health import STORE_ERRORS, Backoff, Health, LayoutError, Trouble
from router.index.redis.layout import CHUNK, MAX_SLOTS, QUARANTINE_MS, STREAM_CAP, VERSION, Layout
from router.index.redis.leases import ReplicaLoad, ReplicaMeta, encode
from router.index.redis.pending import Pending
from router.index.redis.records import delta_records, read_delta
from router.index.redis.store import Store
from router.index.types import Cleared, Delta

log = logging.getLogger(__name__)

SWEEP_ROUNDS = 8
"""Sweep calls at most per renewal, so that sweeping takes at most some 10 ms of the server at a time."""


class WriterState(StrEnum):
    CONNECTING = "connecting"
    """No slot yet: Redis was not reached, or has to be filled again."""
    LIVE = "live"
    DEGRADED = "degraded"
    """The last write or renewal failed; deltas wait and merge."""
    SUPERSEDED = "superseded"
    """A newer agent has claimed the replica; nothing is written any more."""


class Superseded(Exception):
    """A newer incarnation owns the replica."""


@dataclass(frozen=True, slots=True)
class WriterStatus:
    state: WriterState
    trouble: Trouble | None
    reason: str
    pending: int
    epoch: int | None
    slot: int | None
    snapshots: int
    chunks: int
    failures: int


class RedisWriter:
    """A BlockSink for one replica. `apply` and `report` only note; `run` does the I/O on one event loop.

    `snapshot()` returns everything live now; it is called on the loop, without waiting in between, right after the
    claim, so that no delta falls between the snapshot and what follows. Memory is bounded by `max_pending` hashes plus
    one snapshot.

    Example:
        writer = RedisWriter(store, Layout("llama"), "replica-1", ReplicaMeta(url), ledger.snapshot)
        task = asyncio.create_task(writer.run())
        writer.apply("replica-1", ledger.apply(batch))
    """

    def __init__(
        self,
        store: Store,
        layout: Layout,
        replica_id: str,
        meta: ReplicaMeta,
        snapshot: Callable[[], Delta],
        *,
        lease_s: float = 3.0,
        renew_s: float = 0.25,
        max_pending: int = 200_000,
        chunk: int = CHUNK,
        stream_cap: int = STREAM_CAP,
        quarantine_ms: int = QUARANTINE_MS,
        linger_s: float = 0.002,
    ) -> None:
        if not 1 <= chunk <= 1024:
            raise ValueError(f"chunk must be in 1..1024 keys, got {chunk}")
        if lease_s < 2 * renew_s:
            raise ValueError(f"lease_s must be at least twice renew_s ({renew_s}), got {lease_s}")
        self.replica_id = replica_id
        self._store, self._layout, self._meta, self._snapshot = store, layout, meta, snapshot
        self._lease_ms, self._renew_s, self._linger_s = int(lease_s * 1000), renew_s, linger_s
        self._max_pending, self._chunk = max_pending, chunk
        self._stream_cap, self._quarantine_ms = stream_cap, quarantine_ms
        self._load = ReplicaLoad()
        self._pending = Pending()
        self._work: Iterator[bytes] = iter(())
        self._sending: bytes | None = None
        self._epoch: int | None = None
        self._slot: int | None = None
        self._sequence = 0
        self._refill = True
        self._why = Cleared.RESTARTED  # where another agent was before, its engine is most likely gone with it
        self._superseded = False
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._claimed = asyncio.Event()
        self._nonce = secrets.token_hex(8)
        self._snapshots = self._chunks = 0
        self._writing = Health(f"index writer of {replica_id}", log)
        self._leasing = Health(f"lease of {replica_id}", log)

    def apply(self, replica_id: str, delta: Delta) -> None:
        """Note a delta (BlockSink). ValueError for another replica's."""
        if replica_id != self.replica_id:
            raise ValueError(f"this writer publishes {self.replica_id!r}, not {replica_id!r}")
        if delta.cleared:
            self._why = delta.cleared
        if self._superseded or self._refill:  # a snapshot will say all of it
            return
        self._pending.add(delta)
        if self._pending.size > self._max_pending:
            log.warning(
                "%s: more than %d changed blocks wait for Redis; a full snapshot will follow",
                self._writing.name,
                self._max_pending,
            )
            self._refill_all()
        self._idle.clear()
        self._wake.set()

    def report(self, load: ReplicaLoad) -> None:
        """The load that goes out with the next renewal of the lease."""
        self._load = load

    def republish(self) -> None:
        """Publish a full snapshot as soon as possible."""
        self._refill_all()

    async def flush(self) -> None:
        """Wait until everything noted so far is in Redis. Raises Superseded."""
        if self._superseded:
            raise Superseded(self.replica_id)
        await self._idle.wait()
        if self._superseded:
            raise Superseded(self.replica_id)

    @property
    def stuck(self) -> str:
        """Why changes wait although leases are renewed, as in a full Redis; empty when they don't."""
        return "" if self._leasing.trouble else self._writing.why

    def status(self) -> WriterStatus:
        worst = self._writing if self._writing.trouble else self._leasing
        if self._superseded:
            state = WriterState.SUPERSEDED
        elif worst.trouble and self._slot is not None:
            state = WriterState.DEGRADED
        elif self._slot is None:
            state = WriterState.CONNECTING
        else:
            state = WriterState.LIVE
        return WriterStatus(
            state=state,
            trouble=worst.trouble,
            reason="a newer agent has claimed this replica" if self._superseded else worst.why,
            pending=self._pending.size,
            epoch=self._epoch,
            slot=self._slot,
            snapshots=self._snapshots,
            chunks=self._chunks,
            failures=self._writing.failures + self._leasing.failures,
        )

    async def run(self) -> None:
        """Publish until cancelled, or until superseded: then it returns."""
        try:
            async with asyncio.TaskGroup() as tasks:
                renewal = tasks.create_task(self._keep_lease(), name=f"lease of {self.replica_id}")
                try:
                    await self._keep_writing()
                except Superseded:
                    log.error(
                        "%s: a newer agent has claimed this replica; this one stops writing (two agents with one id?)",
                        self._writing.name,
                    )
                finally:
                    renewal.cancel()
        finally:
            self._idle.set()

    async def release(self) -> None:
        """Leave in good order after `run` has ended: lookups forget the replica at once. Errors are the store's."""
        if self._epoch is not None and not self._superseded:
            await self._run(scripts.RETIRE, self._stream_cap, "now", self.replica_id, self._epoch)
            self._slot = None

    async def _keep_writing(self) -> None:
        backoff = Backoff()
        while True:
            if self._superseded:
                raise Superseded(self.replica_id)
            try:
                await self._write_all()
                self._writing.ok()
                backoff.reset()
            except STORE_ERRORS as error:
                if await self._failed(self._writing, error) is Trouble.FULL and self._pending.dropped:
                    self._requeue()
                await backoff.wait()
                continue
            if not self._wake.is_set():
                self._idle.set()
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(self._linger_s)

    async def _write_all(self) -> None:
        while not self._superseded:
            if self._refill or self._slot is None or self._pending.cleared:
                await self._claim()
            if self._sending is None:
                self._sending = next(self._work, None)
            if self._sending is None:
                if not self._pending.size:
                    return
                slot = self._slot
                if slot is None:
                    continue
                self._work = delta_records(self._pending.take(), slot, self._chunk)
                continue
            await self._send(self._sending)

    async def _claim(self) -> None:
        """Take a fresh, empty slot; with `_refill`, put a snapshot in line for it."""
        answer = await self._run(
            scripts.CLAIM,
            self._layout.pool,
            secrets.token_hex(8),
            self.replica_id,
            "" if self._epoch is None else self._epoch,
            self._nonce,
            encode(self._meta),
            self._lease_ms,
            encode(self._load),
            self._stream_cap,
            self._quarantine_ms,
            int(self._why or Cleared.EMPTIED),
        )
        if answer[0] == b"NOSLOT":
            await self._sweep()
            raise LayoutError(f"all {MAX_SLOTS} replica slots of pool {self._layout.pool!r} are taken or unswept")
        self._epoch, self._slot, self._sequence = int(answer[1]), int(answer[2]), 0
        self._sending, self._work = None, iter(())
        if self._refill:
            self._refill = False
            self._pending = Pending()
            self._pending.add(self._snapshot())
            self._snapshots += 1
        self._pending.cleared = self._why = Cleared.NO
        self._claimed.set()

    async def _send(self, record: bytes) -> None:
        assert self._epoch is not None
        slot, sequence = self._slot, self._sequence + 1
        answer = await self._run(scripts.APPLY, self.replica_id, self._epoch, sequence, self._stream_cap, record)
        if slot != self._slot:  # the renewal found the slot lost while this was on its way
            return
        if answer[0] in (b"OK", b"DUP"):
            self._sequence, self._sending = sequence, None
            self._chunks += 1
        else:
            log.warning(
                "%s: Redis has lost this replica's blocks (%s); publishing all again",
                self._writing.name,
                answer[0].decode(),
            )
            self._lost()

    async def _keep_lease(self) -> None:
        await self._claimed.wait()
        while not self._superseded:
            try:
                await self._renew()
                self._leasing.ok()
            except STORE_ERRORS as error:
                await self._failed(self._leasing, error)
            except Superseded:
                return
            await asyncio.sleep(self._renew_s)

    async def _renew(self) -> None:
        slot, sequence = self._slot, self._sequence
        if self._epoch is None or slot is None:
            return
        answer = await self._run(scripts.RENEW, self.replica_id, self._epoch, self._lease_ms, encode(self._load))
        if slot != self._slot:
            return
        if answer[0] != b"OK" or (int(answer[3]) == slot and int(answer[1]) < sequence):
            log.warning("%s: Redis no longer knows this replica's blocks; publishing all again", self._leasing.name)
            self._lost()
        elif answer[2]:
            await self._sweep()

    async def _sweep(self) -> None:
        for _ in range(SWEEP_ROUNDS):
            answer = await self._run(scripts.SWEEP, self._nonce, 1000, self._chunk)
            if answer[0] != b"OK" or not answer[2]:
                return

    async def _run(self, script: scripts.Script, *args: bytes | str | int) -> list[bytes]:
        """Run a script; the answers that end or stop this writer become exceptions."""
        answer = await self._store.run(script, self._layout, *args)
        if answer[0] == b"FENCED":
            self._superseded = True
            self._wake.set()
            self._idle.set()
            raise Superseded(self.replica_id)
        if answer[0] == b"VERSION":
            raise LayoutError(
                f"Redis holds index layout {answer[1].decode()} for pool {self._layout.pool!r}, this build writes "
                f"layout {VERSION}; upgrade all agents and routers, or use another Redis database"
            )
        return answer

    async def _failed(self, health: Health, error: BaseException) -> Trouble:
        trouble = health.fail(error)
        if trouble in (Trouble.READONLY, Trouble.LOADING, Trouble.DOWN):
            await self._store.drop_connections()
        return trouble

    def _requeue(self) -> None:
        """Put unsent records back among what waits: in a full Redis the drops must go first to make room."""
        merged = Pending()
        for record in self._work if self._sending is None else (self._sending, *self._work):
            merged.add(read_delta(record))
        merged.add(self._pending.take())
        self._pending, self._sending, self._work = merged, None, iter(())

    def _refill_all(self) -> None:
        self._refill = True
        self._pending = Pending()
        self._sending, self._work = None, iter(())
        self._idle.clear()
        self._wake.set()

    def _lost(self) -> None:
        self._slot = None
        self._refill_all()
