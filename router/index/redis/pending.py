"""Deltas that wait for Redis, merged to their net effect: what a key did last is all that counts."""

from __future__ import annotations

from collections.abc import Iterable

from router.index.types import Delta, Tier


class Pending:
    """Bounded by its owner through `size`: a key counts once however often it came and went."""

    __slots__ = ("cleared", "dropped", "size", "stored")

    def __init__(self) -> None:
        self.cleared = False
        self.stored: dict[Tier, dict[int, None]] = {}
        self.dropped: dict[Tier, dict[int, None]] = {}
        self.size = 0

    def add(self, delta: Delta) -> None:
        if delta.cleared:
            self.stored, self.dropped, self.size = {}, {}, 0
            self.cleared = True
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
        )
        self.stored, self.dropped, self.size, self.cleared = {}, {}, 0, False
        return delta
