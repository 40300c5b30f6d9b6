"""A prompt's block chain, remembered well enough to tell how much of it a later prompt has in common."""

from __future__ import annotations

from collections.abc import Sequence

MAX_MARKS = 256


class ChainMarks:
    """Every n-th hash of a chain, at most 256, and its last one: 10 kB. What is in common is exact to n - 1 blocks."""

    __slots__ = ("_last", "_marks", "_step", "blocks")

    def __init__(self, chain: Sequence[int]) -> None:
        self.blocks = len(chain)
        self._step = max(1, -(-len(chain) // MAX_MARKS))
        self._marks = chain[:: self._step]
        self._last = chain[-1] if chain else 0

    def run_through(self, chain: Sequence[int]) -> bool:
        """Whether all of this prompt's full blocks begin `chain`."""
        return len(chain) >= self.blocks and (not self.blocks or chain[self.blocks - 1] == self._last)

    def common(self, chain: Sequence[int]) -> int:
        """Leading blocks in common with `chain`: not more than there are, and fewer by less than a step."""
        if self.run_through(chain):
            return self.blocks
        low, high = 0, min(len(self._marks), -(-len(chain) // self._step))
        while low < high:  # marks[:low] are in common, marks[high:] are not
            middle = (low + high) // 2
            if self._marks[middle] == chain[middle * self._step]:
                low = middle + 1
            else:
                high = middle
        return 0 if not low else (low - 1) * self._step + 1
