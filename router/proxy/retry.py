"""When a try that brought no answer is repeated, and where. No I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from router.http.errors import BadResponse, ConnectFailed, ConnectionLost, UpstreamError, UpstreamTimeout


class StatusFailure(UpstreamError):
    """An answer whose status says: try another replica."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds of the retries of one request, all before the first byte of an answer went to the client.

    max_attempts: targets tried at most. retry_statuses: answers that another replica may better (503 is an engine's
    full queue). max_lost: retries after a connection was lost while waiting, or the engine failed (status 500, or an
    error event before the first token): the request itself may have killed it, and must not kill the fleet one by one.
    max_timeouts: retries after no first byte in time.
    total_s: no new try, and no waiting, beyond it.
    """

    max_attempts: int = 3
    retry_statuses: frozenset[int] = frozenset((502, 503, 504))
    max_lost: int = 1
    max_timeouts: int = 1
    total_s: float = 600.0


class Verdict(Enum):
    """What to do after a failed try."""

    SAME_FRESH = "same target, fresh connection"
    NEXT = "next target"
    STOP = "give up"


class RetryState:
    """The failures of one request so far.

    A pooled connection that is lost before any byte of the answer was most likely closed by the engine as idle: the
    same target is tried again at once, on a fresh connection, and the loss does not count. When that fresh connection
    cannot be made, the engine may have died of this very request: then it does count as lost while waiting.
    """

    __slots__ = ("_lost", "_policy", "_stale", "_timeouts", "attempts")

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self.attempts = 0  # targets tried
        self._lost = 0
        self._timeouts = 0
        self._stale = False  # the present target was already tried again

    def begin_target(self) -> None:
        """A new target is about to be tried."""
        self.attempts += 1
        self._stale = False

    def may_retry_status(self, status: int) -> bool:
        """An answer of this status is worth another target. If there is none, it is passed on as it is."""
        return status in self._policy.retry_statuses and self.attempts < self._policy.max_attempts

    def may_retry_failure(self) -> bool:
        """The engine failed over this request (500) before its first token: worth another target within max_lost."""
        if self._lost >= self._policy.max_lost or self.attempts >= self._policy.max_attempts:
            return False
        self._lost += 1
        return True

    def after(self, error: UpstreamError) -> Verdict:
        """The verdict on a failed try of the present target."""
        if isinstance(error, ConnectionLost) and error.reused and error.stage == "before_head" and not self._stale:
            self._stale = True
            return Verdict.SAME_FRESH
        if isinstance(error, UpstreamTimeout) and error.stage != "connect":
            self._timeouts += 1
            if self._timeouts > self._policy.max_timeouts:
                return Verdict.STOP
        elif isinstance(error, ConnectionLost | BadResponse) or (isinstance(error, ConnectFailed) and self._stale):
            self._lost += 1
            if self._lost > self._policy.max_lost:
                return Verdict.STOP
        return Verdict.NEXT if self.attempts < self._policy.max_attempts else Verdict.STOP


def final_answer(errors: list[UpstreamError]) -> tuple[int, bool]:
    """Status for the client when no try brought an answer, and whether Retry-After belongs with it.

    No error at all means that there was no replica to try.
    """
    if not errors:
        return 503, True
    if any(isinstance(error, StatusFailure) and error.status == 503 for error in errors):
        return 503, True
    if isinstance(errors[-1], UpstreamTimeout):
        return 504, False
    return 502, False
