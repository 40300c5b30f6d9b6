"""The router's own model of a cache that does not report: an LRU of blocks, fed with the prompts sent to the replica.

For TGI, and for vLLM or SGLang without events. It knows nothing of generated tokens, of other routers' requests or of
the engine's real eviction: matches from it are approximate.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Sequence

from router.index.types import Cleared, Delta, Tier


class ShadowCache:
    """At most `capacity_tokens` in blocks, least recently used first out; a chain's tail before its head."""

    def __init__(self, capacity_tokens: int) -> None:
        if capacity_tokens < 1:
            raise ValueError(f"capacity_tokens must be at least 1, got {capacity_tokens}")
        self.capacity_tokens = capacity_tokens
        self.tokens = 0
        self._keys: OrderedDict[int, int] = OrderedDict()
        """Key -> tokens of its block."""

    def __len__(self) -> int:
        return len(self._keys)

    def touch(self, chain: Sequence[int], block_size: int) -> Delta:
        """A prompt with this chain went to the replica; what that stores and evicts. A longer chain is cut."""
        keys, cut = self._keys, chain[: self.capacity_tokens // block_size]
        # A block is used with each block behind it, and later than those: what is known of a chain is its beginning.
        known = bisect_left(cut, True, key=lambda key: key not in keys)
        stored = cut[known:]
        for key in reversed(stored):
            keys[key] = block_size
        deque(map(keys.move_to_end, reversed(cut[:known])), maxlen=0)
        self.tokens += len(stored) * block_size
        dropped: list[int] = []
        while self.tokens > self.capacity_tokens:
            key, size = keys.popitem(last=False)
            self.tokens -= size
            dropped.append(key)
        delta = Delta()
        if stored:
            delta.stored[Tier.DEVICE] = list(stored)
        if dropped:
            delta.dropped[Tier.DEVICE] = dropped
        return delta

    def clear(self) -> Delta:
        """Forget everything, as after a restart."""
        self._keys = OrderedDict()
        self.tokens = 0
        return Delta(cleared=Cleared.EMPTIED)

    def snapshot(self) -> Delta:
        """Everything held, as a delta that clears first."""
        return Delta(cleared=Cleared.EMPTIED, stored={Tier.DEVICE: list(self._keys)} if self._keys else {})
