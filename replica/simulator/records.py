"""What a simulated cache says about itself: events of a step, and the blocks that are live."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from router.blocks import TOKEN_BYTES, chain, root

Key = bytes | int
"""A block's identity in the engine: the engine's own chained digest, or an id given by a trace of block ids."""


@dataclass(slots=True)
class Stored:
    """Consecutive blocks of one sequence became cached. `tokens` is packed little-endian u32."""

    hashes: list[Key]
    parent: Key | None
    tokens: bytes
    block_size: int
    lora: str | None
    salt: str | None
    first: bool
    """True when the first hash is the sequence's block 0 (engines name the cache salt only there)."""


@dataclass(slots=True)
class Removed:
    """Blocks whose memory is used for something else now: one physical copy of each."""

    hashes: list[Key]


@dataclass(slots=True)
class Cleared:
    """Every cached block is gone."""


Event = Stored | Removed | Cleared


@dataclass(slots=True, eq=False)
class Prefix:
    """One block and, through `parent`, everything before it. Parents stay readable after their own eviction."""

    key: Key
    parent: Prefix | None
    tokens: bytes
    lora: str | None
    salt: str | None


class Live(NamedTuple):
    """A block that can be hit now, and how many physical copies of it there are."""

    prefix: Prefix
    copies: int


def own_hashes(live: Iterable[Live], model: str) -> dict[int, int]:
    """The router's chain (router.blocks) of every live block -> physical copies: what a perfect index must hold."""
    known: dict[Key, int] = {}
    copies: dict[int, int] = {}
    for block in live:
        missing = []
        prefix: Prefix | None = block.prefix
        while prefix is not None and prefix.key not in known:
            missing.append(prefix)
            prefix = prefix.parent
        for item in reversed(missing):
            size = len(item.tokens) // TOKEN_BYTES
            if item.parent is not None:
                parent = known[item.parent.key]
            else:
                parent = root(item.lora or model, block_size=size, salt=item.salt or "")
            known[item.key] = chain(parent, item.tokens, size)[0]
        own = known[block.prefix.key]
        copies[own] = copies.get(own, 0) + block.copies
    return copies
