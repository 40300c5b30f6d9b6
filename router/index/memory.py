"""The index in memory: block -> bitmask of the replicas that hold it, one table per tier.

A lookup walks the prompt's chain once, AND-ing masks: 64 replicas cost what one does. Removing or clearing a replica
takes its bit out of the live mask, at once for lookups; the bit is wiped from the tables in chunks by `sweep` and
not given out again before. Tables are split into shards by the hash's low bits, so that neither a sweep nor the
growth of a dict stops the loop for long.

Memory: about 118 bytes a block, whatever the number of replicas (up to some hundred); a bound on blocks is a bound on
memory. Not thread-safe.

Example:
    >>> index = MemoryIndex(max_blocks=1_000_000)
    >>> index.add_replica("a")
    0
    >>> index.apply("a", Delta(stored={Tier.DEVICE: [11, 12]}))
    >>> index.match([11, 12, 13])
    {'a': Match(blocks=2, lower=0, predicted=0)}
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from router.index.overlay import PredictedOverlay
from router.index.types import Cleared, Clears, Delta, Match, Tier

BYTES_PER_BLOCK = 118
"""Measured at 1 M blocks; what `bytes_estimate` multiplies with."""
_KEYS_PER_SHARD = 4096
AT_ONCE = 4096
"""Blocks looked up in one turn of the loop: 1 to 3 ms."""


class _Table:
    """One tier's blocks, sharded."""

    __slots__ = ("blocks", "select", "shards")

    def __init__(self, shards: int) -> None:
        self.shards: list[dict[int, int]] = [{} for _ in range(shards)]
        self.select = shards - 1
        self.blocks = 0


class MemoryIndex:
    """Implements BlockIndex. Beyond `max_blocks` blocks (over all tiers) new ones are refused and counted.

    `shards`: a power of two, for those who mind no pauses (1 is the fastest); None: as many as none is felt with.
    """

    def __init__(
        self, max_blocks: int = 10_000_000, overlay: PredictedOverlay | None = None, shards: int | None = None
    ) -> None:
        if max_blocks < 1:
            raise ValueError(f"max_blocks must be at least 1, got {max_blocks}")
        self.max_blocks = max_blocks
        self.overlay = overlay
        self.blocks_refused = 0
        self.deltas_dropped = 0
        self.on_evicted: Callable[[str, Sequence[int], float], None] | None = None
        """Told of the blocks that a delta drops and its age, by those who keep a memory of them; must not block."""
        self.on_cleared: Callable[[str], None] | None = None
        """Told of each replica that is cleared."""
        self.clears: dict[str, Clears] = {}
        """By replica id; those never cleared are not in it."""
        shards = shards or 1 << max(0, min(12, (max_blocks // _KEYS_PER_SHARD).bit_length()))
        self._tables = [_Table(shards) for _ in Tier]
        self._slots: dict[str, int] = {}
        self._owners: list[str | None] = []
        self._held: list[int] = []
        self._live = 0
        self._dirty = 0
        self._sweeping = 0
        self._cursor = 0

    @property
    def blocks(self) -> int:
        """Entries over all tiers, those of removed replicas included until they are swept."""
        return sum(table.blocks for table in self._tables)

    @property
    def bytes_estimate(self) -> int:
        """Memory of the tables, roughly."""
        return self.blocks * BYTES_PER_BLOCK

    def replicas(self) -> list[str]:
        """Ids of the replicas known."""
        return list(self._slots)

    def replica_blocks(self, replica_id: str) -> int:
        """Entries of one replica over all tiers; 0 for an unknown one."""
        slot = self._slots.get(replica_id)
        return 0 if slot is None else self._held[slot]

    def add_replica(self, replica_id: str) -> int:
        """The slot of `replica_id`, new or the one it has."""
        slot = self._slots.get(replica_id)
        if slot is None:
            slot = next((free for free, owner in enumerate(self._owners) if owner is None), len(self._owners))
            if slot == len(self._owners):
                self._owners.append(replica_id)
                self._held.append(0)
            self._owners[slot] = replica_id
            self._slots[replica_id] = slot
            self._live |= 1 << slot
        return slot

    def remove_replica(self, replica_id: str) -> None:
        """Forget a replica: no lookup names it from now on. An unknown one is ignored."""
        slot = self._slots.pop(replica_id, None)
        if slot is None:
            return
        self._live &= ~(1 << slot)
        if self._held[slot] or (self.overlay is not None and self.overlay.expire() >> slot & 1):
            self._dirty |= 1 << slot
        else:
            self._owners[slot] = None

    def clear_replica(self, replica_id: str, why: Cleared = Cleared.EMPTIED) -> None:
        """Forget a replica's blocks, predicted ones too: it moves to another slot, the old one is swept later."""
        if replica_id in self._slots:
            self.clears[replica_id] = self.clears.get(replica_id, Clears()).plus(why)
            if self.on_cleared is not None:
                self.on_cleared(replica_id)
            self.remove_replica(replica_id)
            self.add_replica(replica_id)

    def predict(self, replica_id: str, chain: Sequence[int]) -> None:
        """`replica_id` is about to hold `chain`. Nothing without an overlay or for an unknown replica."""
        slot = self._slots.get(replica_id)
        if slot is not None and self.overlay is not None:
            self.overlay.add(1 << slot, chain)

    def apply(self, replica_id: str, delta: Delta) -> None:
        """Apply a delta; one for an unknown replica is dropped and counted."""
        if replica_id not in self._slots:
            self.deltas_dropped += 1
            return
        if delta.cleared:
            self.clear_replica(replica_id, delta.cleared)
        slot = self._slots[replica_id]
        for tier, keys in delta.dropped.items():
            self._drop(self._tables[tier], slot, keys)
            if self.overlay is not None:
                self.overlay.drop(1 << slot, keys)
            if self.on_evicted is not None:
                self.on_evicted(replica_id, keys, delta.age_s)
        for tier, keys in delta.stored.items():
            self._store(self._tables[tier], slot, keys)

    def _store(self, table: _Table, slot: int, keys: list[int]) -> None:
        bit = 1 << slot
        shards, select = table.shards, table.select
        room = self.max_blocks - self.blocks
        new = added = 0
        for key in keys:
            shard = shards[key & select]
            mask = shard.get(key)
            if mask is None:
                if new == room:
                    self.blocks_refused += 1
                    continue
                shard[key] = bit
                new += 1
            elif mask & bit:
                continue
            else:
                shard[key] = mask | bit
            added += 1
        table.blocks += new
        self._held[slot] += added

    def _drop(self, table: _Table, slot: int, keys: list[int]) -> None:
        bit = 1 << slot
        shards, select = table.shards, table.select
        for key in keys:
            shard = shards[key & select]
            mask = shard.get(key, 0)
            if mask & bit:
                self._held[slot] -= 1
                if mask == bit:
                    del shard[key]
                    table.blocks -= 1
                else:
                    shard[key] = mask ^ bit

    def sweep(self, budget: int = 4096) -> bool:
        """Wipe up to about `budget` entries' worth of removed replicas; True while there is more to do.

        Call it from time to time off the request path; 4096 entries take about 1 ms. Its unit is a shard (2048 to
        4096 entries when full, more above 16 M blocks).
        """
        if not self._sweeping:
            self._sweeping, self._cursor = self._dirty, 0
            if not self._sweeping:
                return False
        keep = ~self._sweeping
        shards = len(self._tables[0].shards)
        while budget > 0 and self._cursor < shards * len(self._tables):
            table = self._tables[self._cursor // shards]
            at = self._cursor % shards
            before = table.shards[at]
            self._cursor += 1
            if before:
                table.shards[at] = after = {key: left for key, mask in before.items() if (left := mask & keep)}
                table.blocks -= len(before) - len(after)
            budget -= len(before) + 8
        if self._cursor < shards * len(self._tables):
            return True
        return self._release_swept()

    def _release_swept(self) -> bool:
        """Give the swept slots back, except those a predicted entry may still name; True if others became dirty."""
        named = self.overlay.expire() if self.overlay is not None else 0
        done = self._sweeping & ~named
        for slot, _owner in enumerate(self._owners):
            if done >> slot & 1:
                self._owners[slot] = None
            if self._sweeping >> slot & 1:
                self._held[slot] = 0
        newly = self._dirty & ~self._sweeping
        self._dirty &= ~done
        self._sweeping = 0
        return bool(newly)

    async def lookup(self, chain: Sequence[int]) -> dict[str, Match]:
        """`match` without holding up the loop: a chain of 60,000 blocks (a million tokens) takes 20 ms and more."""
        if len(chain) <= AT_ONCE or not self._live:
            return self.match(chain)
        walk = _Walk(self._tables[1:], self.overlay)
        owners, mask, depth = self._owners.copy(), self._live, 0
        while mask and depth < len(chain):
            # Who was removed or cleared meanwhile holds no more from here on.
            mask = self._follow(walk, chain[depth : depth + AT_ONCE], depth, mask & self._live)
            depth += AT_ONCE
            await asyncio.sleep(0)
        walk.ended(len(chain), mask)
        # A slot that has another owner by now tells nothing about either.
        return walk.result([now if now == then else None for now, then in zip(self._owners, owners, strict=False)])

    def match(self, chain: Sequence[int]) -> dict[str, Match]:
        """For each replica that holds at least the first block: how many leading blocks of `chain` it holds."""
        if not chain or not self._live:
            return {}
        walk = _Walk(self._tables[1:], self.overlay)
        walk.ended(len(chain), self._follow(walk, chain, 0, self._live))
        return walk.result(self._owners)

    def _follow(self, walk: _Walk, keys: Sequence[int], depth: int, mask: int) -> int:
        """The replicas of `mask` that also hold `keys`, which begin at block `depth`; the walk knows of the others."""
        device = self._tables[0]
        shards, select = device.shards, device.select
        for at, key in enumerate(keys, depth):
            held = shards[key & select].get(key, 0)
            # Who holds a block holds what comes before it, so the holders are mostly those left: that needs no AND.
            if held != mask and (held := held & mask) != mask:
                mask = walk.step(at, key, held, mask)
                if not mask:
                    break
        return mask


class _Walk:
    """What a lookup remembers of the replicas that do not hold every block in the device tier."""

    __slots__ = ("_overlay", "_runs", "_tables", "depths")

    def __init__(self, lower: list[_Table], overlay: PredictedOverlay | None) -> None:
        self._tables = [table for table in lower if table.blocks]
        self._overlay = overlay if overlay is not None and overlay.expire() else None
        self._runs: list[list[int]] = []
        self.depths: dict[int, int] = {}

    def step(self, depth: int, key: int, held: int, mask: int) -> int:
        """Block `depth` is held in the device tier by `held` of `mask` only: those that go on."""
        missing = mask & ~held
        lower = predicted = 0
        for table in self._tables:
            lower |= table.shards[key & table.select].get(key, 0)
        lower &= missing
        if self._overlay is not None:
            predicted = self._overlay.get(key) & missing & ~lower
        if lower or predicted:
            runs = self._runs
            if runs and runs[-1][0] == lower and runs[-1][1] == predicted:
                runs[-1][2] += 1
            else:
                runs.append([lower, predicted, 1])
        gone = missing & ~(lower | predicted)
        if depth:
            self.ended(depth, gone)
        return mask & ~gone

    def ended(self, depth: int, gone: int) -> None:
        """The replicas of `gone` hold `depth` leading blocks."""
        while gone:
            bit = gone & -gone
            self.depths[bit.bit_length() - 1] = depth
            gone ^= bit

    def result(self, owners: list[str | None]) -> dict[str, Match]:
        """One match per replica that holds the first block."""
        matches: dict[str, Match] = {}
        for slot, depth in self.depths.items():
            owner = owners[slot]
            if owner is None or not depth:
                continue
            lower = predicted = 0
            for low, soon, blocks in self._runs:
                if low >> slot & 1:
                    lower += blocks
                elif soon >> slot & 1:
                    predicted += blocks
            matches[owner] = Match(depth, lower, predicted)
        return matches
