"""The truth about one replica's cache, from its engine's events: which of the router's blocks are held, and where.

The engine's hashes are opaque; the router's own chain is computed from the token ids in the events, and each engine
block remembers its own key(s), because a removal names nothing but the engine's hash.

* vLLM announces every physical copy and removes each (`counts_copies=True`); SGLang has a set per medium (False).
  A vLLM request with `kv_cache_report_mode=full` announces cached blocks again, which cannot be told from a new
  copy: such a block stays here after the engine evicted it, until the cache is cleared. Strip that field.
* Page sizes: equal to the router's block size (the fast path), a multiple of it (each engine block is several), or a
  divisor (see pages.py; a block whose pages lie in different tiers is held in none). Others are refused.
* Of a hybrid model only full-attention groups are indexed: an upper bound of what the engine can reuse.
* What cannot be placed (parent unknown, blocks masked out, a hash that already names other content) is skipped and
  counted: cold, never stale.

Memory: about 150 bytes a block of equal size (measured; tests/bench/bench_index.py). Not thread-safe.

Example:
    >>> ledger = CacheLedger("llama", 16)
    >>> ledger.apply(Batch(0.0, [BlockStored([7, 8], None, pack(range(32)), 16)])).stored
    {<Tier.DEVICE: 0>: [..., ...]}
"""

from __future__ import annotations

from router.blocks import TOKEN_BYTES, chain, mix
from router.index.held import HeldKeys
from router.index.namespace import event_root, opaque_parts
from router.index.pages import Page, PageTree
from router.index.types import Cleared, Delta, Tier
from router.index.wire import AllBlocksCleared, Batch, BlockRemoved, BlockStored, EngineHash, token_count

_INDEXED_KINDS = (None, "full_attention", "mla_attention")
_Value = int | tuple[int, ...] | Page
_Table = dict[EngineHash, _Value]


class CacheLedger:
    """See the module. `max_blocks` bounds engine blocks (or pages); those beyond are refused and counted."""

    def __init__(self, model: str, block_size: int, *, max_blocks: int = 4_000_000, counts_copies: bool = True) -> None:
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {block_size}")
        self.model = model
        self.block_size = block_size
        self.max_blocks = max_blocks
        self.counts_copies = counts_copies
        self.orphans = 0
        """Blocks whose parent is unknown."""
        self.conflicts = 0
        """Blocks announced under a hash that is held for other content, and those after them in their event."""
        self.skipped = 0
        """Blocks of groups that are not indexed, masked blocks, and placeholders of unknown blocks."""
        self.refused_blocks = 0
        """Blocks beyond `max_blocks`."""
        self.unknown_removals = 0
        """Removals of blocks not known here: after a clear, or of blocks that were skipped."""
        self.refused: str | None = None
        """Why this engine's blocks cannot be indexed at all, with the fix."""
        self._keys: dict[Tier, HeldKeys] = {tier: HeldKeys() for tier in Tier}
        self._tables: dict[tuple[int | None, Tier], _Table] = {}
        self._copies: dict[tuple[int | None, Tier], dict[EngineHash, int]] = {}
        self._trees: dict[int | None, PageTree] = {}
        self._entries = 0

    @property
    def live_blocks(self) -> int:
        """Blocks held, in the router's block size; one held in two tiers counts twice."""
        return sum(len(keys.live) for keys in self._keys.values())

    def apply(self, batch: Batch) -> Delta:
        """Apply a batch's events in order; the net change."""
        cleared = Cleared.NO
        for event in batch.events:
            if isinstance(event, BlockRemoved):
                self._removed(event)
            elif isinstance(event, BlockStored):
                self._stored(event)
            elif isinstance(event, AllBlocksCleared):
                # Names no tier: blocks in lower tiers may survive it in the engine, which costs a miss here.
                self._forget()
                cleared = Cleared.EMPTIED
        delta = Delta(cleared=cleared)
        for tier, keys in self._keys.items():
            stored, dropped = keys.take()
            if stored:
                delta.stored[tier] = stored
            if dropped:
                delta.dropped[tier] = dropped
        return delta

    def clear(self, why: Cleared) -> Delta:
        """Forget everything, as after a restart."""
        self._forget()
        self.refused = None
        return Delta(cleared=why)

    def snapshot(self) -> Delta:
        """Everything held, as a delta that clears first."""
        held = {tier: list(keys.live) for tier, keys in self._keys.items() if keys.live}
        return Delta(cleared=Cleared.EMPTIED, stored=held)

    def _forget(self) -> None:
        self._tables.clear()
        self._copies.clear()
        self._trees.clear()
        self._entries = 0
        for keys in self._keys.values():
            keys.clear()

    def _stored(self, event: BlockStored) -> None:
        count = len(event.block_hashes)
        if event.spec_kind not in _INDEXED_KINDS:
            self.skipped += count
        elif not event.tokens:
            self._placeholder(event)
        elif token_count(event) != count * event.block_size or not count:
            self.skipped += count
        elif event.block_size % self.block_size and self.block_size % event.block_size:
            self.refused = (
                f"the engine's block size {event.block_size} neither divides the router's block size "
                f"{self.block_size} nor is a multiple of it: set the router's block size to {event.block_size} or to "
                "one of its divisors, or change the engine's block (page) size"
            )
            self.skipped += count
        elif self._entries + count > self.max_blocks:
            self.refused_blocks += count
        else:
            self._place(event)

    def _place(self, event: BlockStored) -> None:
        before: int | Page
        if event.parent is None:
            before = event_root(event, self.model, self.block_size)
        else:
            found = self._find(event.group, event.parent)
            if found is None:
                self.orphans += len(event.block_hashes)
                return
            if isinstance(found, Page):
                before = found if found.key is None else found.key
            else:
                before = found if isinstance(found, int) else found[-1]
        opaque = opaque_parts(event)
        if event.block_size < self.block_size:
            self._place_pages(event, before, opaque)
        elif isinstance(before, Page):  # a large block after an unfinished small one
            self.orphans += len(event.block_hashes)
        else:
            keys: list[int]
            if opaque is None:
                keys = chain(before, event.tokens, self.block_size)
            else:
                size, keys = event.block_size * TOKEN_BYTES, []
                for position, extra in enumerate(opaque):
                    start = mix(before, extra) if extra else before
                    keys += chain(start, event.tokens[position * size : (position + 1) * size], self.block_size)
                    before = keys[-1]
            self._hold(event, keys)

    def _hold(self, event: BlockStored, keys: list[int]) -> None:
        table = self._tables.setdefault((event.group, event.medium), {})
        held = self._keys[event.medium]
        known = len(table)
        hashes = event.block_hashes
        each = event.block_size // self.block_size
        values: list[int] | list[tuple[int, ...]] = keys
        if each > 1:
            values = [tuple(keys[at : at + each]) for at in range(0, len(keys), each)]
        if not self._knows_any(event.group, hashes) and len(set(hashes)) == len(hashes):
            table.update(zip(hashes, values, strict=True))
            held.add_all(keys)
        else:
            for at, engine_hash in enumerate(hashes):
                named = self._find(event.group, engine_hash)
                if named is not None and _last_key(named) != keys[(at + 1) * each - 1]:
                    self.conflicts += len(hashes) - at
                    break
                if engine_hash in table:
                    self._copy(event.group, event.medium, engine_hash)
                else:
                    table[engine_hash] = values[at]
                    held.add_all(keys[at * each : (at + 1) * each])
        self._entries += len(table) - known

    def _place_pages(self, event: BlockStored, before: int | Page, opaque: list[bytes] | None) -> None:
        tree = self._trees.setdefault(event.group, PageTree(self.block_size, self._keys))
        table = self._tables.setdefault((event.group, event.medium), {})
        known = len(table)
        size = event.block_size * TOKEN_BYTES
        for position, engine_hash in enumerate(event.block_hashes):
            parent = before if isinstance(before, Page) else None
            base = before.base if isinstance(before, Page) else before
            tokens = event.tokens[position * size : (position + 1) * size]
            if opaque and opaque[position]:  # a block of its own from here on; whole blocks of it are still found
                base = mix(base, opaque[position])
            named = self._find(event.group, engine_hash)
            page = tree.insert(engine_hash, base, parent, tokens)
            if page is not None and named is not None and named is not page and _last_key(named) != page.key:
                tree.release(page, event.medium)
                page = None
            if page is None:
                self.conflicts += len(event.block_hashes) - position
                break
            before = page if page.key is None else page.key
            if engine_hash in table:
                self._copy(event.group, event.medium, engine_hash)
            else:
                table[engine_hash] = page
                tree.hold(page, event.medium)
        self._entries += len(table) - known

    def _placeholder(self, event: BlockStored) -> None:
        table = self._tables.setdefault((event.group, event.medium), {})
        for engine_hash in event.block_hashes:
            value = self._find(event.group, engine_hash)
            if value is None or self._entries >= self.max_blocks:
                self.skipped += 1
            elif engine_hash in table:
                self._copy(event.group, event.medium, engine_hash)
            else:
                table[engine_hash] = value
                self._entries += 1
                if isinstance(value, Page):
                    self._trees[event.group].hold(value, event.medium)
                else:
                    self._keys[event.medium].add_all([value] if isinstance(value, int) else list(value))

    def _copy(self, group: int | None, tier: Tier, engine_hash: EngineHash) -> None:
        if self.counts_copies:
            copies = self._copies.setdefault((group, tier), {})
            copies[engine_hash] = copies.get(engine_hash, 0) + 1

    def _knows_any(self, group: int | None, hashes: list[EngineHash]) -> bool:
        tables = (self._tables.get((group, tier)) for tier in Tier)
        return any(table and not table.keys().isdisjoint(hashes) for table in tables)

    def _find(self, group: int | None, engine_hash: EngineHash) -> _Value | None:
        for tier in Tier:
            table = self._tables.get((group, tier))
            if table is not None and (value := table.get(engine_hash)) is not None:
                return value
        return None

    def _removed(self, event: BlockRemoved) -> None:
        where = (event.group, event.medium)
        table = self._tables.get(where)
        if table is None:
            self.unknown_removals += len(event.block_hashes)
            return
        copies = self._copies.get(where)
        held = self._keys[event.medium]
        for engine_hash in event.block_hashes:
            if copies and (surplus := copies.get(engine_hash)):
                if surplus > 1:
                    copies[engine_hash] = surplus - 1
                else:
                    del copies[engine_hash]
                continue
            value = table.pop(engine_hash, None)
            if value is None:
                self.unknown_removals += 1
                continue
            self._entries -= 1
            if isinstance(value, int):
                held.discard(value)
            elif isinstance(value, Page):
                self._trees[event.group].release(value, event.medium)
            else:
                held.discard_all(value)


def _last_key(value: _Value) -> int | None:
    """The key of the last of the router's blocks that an engine block stands for; None for a page within a block."""
    if isinstance(value, Page):
        return value.key
    return value if isinstance(value, int) else value[-1]
