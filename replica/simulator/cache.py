"""vLLM's block pool, exactly: physical blocks with reference counts, freed-order eviction, duplicates.

What a router can observe follows from five rules (reference/engine-protocol.md, A.6, A.8, C.7):

* a prompt hits at most `(length - 1) // block_size` blocks: one token must be computed;
* a block is cached the moment it is scheduled to become full, prompt or generated, even when the same content is
  cached already (so one hash may have several physical copies, each announced and each removed once);
* a finished sequence keeps its blocks cached; they join the free list tail first, blocks without a hash in front;
* nothing is evicted before the free list hands a block to someone else;
* a hit takes the block out of the free list.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

from .records import Cleared, Event, Key, Live, Prefix, Removed, Stored
from .sequence import BlockHasher, Sequence, describe


class Cache(Protocol):
    """What the scheduler needs from a cache. Pure logic: no clock, no I/O."""

    block_size: int
    blocks: int

    def admit(self, seq: Sequence) -> bool:
        """Match the prefix and check that the whole sequence fits; on True `seq.computed` tokens are held."""
        ...

    def grow(self, seq: Sequence, tokens: int) -> bool:
        """Room for the first `tokens` tokens; False when there is none (someone must be preempted)."""
        ...

    def checkpoint(self, seq: Sequence) -> None:
        """`seq.computed` moved on: the step that computed those tokens is done."""
        ...

    def release(self, seq: Sequence, *, finished: bool) -> None:
        """Give back what the sequence holds; its cached blocks become evictable."""
        ...

    def reset(self) -> bool:
        """Forget everything; False (and nothing happens) while blocks are in use."""
        ...

    def take_events(self) -> list[Event]: ...

    def live(self) -> Iterator[Live]: ...

    @property
    def used(self) -> int:
        """Blocks held by running sequences."""
        ...


class BlockPool:
    """`blocks` usable physical blocks of `block_size` tokens. `record` off: no events, no truth (block-id traces)."""

    def __init__(self, blocks: int, block_size: int, *, seed: bytes | None = None, record: bool = True) -> None:
        if blocks < 1 or block_size < 1:
            raise ValueError(f"a pool needs at least 1 block of at least 1 token, got {blocks} of {block_size}")
        self.blocks = blocks
        self.block_size = block_size
        self._hasher = BlockHasher(block_size, seed)
        self._record = record
        self._refs = [0] * blocks
        self._keys: list[Key | None] = [None] * blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(blocks))
        self._cached: dict[Key, list[int]] = {}
        self._prefixes: dict[Key, Prefix] = {}
        self._events: list[Event] = []

    def admit(self, seq: Sequence) -> bool:
        size = self.block_size
        total = -(-seq.length // size)
        keys = self._hasher.extend(seq, seq.length // size)
        cached, refs, free = self._cached, self._refs, self._free
        hits: list[int] = []
        for key in keys[: (seq.length - 1) // size]:
            copies = cached.get(key)
            if copies is None:
                break
            hits.append(copies[0])
        idle = [block for block in hits if not refs[block]]
        if total - len(hits) > len(free) - len(idle):
            return False
        for block in idle:
            del free[block]
        for block in hits:
            refs[block] += 1
        seq.blocks = hits
        seq.registered = len(hits)
        seq.computed = len(hits) * size
        return True

    def grow(self, seq: Sequence, tokens: int) -> bool:
        missing = -(-tokens // self.block_size) - len(seq.blocks)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block, _none = self._free.popitem(last=False)
            self._evict(block)
            self._refs[block] = 1
            seq.blocks.append(block)
        full = tokens // self.block_size
        if full > seq.registered:
            self._register(seq, full)
        return True

    def checkpoint(self, seq: Sequence) -> None:
        """Nothing to do: the pool caches blocks when they are scheduled."""

    def release(self, seq: Sequence, *, finished: bool) -> None:
        refs, free, keys = self._refs, self._free, self._keys
        for block in reversed(seq.blocks):
            left = refs[block] - 1
            refs[block] = left
            if not left:
                free[block] = None
                if keys[block] is None:
                    free.move_to_end(block, last=False)
        seq.blocks = []
        seq.registered = 0

    def reset(self) -> bool:
        if len(self._free) < self.blocks:
            return False
        self._cached.clear()
        self._prefixes.clear()
        self._keys = [None] * self.blocks
        if self._record:
            self._events.append(Cleared())
        return True

    def take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def live(self) -> Iterator[Live]:
        for key, copies in self._cached.items():
            yield Live(self._prefixes[key], len(copies))

    @property
    def used(self) -> int:
        return self.blocks - len(self._free)

    @property
    def cached_blocks(self) -> int:
        """Physical blocks that hold a hash, in use or not."""
        return sum(map(len, self._cached.values()))

    def _evict(self, block: int) -> None:
        key = self._keys[block]
        if key is None:
            return
        self._keys[block] = None
        copies = self._cached[key]
        copies.remove(block)
        if not copies:
            del self._cached[key]
            self._prefixes.pop(key, None)
        if self._record:
            self._events.append(Removed([key]))

    def _register(self, seq: Sequence, full: int) -> None:
        keys = self._hasher.extend(seq, full)
        start = seq.registered
        for index in range(start, full):
            block, key = seq.blocks[index], keys[index]
            self._keys[block] = key
            self._cached.setdefault(key, []).append(block)
            if self._record and key not in self._prefixes:
                parent = self._prefixes[keys[index - 1]] if index else None
                self._prefixes[key] = describe(seq, index, self.block_size, parent)
        seq.registered = full
        if self._record and seq.tokens is not None:
            size = self.block_size
            tokens = seq.tokens[start * size : full * size].tobytes()
            parent_key = keys[start - 1] if start else None
            self._events.append(
                Stored(keys[start:full], parent_key, tokens, size, seq.lora, seq.salt, first=start == 0)
            )
