"""How many new sessions begin with a prefix: what tells a hot system prompt from one that is used once a day.

A copy of a shared prefix on one more replica is paid once and serves every later session there, so its price is divided
by the sessions that are expected to use it. A hot prefix spreads to as many replicas as the load needs; a rare one
stays where it is. Counts fade with a time constant of HORIZON_S.
"""

from __future__ import annotations

import math
from collections import OrderedDict

HORIZON_S = 60.0


class Popularity:
    """Fading counts of new sessions by the hash of the last block they share. Least recently used keys go first."""

    def __init__(self, max_prefixes: int = 10_000) -> None:
        self.max_prefixes = max_prefixes
        self._counts: OrderedDict[int, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def note(self, key: int, now: float) -> None:
        """A session began with this prefix."""
        count, at = self._counts.pop(key, (0.0, now))
        self._counts[key] = (count * math.exp((at - now) / HORIZON_S) + 1.0, now)
        if len(self._counts) > self.max_prefixes:
            self._counts.popitem(last=False)

    def expected(self, key: int, now: float) -> float:
        """Sessions expected to begin with it within HORIZON_S, as many as lately."""
        count, at = self._counts.get(key, (0.0, now))
        return count * math.exp((at - now) / HORIZON_S)

    def hottest(self, count: int, now: float) -> list[tuple[int, float]]:
        """(key, expected sessions), most first."""
        ranked = sorted(((self.expected(key, now), key) for key in self._counts), reverse=True)
        return [(key, expected) for expected, key in ranked[:count]]
