"""When a try that brought no answer is repeated, and where. No I/O, no clock."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum

from router.http.errors import BadResponse, ConnectFailed, ConnectionLost, PoolFull, UpstreamError, UpstreamTimeout
from router.proxy.budget import RetryBudget


class StatusFailure(UpstreamError):
    """An answer whose status says: try another replica. overload: because this one's queue is full."""

    def __init__(self, message: str, status: int, *, overload: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.overload = overload


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds of the retries of one request, all before the first byte of an answer went to the client.

    max_attempts: targets tried at most. retry_statuses: answers that another replica may better (503 is an engine's
    full queue). max_lost: retries after a connection was lost while waiting, or the engine failed (status 500, or an
    error event before the first token): the request itself may have killed it, and must not kill the fleet one by one.
    (A replica that still answers afterwards was not killed; see RetryState.acquit.)
    max_timeouts: retries after no first byte in time.
    total_s: no new try, and no waiting, beyond it.
    backoff_s: wait before the retry when the second try failed as the first did; doubled for each further one, at
    most max_backoff_s, each times a random factor from 0.5 to 1.5. The first retry goes at once: to another replica.
    """

    max_attempts: int = 5
    retry_statuses: frozenset[int] = frozenset((502, 503, 504))
    max_lost: int = 1
    max_timeouts: int = 1
    total_s: float = 600.0
    backoff_s: float = 0.05
    max_backoff_s: float = 1.0


UNSENT = frozenset(("connect", "pool_full"))
"""Kinds of failure after which nothing of the request was sent."""


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

    Every retry but those after a refused connection, which cost nobody anything, stops when `budget` is spent.
    """

    __slots__ = ("_budget", "_kinds", "_lost", "_policy", "_stale", "_timeouts", "attempts")

    def __init__(self, policy: RetryPolicy, budget: RetryBudget | None = None) -> None:
        self._policy = policy
        self._budget = budget or RetryBudget()
        self.attempts = 0  # targets tried
        self._lost = 0
        self._timeouts = 0
        self._stale = False  # the present target was already tried again
        self._kinds: list[str] = []

    def begin_target(self) -> None:
        """A new target is about to be tried."""
        self.attempts += 1
        self._stale = False

    def may_retry_status(self, status: int, now: float, overload: int = 503) -> bool:
        """An answer of this status is worth another target. If there is none, it is passed on as it is.

        overload: what this kind of engine answers when its queue is full.
        """
        if status != overload and status not in self._policy.retry_statuses:
            return False
        return not self._wasted("status", now) and self.attempts < self._policy.max_attempts

    def may_retry_failure(self, now: float) -> bool:
        """The engine failed over this request (500) before its first token: worth another target within max_lost."""
        spent = self._wasted("failure", now)
        if spent or self._lost >= self._policy.max_lost or self.attempts >= self._policy.max_attempts:
            return False
        self._lost += 1
        return True

    def may_go_on(self, now: float) -> bool:
        """Whether another target may be tried at all."""
        return self.attempts < self._policy.max_attempts and not self._budget.spent(now)

    def acquit(self, dead: int) -> Verdict:
        """Of the targets that failed under the request `dead` don't answer any more: it killed no others."""
        self._lost = dead
        allowed = dead <= self._policy.max_lost and self.attempts < self._policy.max_attempts
        return Verdict.NEXT if allowed else Verdict.STOP

    def backoff_s(self) -> float:
        """Seconds to wait before the next target is tried: none unless the last failure repeats an earlier one."""
        repeated = self._kinds.count(self._kinds[-1]) - 1 if self._kinds else 0
        if not repeated:
            return 0.0
        longest = min(self._policy.max_backoff_s, self._policy.backoff_s * 2.0 ** (repeated - 1))
        return longest * random.uniform(0.5, 1.5)

    def _wasted(self, kind: str, now: float) -> bool:
        """A try failed; True if the budget allows no retry."""
        self._kinds.append(kind)
        if self.attempts > 1:
            self._budget.failed(now)
        return self._budget.spent(now)

    def after(self, error: UpstreamError, now: float) -> Verdict:
        """The verdict on a failed try of the present target at monotonic time `now`."""
        if isinstance(error, ConnectionLost) and error.reused and error.stage == "before_head" and not self._stale:
            self._stale = True
            return Verdict.SAME_FRESH
        kind = error_kind(error)
        if kind in UNSENT and not self._stale:
            self._kinds.append(kind)
        elif self._wasted(kind, now):
            return Verdict.STOP
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
    if any(isinstance(error, StatusFailure) and (error.overload or error.status == 503) for error in errors):
        return 503, True
    if isinstance(errors[-1], PoolFull):
        return 503, True
    if isinstance(errors[-1], UpstreamTimeout):
        return 504, False
    return 502, False


def error_kind(error: UpstreamError) -> str:
    """`Attempt.error` for a failed try."""
    if isinstance(error, StatusFailure):
        return "status"
    if isinstance(error, UpstreamTimeout):
        return "connect" if error.stage == "connect" else "timeout"
    if isinstance(error, ConnectFailed):
        return "connect"
    if isinstance(error, PoolFull):
        return "pool_full"
    if isinstance(error, ConnectionLost):
        return "lost"
    assert isinstance(error, BadResponse)
    return "bad_response"
