"""Growing pauses between tries, spread so that many routers don't come back at the same moment."""

from __future__ import annotations

import random


class Backoff:
    """Pauses of first_s, 2 first_s, 4 first_s ... up to limit_s, each times a random factor from 0.5 to 1."""

    def __init__(self, first_s: float, limit_s: float) -> None:
        self._first = first_s
        self._limit = limit_s
        self._next = first_s

    def pause(self, at_least_s: float = 0.0) -> float:
        """Seconds to wait before the next try. `at_least_s`: what the server asked for, kept to limit_s too."""
        pause = self._next * random.uniform(0.5, 1.0)
        self._next = min(self._limit, self._next * 2)
        return max(pause, min(at_least_s, self._limit) * random.uniform(1.0, 1.2))

    def reset(self) -> None:
        """Start small again: something worked."""
        self._next = self._first
