"""How many retries a router may waste. No I/O, no clock."""

from __future__ import annotations

WINDOW_S = 10


class RetryBudget:
    """Retries that failed too, within the last 10 s: at most `ratio` of the requests begun then, and `per_s` a second.

    A retry that is answered is no extra load: what its first try had cost is gone with it. So a replica that dies
    with a thousand requests has them all moved. A retry that fails is waste, and an outage of the whole fleet is
    nothing but waste: when the budget is spent, requests fail with their first error, and the fleet's load stays
    below 1 + `ratio` of what clients send (plus what was on its way when the outage began).
    """

    __slots__ = ("_begun", "_failed", "_per_window", "_ratio", "_second")

    def __init__(self, ratio: float = 0.2, per_s: float = 10.0) -> None:
        self._ratio = ratio
        self._per_window = per_s * WINDOW_S
        self._second = 0
        self._begun = [0] * WINDOW_S
        self._failed = [0] * WINDOW_S

    def began(self, now: float) -> None:
        """A request came. Times are monotonic seconds."""
        self._begun[self._turn(now)] += 1

    def failed(self, now: float) -> None:
        """A retry failed."""
        self._failed[self._turn(now)] += 1

    def spent(self, now: float) -> bool:
        """No more retries for now."""
        self._turn(now)
        failed = sum(self._failed)
        return failed > 0 and failed >= self._per_window + self._ratio * sum(self._begun)

    def _turn(self, now: float) -> int:
        second = int(now)
        if second != self._second:
            for passed in range(max(self._second + 1, second - WINDOW_S + 1), second + 1):
                self._begun[passed % WINDOW_S] = self._failed[passed % WINDOW_S] = 0
            self._second = second
        return second % WINDOW_S
