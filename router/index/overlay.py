"""Predicted entries: blocks a replica will hold because a request was just sent there. Short-lived, never confirmed.

Two generations of block -> bitmask of slots. Entries go into the young one; every `ttl_s / 2` the old one is thrown
away and the young one takes its place, so an entry lives between ttl/2 and ttl, with no timer and no scan. A full
generation rotates early: under a flood entries live shorter, memory does not grow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

_MANY = 64
"""Entries that are better added together: in half the time if all are new."""


class PredictedOverlay:
    """Bounded by `max_entries` blocks (about 110 bytes each). `clock` in seconds, monotonic."""

    def __init__(
        self, ttl_s: float = 5.0, max_entries: int = 200_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if ttl_s <= 0 or max_entries < 2:
            raise ValueError(f"ttl_s must be above 0 and max_entries at least 2, got {ttl_s} and {max_entries}")
        self._half = ttl_s / 2
        self._bound = max_entries // 2
        self._clock = clock
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._young_slots = 0
        self._old_slots = 0
        self._born = clock()

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def add(self, slots: int, chain: Sequence[int]) -> None:
        """The replicas of mask `slots` are about to hold `chain`. Beyond a generation's bound its tail is left out."""
        self.expire()
        if len(self._young) + len(chain) > self._bound:
            self._rotate(self._clock())
        young, keys = self._young, chain[: self._bound]
        if len(keys) > _MANY and young.keys().isdisjoint(keys):
            young.update(dict.fromkeys(keys, slots))
        else:
            for key in keys:
                young[key] = young.get(key, 0) | slots
        self._young_slots |= slots

    def drop(self, slots: int, keys: Sequence[int]) -> None:
        """The replicas of mask `slots` evicted these blocks: what was predicted of them has come and gone."""
        for generation in (self._young, self._old):
            if generation:
                for key in keys:
                    mask = generation.get(key, 0)
                    if mask & slots:
                        generation[key] = mask & ~slots

    def get(self, key: int) -> int:
        """Mask of the slots predicted to hold `key`. Call `expire` first, once per lookup."""
        return self._young.get(key, 0) | self._old.get(key, 0)

    def expire(self) -> int:
        """Throw away what is too old; mask of the slots that any entry left may name (a superset)."""
        now = self._clock()
        age = now - self._born
        if age >= self._half:
            self._rotate(now)
            if age >= 2 * self._half:
                self._rotate(now)
        return self._young_slots | self._old_slots

    def _rotate(self, now: float) -> None:
        self._old, self._young = self._young, {}
        self._old_slots, self._young_slots = self._young_slots, 0
        self._born = now
