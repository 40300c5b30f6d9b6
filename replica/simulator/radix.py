"""SGLang's radix cache as seen from outside, and (without events, prompt only) TGI's.

Every prefix is held once, so stores and removals are a set. Pages enter the tree when a prefill chunk ends and when
the request finishes (generated tokens included then); eviction takes whole leaves, least recently used first, and
announces one removal with all pages of the leaf. The first event of a process is AllBlocksCleared.
See reference/engine-protocol.md, D.1, D.4 and E.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count

from .records import Cleared, Event, Key, Live, Prefix, Removed, Stored
from .sequence import BlockHasher, Sequence, describe


class Node:
    """A run of pages without a branch. `locks` counts the sequences that use it or something below it."""

    __slots__ = ("children", "id", "keys", "locks", "parent", "used")

    def __init__(self, keys: list[Key], parent: Node | None, number: int) -> None:
        self.keys = keys
        self.parent = parent
        self.children: dict[Key, Node] = {}
        self.locks = 0
        self.used = 0
        self.id = number


class RadixCache:
    """`blocks` pages of `block_size` tokens. `prompt_only`: prompts enter at the end, generated tokens never (TGI)."""

    def __init__(
        self,
        blocks: int,
        block_size: int,
        *,
        seed: bytes | None = None,
        record: bool = True,
        prompt_only: bool = False,
    ) -> None:
        if blocks < 1 or block_size < 1:
            raise ValueError(f"a cache needs at least 1 page of at least 1 token, got {blocks} of {block_size}")
        self.blocks = blocks
        self.block_size = block_size
        self._hasher = BlockHasher(block_size, seed)
        self._record = record
        self._prompt_only = prompt_only
        self._numbers = count(1)
        self._clock = count(1)
        self._events: list[Event] = []
        self._start_empty()

    def _start_empty(self) -> None:
        self._root = Node([], None, 0)
        self._root.locks = 1
        self._free = self.blocks
        self._unlocked = 0
        self._leaves: list[tuple[int, int, Node]] = []
        self._prefixes: dict[Key, Prefix] = {}
        if self._record:
            self._events.append(Cleared())

    def admit(self, seq: Sequence) -> bool:
        size = self.block_size
        keys = self._hasher.extend(seq, seq.length // size)
        node, matched = self._match(keys[: (seq.length - 1) // size])
        self._lock(node)
        if -(-seq.length // size) - matched > self._free + self._unlocked:
            self._unlock(node)
            return False
        seq.node = node
        seq.registered = matched
        seq.private = 0
        seq.computed = matched * size
        return True

    def grow(self, seq: Sequence, tokens: int) -> bool:
        missing = -(-tokens // self.block_size) - seq.registered - seq.private
        if missing <= 0:
            return True
        if missing > self._free + self._unlocked:
            return False
        while self._free < missing:
            self._evict_leaf()
        self._free -= missing
        seq.private += missing
        return True

    def checkpoint(self, seq: Sequence) -> None:
        if not self._prompt_only and seq.computed <= seq.prompt_len:
            self._insert(seq, seq.computed // self.block_size)

    def release(self, seq: Sequence, *, finished: bool) -> None:
        if seq.node is None:
            return
        if finished:
            tokens = min(seq.computed, seq.prompt_len) if self._prompt_only else seq.computed
            self._insert(seq, tokens // self.block_size)
        self._unlock(seq.node)
        self._free += seq.private
        seq.node = None
        seq.private = 0
        seq.registered = 0

    def reset(self) -> bool:
        if self.used:
            return False
        self._start_empty()
        return True

    def take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def live(self) -> Iterator[Live]:
        for prefix in self._prefixes.values():
            yield Live(prefix, 1)

    @property
    def used(self) -> int:
        return self.blocks - self._free - self._unlocked

    def _match(self, keys: list[Key]) -> tuple[Node, int]:
        """The node that ends the longest held prefix of `keys` (split there if needed), and its length in pages."""
        node, matched, now = self._root, 0, next(self._clock)
        while matched < len(keys) and (child := node.children.get(keys[matched])) is not None:
            child.used = now
            same = 0
            limit = min(len(child.keys), len(keys) - matched)
            while same < limit and child.keys[same] == keys[matched + same]:
                same += 1
            matched += same
            node = child if same == len(child.keys) else self._split(child, same)
        return node, matched

    def _split(self, node: Node, at: int) -> Node:
        """Cut a node: a new parent takes the first `at` pages. Nothing is announced."""
        parent = node.parent
        assert parent is not None
        upper = Node(node.keys[:at], parent, next(self._numbers))
        upper.locks, upper.used = node.locks, node.used
        parent.children[upper.keys[0]] = upper
        node.keys = node.keys[at:]
        node.parent = upper
        upper.children[node.keys[0]] = node
        return upper

    def _insert(self, seq: Sequence, pages: int) -> None:
        """Move the sequence's computed pages into the tree; pages that are there already are given back."""
        if pages <= seq.registered:
            return
        keys = self._hasher.extend(seq, pages)[:pages]
        node, held = self._match(keys)
        seq.private -= pages - seq.registered
        self._free += held - seq.registered
        if held < pages:
            leaf = Node(keys[held:], node, next(self._numbers))
            leaf.used = node.used if node.parent is not None else next(self._clock)
            node.children[leaf.keys[0]] = leaf
            self._unlocked += len(leaf.keys)
            self._announce(seq, held, pages)
            node = leaf
        self._lock(node)
        self._unlock(seq.node)
        seq.node = node
        seq.registered = pages

    def _announce(self, seq: Sequence, start: int, end: int) -> None:
        if not self._record or seq.tokens is None:
            return
        size = self.block_size
        for index in range(start, end):
            parent = self._prefixes[seq.keys[index - 1]] if index else None
            self._prefixes[seq.keys[index]] = describe(seq, index, size, parent)
        tokens = seq.tokens[start * size : end * size].tobytes()
        before = seq.keys[start - 1] if start else None
        self._events.append(Stored(seq.keys[start:end], before, tokens, size, seq.lora, seq.salt, first=start == 0))

    def _lock(self, node: Node) -> None:
        walk: Node | None = node
        while walk is not None and walk is not self._root:
            if walk.locks == 0:
                self._unlocked -= len(walk.keys)
            walk.locks += 1
            walk = walk.parent

    def _unlock(self, node: Node) -> None:
        walk: Node | None = node
        while walk is not None and walk is not self._root:
            walk.locks -= 1
            if walk.locks == 0:
                self._unlocked += len(walk.keys)
                if not walk.children:
                    heapq.heappush(self._leaves, (walk.used, walk.id, walk))
            walk = walk.parent

    def _evict_leaf(self) -> None:
        """Drop the least recently used unlocked leaf. The caller made sure that there is one (`_unlocked` > 0)."""
        while True:
            used, _number, node = heapq.heappop(self._leaves)
            if node.parent is None or node.children or node.locks:
                continue
            if node.used != used:
                heapq.heappush(self._leaves, (node.used, node.id, node))
                continue
            break
        parent = node.parent
        del parent.children[node.keys[0]]
        node.parent = None
        self._unlocked -= len(node.keys)
        self._free += len(node.keys)
        for key in node.keys:
            self._prefixes.pop(key, None)
        if self._record:
            self._events.append(Removed(node.keys))
        if parent is not self._root and not parent.children and parent.locks == 0:
            heapq.heappush(self._leaves, (parent.used, parent.id, parent))
