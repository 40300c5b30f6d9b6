"""The router's own model of a cache that does not report: an LRU of blocks, fed with the prompts sent to the replica.

For TGI, and for vLLM or SGLang without events. It knows nothing of generated tokens, of other routers' requests or of
the engine's real eviction: matches from it are approximate.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from router.index.types import Delta, Tier


class ShadowCache:
    """At most `capacity_blocks` keys, least recently used first out; of one chain the tail goes before the head."""

    def __init__(self, capacity_blocks: int) -> None:
        if capacity_blocks < 1:
            raise ValueError(f"capacity_blocks must be at least 1, got {capacity_blocks}")
        self.capacity_blocks = capacity_blocks
        self._keys: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def touch(self, chain: Sequence[int]) -> Delta:
        """A prompt with this chain went to the replica; what that stores and evicts. A longer chain is cut."""
        keys = self._keys
        stored: list[int] = []
        for key in reversed(chain[: self.capacity_blocks]):
            if key in keys:
                keys.move_to_end(key)
            else:
                stored.append(key)
                keys[key] = None
        dropped = [keys.popitem(last=False)[0] for _ in range(len(keys) - self.capacity_blocks)]
        stored.reverse()
        delta = Delta()
        if stored:
            delta.stored[Tier.DEVICE] = stored
        if dropped:
            delta.dropped[Tier.DEVICE] = dropped
        return delta

    def clear(self) -> Delta:
        """Forget everything, as after a restart."""
        self._keys = OrderedDict()
        return Delta(cleared=True)

    def snapshot(self) -> Delta:
        """Everything held, as a delta that clears first."""
        return Delta(cleared=True, stored={Tier.DEVICE: list(self._keys)} if self._keys else {})
