"""How many new sessions begin with a prefix: what tells a hot system prompt from one that is used once a day.

A copy of a shared prefix on one more replica is paid once and serves every later session there, so its price is divided
by the sessions that are expected to use it. A hot prefix spreads to as many replicas as the load needs; a rare one
stays where it is. Counts fade with a time constant of HORIZON_S, and stand for the time that a prefix is known: ten in
the first ten seconds are sixty a minute. What took a whole minute to count would not spread before the crowd has
passed. The token ids of prefixes seen more than once are kept (within MAX_BYTES), so that a replica that joins can be
warmed with the hottest of them.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

HORIZON_S = 60.0
APART_S = 0.02
"""Seconds. Sessions that begin closer together count for less: four that one agent starts at once are no rate."""
SHORTEST = 0.07
"""The least share of the horizon that a count stands for: two requests in the same second are no rate."""
MAX_BYTES = 16 << 20


@dataclass(slots=True, frozen=True)
class HotPrefix:
    """A shared prefix: packed token ids, and what else stands in front of its blocks."""

    model: str
    salt: str
    ids: bytes


class Popularity:
    """Fading counts of new sessions by the hash of the last block they share. Least recently used keys go first."""

    def __init__(self, max_prefixes: int = 10_000, max_bytes: int = MAX_BYTES) -> None:
        self.max_prefixes = max_prefixes
        self._max_bytes = max_bytes
        self._counts: OrderedDict[int, tuple[float, float, float]] = OrderedDict()
        """Key -> (count, as of when, first noted)."""
        self._prefixes: OrderedDict[int, HotPrefix] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._counts)

    def note(self, key: int, now: float, prefix: HotPrefix | None = None) -> None:
        """A session began with this prefix; `prefix` where its ids are known."""
        known = key in self._counts
        count, at, since = self._counts.pop(key, (0.0, now, now))
        self._counts[key] = (_one_more(count, at, now), now, since)
        if known and prefix is not None:
            self._keep(key, prefix)
        if len(self._counts) > self.max_prefixes:
            self._drop(self._counts.popitem(last=False)[0])

    def expected(self, key: int, now: float) -> float:
        """Sessions expected to begin with it within HORIZON_S, at the rate of lately, one that begins now included."""
        count, at, since = self._counts.get(key, (0.0, now, now))
        return _one_more(count, at, now) / _known(since, now)

    def hottest(self, count: int, now: float) -> list[tuple[HotPrefix, float]]:
        """(prefix, expected sessions) of those whose ids are kept, most first."""
        expected = []
        for key in self._prefixes:
            noted, at, since = self._counts[key]
            expected.append((noted * math.exp((at - now) / HORIZON_S) / _known(since, now), key))
        return [(self._prefixes[key], rate) for rate, key in sorted(expected, reverse=True)[:count]]

    def _keep(self, key: int, prefix: HotPrefix) -> None:
        self._drop(key)
        self._prefixes[key] = prefix
        self._bytes += len(prefix.ids)
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._prefixes)))

    def _drop(self, key: int) -> None:
        prefix = self._prefixes.pop(key, None)
        if prefix is not None:
            self._bytes -= len(prefix.ids)


def _one_more(count: float, at: float, now: float) -> float:
    """A count as of `at`, with one more at `now`: less than one where that is the same moment."""
    return count * math.exp((at - now) / HORIZON_S) + min(1.0, (now - at) / APART_S)


def _known(since: float, now: float) -> float:
    """The share of the horizon that a count since then stands for."""
    return max(1.0 - math.exp((since - now) / HORIZON_S), SHORTEST)
