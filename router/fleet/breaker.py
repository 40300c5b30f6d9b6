"""One replica's circuit breaker: what its answers say about it. No I/O, no clock."""

from __future__ import annotations

from enum import StrEnum

WINDOW_S = 10


class Circuit(StrEnum):
    """Whether requests pass."""

    CLOSED = "closed"
    OPEN = "open"
    """None do, for a while."""
    HALF_OPEN = "half_open"
    """One at a time does, to see whether the replica is well again."""


class Breaker:
    """Counts the outcomes of the last 10 s; `admits` says whether a request may go there now.

    It opens when it is told to (the fleet decides, so that never too many are open), each time for twice as long as
    the last time, and forgets that when the replica was well for as long as it was out. Times are monotonic seconds.
    """

    __slots__ = ("_failed", "_ok", "_second", "_times", "_until", "admits", "circuit", "closed_at", "consecutive")

    def __init__(self) -> None:
        self.circuit = Circuit.CLOSED
        self.admits = True
        self.consecutive = 0
        """Failures since the last success."""
        self.closed_at = 0.0
        self._times = 0  # how often it opened
        self._until = 0.0
        self._second = 0
        self._ok = [0] * WINDOW_S
        self._failed = [0] * WINDOW_S

    def succeeded(self, now: float) -> None:
        """A request was answered."""
        self.consecutive = 0
        self._ok[self._turn(now)] += 1

    def failed(self, now: float) -> None:
        """A request failed, by the replica's fault."""
        self.consecutive += 1
        self._failed[self._turn(now)] += 1

    def counts(self, now: float) -> tuple[int, int]:
        """(answered, failed) in the last 10 s."""
        self._turn(now)
        return sum(self._ok), sum(self._failed)

    def open(self, now: float, base_s: float, max_s: float) -> float:
        """Let nothing pass; returns for how many seconds."""
        last = self._length(base_s, max_s)
        if self.circuit is Circuit.CLOSED and now - self.closed_at > last:
            self._times = 0
        self._times += 1
        length = self._length(base_s, max_s)
        self.circuit, self.admits, self._until = Circuit.OPEN, False, now + length
        return length

    def _length(self, base_s: float, max_s: float) -> float:
        return float(min(max_s, base_s * 2.0 ** min(max(0, self._times - 1), 30)))

    def due(self, now: float) -> bool:
        """It has been open for long enough."""
        return self.circuit is Circuit.OPEN and now >= self._until

    def half_open(self, now: float) -> None:
        """Let one request pass."""
        self.circuit, self.admits, self._until = Circuit.HALF_OPEN, True, now

    def waiting_for_trial_s(self, now: float) -> float:
        """How long it has been half open without a request."""
        return now - self._until if self.circuit is Circuit.HALF_OPEN and self.admits else 0.0

    def trial(self, running: bool) -> None:
        """The one request is on its way, or ended without saying anything about the replica."""
        if self.circuit is Circuit.HALF_OPEN:
            self.admits = not running

    def close(self, now: float) -> None:
        """Everything passes, and the past outcomes are forgotten."""
        self.circuit, self.admits, self.closed_at = Circuit.CLOSED, True, now
        self.consecutive = 0
        self._ok = [0] * WINDOW_S
        self._failed = [0] * WINDOW_S

    def _turn(self, now: float) -> int:
        second = int(now)
        if second != self._second:
            for passed in range(max(self._second + 1, second - WINDOW_S + 1), second + 1):
                self._ok[passed % WINDOW_S] = self._failed[passed % WINDOW_S] = 0
            self._second = second
        return second % WINDOW_S
