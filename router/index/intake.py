"""One rank's event payloads -> its ledger -> where the truth is published. No I/O.

What cannot be read is counted and skipped. Where it may have hidden a removal, everything known is dropped: only an
empty ledger is certainly not stale, and what the engine stores from then on is known again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from router.index.ledger import CacheLedger
from router.index.types import BlockSink, Cleared
from router.index.wire import UnsupportedEvents, WireError, decode_batch

log = logging.getLogger(__name__)

State = Literal["connecting", "replaying", "live", "unsupported"]


@dataclass(slots=True)
class FeedStatus:
    """How one rank's events are doing. Counters never go back."""

    state: State = "connecting"
    reason: str = ""
    """Why it is unsupported, or why the last clear happened."""
    last_seq: int = -1
    """The last batch applied; -1: none since the last clear."""
    gaps: int = 0
    replays: int = 0
    replay_timeouts: int = 0
    clears: int = 0
    batches: int = 0
    malformed: int = 0
    unknown: int = 0
    lag_s: float = 0.0
    """Engine's time stamp to applied here, for the last live batch; wrong by the difference of the clocks."""
    last_event_at: float | None = None
    """time.monotonic() of the last batch applied."""

    @property
    def last_event_age(self) -> float | None:
        """Seconds since the last batch was applied; None before the first. An idle engine sends nothing."""
        return None if self.last_event_at is None else time.monotonic() - self.last_event_at


class Intake:
    """`changed` is called after a clear and after events turned out to be unsupported."""

    def __init__(
        self,
        replica_id: str,
        ledger: CacheLedger,
        sink: BlockSink,
        status: FeedStatus,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.replica_id = replica_id
        self.ledger = ledger
        self.status = status
        self._sink = sink
        self._changed = changed

    def apply(self, payload: bytes, *, live: bool = True) -> None:
        """The next batch, in order. `live`: it was published just now, so its time stamp tells the lag.

        Once events turned out to be unsupported nothing is applied any more before a `clear` (the engine restarted).
        """
        status = self.status
        if status.state == "unsupported":
            return
        try:
            batch = decode_batch(payload)
            delta = self.ledger.apply(batch)
        except UnsupportedEvents as error:
            status.malformed += 1
            self._unsupported(str(error))
            return
        except Exception as error:
            status.malformed += 1
            if not isinstance(error, WireError):
                log.exception("replica %s: an event batch could not be applied", self.replica_id)
            self.clear(Cleared.LOST, f"a batch could not be decoded or applied: {type(error).__name__}: {error}")
            return
        status.batches += 1
        status.malformed += batch.malformed
        status.unknown += batch.unknown
        status.last_event_at = time.monotonic()
        if live:
            status.lag_s = time.time() - batch.ts
        else:  # its age by the engine's clock, which the last live batch compared with ours
            delta.age_s = max(0.0, time.time() - batch.ts - status.lag_s)
        if batch.lost_removals:
            self.clear(Cleared.LOST, "an event that may have been a removal could not be read")
            return
        if self.ledger.refused is not None:
            self._unsupported(self.ledger.refused)
        elif delta:
            self._sink.apply(self.replica_id, delta)

    def clear(self, why: Cleared, reason: str) -> None:
        """Drop everything known of this rank."""
        self.status.clears += 1
        self.status.reason = reason
        self._sink.apply(self.replica_id, self.ledger.clear(why))
        if self.status.state == "unsupported":
            self.status.state = "connecting"
        log.info("replica %s: blocks cleared: %s", self.replica_id, reason)
        self._changed()

    def _unsupported(self, reason: str) -> None:
        self._sink.apply(self.replica_id, self.ledger.clear(Cleared.LOST))
        self.status.state, self.status.reason = "unsupported", reason
        log.warning("replica %s: its KV events cannot be indexed: %s", self.replica_id, reason)
        self._changed()
