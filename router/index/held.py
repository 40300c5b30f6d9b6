"""Which own keys are held in one tier, and how that changed since it was last asked."""

from __future__ import annotations

from collections.abc import Iterable


class HeldKeys:
    """A multiset of own keys (several engine blocks may have one key) that reports its net change as a set.

    About 40 bytes a key; the copies' counts are stored only for keys held more than once.
    """

    __slots__ = ("_dropped", "_stored", "_surplus", "live")

    def __init__(self) -> None:
        self.live: set[int] = set()
        self._surplus: dict[int, int] = {}
        self._stored: dict[int, None] = {}
        self._dropped: dict[int, None] = {}

    def add(self, key: int) -> None:
        """One more holder of `key`."""
        if key in self.live:
            self._surplus[key] = self._surplus.get(key, 0) + 1
            return
        self.live.add(key)
        if key in self._dropped:
            del self._dropped[key]
        else:
            self._stored[key] = None

    def add_all(self, keys: list[int]) -> None:
        """`add` of many; the common case, where none is held yet, at the cost of set operations."""
        fresh = set(keys)
        if len(fresh) == len(keys) and fresh.isdisjoint(self.live) and not self._dropped:
            self.live |= fresh
            self._stored.update(dict.fromkeys(keys))
        else:
            for key in keys:
                self.add(key)

    def discard(self, key: int) -> None:
        """One holder of `key` less; a key that is not held is left alone."""
        surplus = self._surplus.get(key)
        if surplus is not None:
            if surplus > 1:
                self._surplus[key] = surplus - 1
            else:
                del self._surplus[key]
        elif key in self.live:
            self.live.remove(key)
            if key in self._stored:
                del self._stored[key]
            else:
                self._dropped[key] = None

    def discard_all(self, keys: Iterable[int]) -> None:
        """`discard` of many."""
        for key in keys:
            self.discard(key)

    def take(self) -> tuple[list[int], list[int]]:
        """(stored, dropped) since the last call, disjoint."""
        stored, dropped = list(self._stored), list(self._dropped)
        self._stored.clear()
        self._dropped.clear()
        return stored, dropped

    def clear(self) -> None:
        """Hold nothing, with no change to report."""
        self.live, self._surplus = set(), {}
        self._stored.clear()
        self._dropped.clear()
