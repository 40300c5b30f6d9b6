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

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
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
    """`blocks` usable physical blocks of `block_size` tokens. `record` off: no events, no truth (block-id traces).

    The free list's blocks without a hash are a stack, the others a queue of releases. A hit leaves the block where it
    stands in the queue; what counts is its last place there, once nobody holds it: neither a hit nor a release moves
    anything.
    """

    def __init__(self, blocks: int, block_size: int, *, seed: bytes | None = None, record: bool = True) -> None:
        if blocks < 1 or block_size < 1:
            raise ValueError(f"a pool needs at least 1 block of at least 1 token, got {blocks} of {block_size}")
        self.blocks = blocks
        self.block_size = block_size
        self._hasher = BlockHasher(block_size, seed)
        self._record = record
        self._refs = [0] * blocks
        self._keys: list[Key | None] = [None] * blocks
        self._free = blocks
        """Blocks nobody holds."""
        self._blank = list(range(blocks - 1, -1, -1))
        """Of these, the ones without a hash, the next to be handed out last."""
        self._idle: deque[tuple[int, list[int]]] = deque()
        """The others: (number of the release, its blocks, the next to be handed out last)."""
        self._idle_places = 0
        """Blocks in all of `_idle`, those that do not count any more included."""
        self._released = 0
        """The latest release's number."""
        self._last = [0] * blocks
        """The release that gave a block back last."""
        self._cached: dict[Key, int] = {}
        """The copy that a hit gets: the oldest."""
        self._copies: dict[Key, list[int]] = {}
        """Further copies, where there are any."""
        self._prefixes: dict[Key, Prefix] = {}
        self._events: list[Event] = []

    def admit(self, seq: Sequence) -> bool:
        size = self.block_size
        length = seq.length
        total = -(-length // size)
        keys = self._hasher.extend(seq, length // size)
        cached, refs = self._cached, self._refs
        hits: list[int] = []
        with suppress(KeyError):  # extend keeps what came before the first miss
            hits.extend(map(cached.__getitem__, keys[: (length - 1) // size]))
        idle = 0
        for block in hits:
            held = refs[block]
            refs[block] = held + 1
            if not held:
                idle += 1
        if total - len(hits) > self._free - idle:
            for block in hits:
                refs[block] -= 1
            return False
        self._free -= idle
        seq.blocks = hits
        seq.registered = len(hits)
        seq.computed = len(hits) * size
        return True

    def grow(self, seq: Sequence, tokens: int) -> bool:
        missing = -(-tokens // self.block_size) - len(seq.blocks)
        if missing > self._free:
            return False
        for _ in range(missing):
            seq.blocks.append(self._take())
        full = tokens // self.block_size
        if full > seq.registered:
            self._register(seq, full)
        return True

    def checkpoint(self, seq: Sequence) -> None:
        """Nothing to do: the pool caches blocks when they are scheduled."""

    def release(self, seq: Sequence, *, finished: bool) -> None:
        refs, last = self._refs, self._last
        blocks, registered = seq.blocks, seq.registered
        seq.blocks, seq.registered = [], 0
        for block in reversed(blocks[registered:]):
            refs[block] = 0
            self._blank.append(block)
        self._released = number = self._released + 1
        freed: list[int] = []
        for block in blocks[:registered]:
            left = refs[block] - 1
            refs[block] = left
            if not left:
                last[block] = number
                freed.append(block)
        self._free += len(freed) + len(blocks) - registered
        if freed:
            self._idle.append((number, freed))
            self._idle_places += len(freed)
            if self._idle_places > 4 * self.blocks:
                self._compact()

    def reset(self) -> bool:
        if self._free < self.blocks:
            return False
        self._compact()
        self._blank = [*(block for _, freed in reversed(self._idle) for block in freed), *self._blank]
        self._idle.clear()
        self._idle_places = 0
        self._cached.clear()
        self._copies.clear()
        self._prefixes.clear()
        self._keys = [None] * self.blocks
        if self._record:
            self._events.append(Cleared())
        return True

    def take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def live(self) -> Iterator[Live]:
        for key in self._cached:
            yield Live(self._prefixes[key], 1 + len(self._copies.get(key, ())))

    @property
    def used(self) -> int:
        return self.blocks - self._free

    @property
    def cached_blocks(self) -> int:
        """Physical blocks that hold a hash, in use or not."""
        return len(self._cached) + sum(map(len, self._copies.values()))

    def _take(self) -> int:
        """A free block for someone else; there must be one."""
        if self._blank:
            block = self._blank.pop()
        else:
            block = self._oldest()
            self._evict(block)
        self._refs[block] = 1
        self._free -= 1
        return block

    def _oldest(self) -> int:
        refs, last, idle = self._refs, self._last, self._idle
        while True:
            number, freed = idle[0]
            while freed:
                block = freed.pop()
                self._idle_places -= 1
                if last[block] == number and not refs[block]:
                    return block
            idle.popleft()

    def _compact(self) -> None:
        """Leave out what does not count any more."""
        refs, last = self._refs, self._last
        kept = (
            (number, [block for block in freed if last[block] == number and not refs[block]])
            for number, freed in self._idle
        )
        self._idle = deque(entry for entry in kept if entry[1])
        self._idle_places = sum(len(freed) for _, freed in self._idle)

    def _add(self, block: int, key: Key) -> bool:
        """The block has this content from now on; True: no other has."""
        self._keys[block] = key
        if self._cached.setdefault(key, block) == block:
            return True
        self._copies.setdefault(key, []).append(block)
        return False

    def _drop(self, block: int, key: Key) -> bool:
        """The block does not have this content any more; True: no other has."""
        self._keys[block] = None
        others = self._copies.get(key)
        if others is None:
            del self._cached[key]
            return True
        if self._cached[key] == block:
            self._cached[key] = others.pop(0)
        else:
            others.remove(block)
        if not others:
            del self._copies[key]
        return False

    def _evict(self, block: int) -> None:
        """A cached block is handed to someone else."""
        key = self._keys[block]
        assert key is not None
        if self._drop(block, key):
            self._prefixes.pop(key, None)
        if self._record:
            self._events.append(Removed([key]))

    def _register(self, seq: Sequence, full: int) -> None:
        keys = self._hasher.extend(seq, full)
        start = seq.registered
        for index in range(start, full):
            block, key = seq.blocks[index], keys[index]
            self._add(block, key)
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
