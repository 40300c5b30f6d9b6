"""Engine pages smaller than the router's blocks, gathered into blocks (SGLang's pages of 1..8 tokens).

A block of B tokens is B/p pages in a row, and it is held in a tier only while every one of them is. Pages form a
tree: after each page of a block the path may fork. `ready` carries down the path what a page and all those before it
in its block have in common; the last page's `ready` is the block's.

About 300 bytes a page: at page size 1 that is 300 bytes a token, which is why `--page-size 16` or more is advised.
"""

from __future__ import annotations

from collections.abc import Iterator

from router.blocks import TOKEN_BYTES, chain
from router.index.held import HeldKeys
from router.index.types import Tier
from router.index.wire import EngineHash

_EVERY_TIER = (1 << len(Tier)) - 1


class Page:
    """One engine page. `base`: the key before its block; `filled`: bytes of tokens from its block's start to its end;
    `key`: the block's, on the last page only."""

    __slots__ = ("_next", "_prev", "base", "child", "filled", "hash", "held", "key", "parent", "ready", "tokens")

    def __init__(self, engine_hash: EngineHash, base: int, parent: Page | None, tokens: bytes) -> None:
        self.hash = engine_hash
        self.base = base
        self.parent = parent
        self.tokens = tokens
        self.filled: int = len(tokens) + (0 if parent is None else parent.filled)
        self.key: int | None = None
        self.held = 0
        self.ready = 0
        self.child: Page | None = None
        self._next: Page | None = None
        self._prev: Page | None = None
        if parent is not None:
            self._next = parent.child
            if self._next is not None:
                self._next._prev = self
            parent.child = self

    def children(self) -> Iterator[Page]:
        """The pages that follow this one within its block."""
        page = self.child
        while page is not None:
            yield page
            page = page._next

    def block_tokens(self) -> bytes:
        """Tokens of the block from its start to the end of this page, packed."""
        parts: list[bytes] = []
        page: Page | None = self
        while page is not None:
            parts.append(page.tokens)
            page = page.parent
        return b"".join(reversed(parts))

    def unlink(self) -> None:
        """Leave the parent's list of children."""
        if self._next is not None:
            self._next._prev = self._prev
        if self._prev is not None:
            self._prev._next = self._next
        elif self.parent is not None:
            self.parent.child = self._next


class PageTree:
    """The pages of one cache group. `keys[tier]` is told which blocks become complete and which break."""

    def __init__(self, block_size: int, keys: dict[Tier, HeldKeys]) -> None:
        self._block_size = block_size
        self._keys = keys
        self._pages: dict[EngineHash, Page] = {}

    def __len__(self) -> int:
        return len(self._pages)

    def get(self, engine_hash: EngineHash) -> Page | None:
        """A page that is held, or that stands before one that is."""
        return self._pages.get(engine_hash)

    def insert(self, engine_hash: EngineHash, base: int, parent: Page | None, tokens: bytes) -> Page | None:
        """The page named `engine_hash`, made if need be. `parent` is None for the first page of a block.

        None when a page of that name stands for other tokens or another path.
        """
        page = self._pages.get(engine_hash)
        if page is not None:
            if page.base != base or page.parent is not parent or page.tokens != tokens:
                return None
        else:
            page = self._pages[engine_hash] = Page(engine_hash, base, parent, tokens)
            if page.filled == TOKEN_BYTES * self._block_size:
                page.key = chain(base, page.block_tokens(), self._block_size)[0]
        return page

    def hold(self, page: Page, tier: Tier) -> None:
        """`page` is in `tier` now."""
        page.held |= 1 << tier
        self._refresh(page)

    def release(self, page: Page, tier: Tier) -> None:
        """`page` is not in `tier` any more; forgotten once it is nowhere and no page of its block needs it."""
        page.held &= ~(1 << tier)
        self._refresh(page)
        last: Page | None = page
        while last is not None and not last.held and last.child is None:
            del self._pages[last.hash]
            last.unlink()
            last = last.parent

    def clear(self) -> None:
        """Forget every page."""
        self._pages.clear()

    def _refresh(self, page: Page) -> None:
        pending = [page]
        while pending:
            page = pending.pop()
            ready = page.held & (_EVERY_TIER if page.parent is None else page.parent.ready)
            changed = ready ^ page.ready
            if not changed:
                continue
            page.ready = ready
            if page.key is not None:
                for tier, keys in self._keys.items():
                    if changed >> tier & 1:
                        (keys.add if ready >> tier & 1 else keys.discard)(page.key)
            pending.extend(page.children())
