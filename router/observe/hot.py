"""Which prefixes requests share most: counts at a few depths of each chain, fading.

A chain is counted at 4, 8, 16, ... blocks and at its end, at most 16 places, so a prefix is known to a factor of two of
its length. Two chains that share a prefix share every place before their fork.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

FADE_S = 300.0
RANK_S = 3.0
_FIRST = 4
_PLACES = 16


@dataclass(slots=True)
class _Prefix:
    model: str
    tokens: int
    parent: int
    count: float = 0.0
    at: float = 0.0


class HotPrefixes:
    """Counts of at most `size` prefixes; the longest unused are forgotten."""

    def __init__(self, size: int = 8192, clock: Callable[[], float] = time.monotonic) -> None:
        self._size = size
        self._clock = clock
        self._prefixes: OrderedDict[int, _Prefix] = OrderedDict()
        self._told: tuple[float, int, list[dict[str, Any]]] = (-math.inf, 0, [])

    def note(self, model: str, chain: Sequence[int], block_size: int) -> None:
        """A request with this chain."""
        now = self._clock()
        depth, parent = _FIRST, 0
        for _ in range(_PLACES):
            if depth > len(chain):
                break
            key = chain[depth - 1]
            prefix = self._prefixes.get(key)
            if prefix is None:
                prefix = self._prefixes[key] = _Prefix(model, depth * block_size, parent, at=now)
                if len(self._prefixes) > self._size:
                    self._prefixes.popitem(last=False)
            else:
                self._prefixes.move_to_end(key)
            prefix.count = prefix.count * math.exp((prefix.at - now) / FADE_S) + 1.0
            prefix.at = now
            parent = key
            depth *= 2

    def hottest(self, limit: int) -> list[dict[str, Any]]:
        """The prefixes that save most: requests of the last five minutes x tokens. Of prefixes that the same requests
        have, only the longest is told. `key`: the hash of the prefix's last block. Ranking thousands takes
        milliseconds, so that an answer is good for RANK_S seconds."""
        now = self._clock()
        if now >= self._told[0] + RANK_S or self._told[1] != limit:
            self._told = now, limit, self._rank(now, limit)
        return self._told[2]

    def _rank(self, now: float, limit: int) -> list[dict[str, Any]]:
        counts = {key: one.count * math.exp((one.at - now) / FADE_S) for key, one in self._prefixes.items()}
        covered = {
            one.parent for key, one in self._prefixes.items() if counts[key] > 0.9 * counts.get(one.parent, math.inf)
        }
        ranked = sorted(
            ((counts[key] * one.tokens, key) for key, one in self._prefixes.items() if key not in covered),
            reverse=True,
        )
        return [
            {
                "key": f"{key:016x}",
                "model": self._prefixes[key].model,
                "tokens": self._prefixes[key].tokens,
                "requests": round(counts[key], 1),
            }
            for _, key in ranked[:limit]
            if counts[key] >= 1.5
        ]
