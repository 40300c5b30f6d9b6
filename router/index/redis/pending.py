"""Deltas that wait for Redis, merged to their net effect: what a key did last is all that counts."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from router.index.types import Cleared, Delta, Tier


class Pending:
    """Bounded by its owner through `size`: a key counts once however often it came and went. All is as old as the
    oldest of it."""

    __slots__ = ("cleared", "dropped", "since", "size", "stored")

    def __init__(self) -> None:
        self.cleared = Cleared.NO
        self.stored: dict[Tier, dict[int, None]] = {}
        self.dropped: dict[Tier, dict[int, None]] = {}
        self.size = 0
        self.since = math.inf
        """time.monotonic() at which the oldest of it happened."""

    def add(self, delta: Delta) -> None:
        self.since = min(self.since, time.monotonic() - delta.age_s)
        if delta.cleared:
            self.stored, self.dropped, self.size = {}, {}, 0
            self.cleared = delta.cleared
        for tier, keys in delta.dropped.items():
            self._move(self.dropped.setdefault(tier, {}), self.stored.get(tier), keys)
        for tier, keys in delta.stored.items():
            self._move(self.stored.setdefault(tier, {}), self.dropped.get(tier), keys)

    def _move(self, into: dict[int, None], out: dict[int, None] | None, keys: Iterable[int]) -> None:
        fresh = dict.fromkeys(keys)
        if out:
            gone = out.keys() & fresh.keys()
            for key in gone:
                del out[key]
            self.size -= len(gone)
        before = len(into)
        into |= fresh
        self.size += len(into) - before

    def take(self) -> Delta:
        """Everything, as one delta; what is left is empty."""
        delta = Delta(
            self.cleared,
            {tier: list(keys) for tier, keys in self.stored.items() if keys},
            {tier: list(keys) for tier, keys in self.dropped.items() if keys},
            max(0.0, time.monotonic() - self.since),
        )
        self.stored, self.dropped, self.size, self.cleared = {}, {}, 0, Cleared.NO
        self.since = math.inf
        return delta
