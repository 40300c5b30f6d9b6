"""The simulator's block pool over block ids, which tells the net change of what it holds."""

from __future__ import annotations

from replica.simulator.cache import BlockPool
from replica.simulator.sequence import Sequence
from router.index.types import Delta, Tier


class IdPool(BlockPool):
    """`take_delta` replaces the KV events: ids of which the first copy came or the last copy went."""

    def __init__(self, blocks: int, block_size: int) -> None:
        super().__init__(blocks, block_size, seed=b"replay", record=False)
        self.evicted = 0
        """Physical blocks whose content was given up, since the start."""
        self._changed: dict[int, bool] = {}

    def take_delta(self) -> Delta | None:
        """What changed since the last call; None: nothing."""
        changed = self._changed
        if not changed:
            return None
        self._changed = {}
        stored = [key for key, held in changed.items() if held]
        if len(stored) == len(changed):
            return Delta(stored={Tier.DEVICE: stored})
        dropped = [key for key, held in changed.items() if not held]
        return Delta(stored={Tier.DEVICE: stored}, dropped={Tier.DEVICE: dropped})

    def _evict(self, block: int) -> None:
        key = self._keys[block]
        assert isinstance(key, int)
        self.evicted += 1
        if self._drop(block, key):
            self._changed[key] = False

    def _register(self, seq: Sequence, full: int) -> None:
        keys = seq.keys
        for index in range(seq.registered, full):
            key = keys[index]
            if self._add(seq.blocks[index], key):
                assert isinstance(key, int)
                self._changed[key] = True
        seq.registered = full
