"""One sequence in a simulated engine, and the engine's own opaque block hash."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from typing import Any

from router.blocks import TOKEN_BYTES

from .records import Key, Prefix

_ids = count(1)


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and what is generated for it.

    With `tokens` (packed by `array("I")`) the cache computes block keys. Without them `keys` must name every full
    block of the prompt (a trace of block ids): no hashing, no events, thousands of times faster than real time.
    """

    prompt_len: int
    max_tokens: int
    tokens: array[int] | None = None
    output: list[int] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    lora: str | None = None
    salt: str | None = None
    on_token: Callable[[Sequence], None] | None = None
    index: int = 0
    id: int = field(default_factory=_ids.__next__)

    computed: int = 0
    """Tokens whose KV exists: cached ones and those of finished steps."""
    generated: int = 0
    cached: int = 0
    """Prompt tokens taken from the cache at first admission; what usage reports."""
    admitted: bool = False
    aborted: bool = False
    arrived: float = 0.0
    started_at: float = 0.0
    first_token_at: float = 0.0
    finished_at: float = 0.0

    blocks: list[int] = field(default_factory=list)
    """Physical blocks held (block pool)."""
    registered: int = 0
    """Leading blocks that are in the cache under their key."""
    private: int = 0
    """Pages held outside the tree (radix cache)."""
    node: Any = None
    """The deepest locked tree node (radix cache)."""

    @property
    def length(self) -> int:
        """Tokens so far: prompt and generated."""
        return self.prompt_len + self.generated

    @property
    def finished(self) -> bool:
        return self.generated >= self.max_tokens


class BlockHasher:
    """sha256 chained over blocks, with a random seed per process: like an engine's, useless to anyone else."""

    def __init__(self, block_size: int, seed: bytes | None = None) -> None:
        self.block_size = block_size
        self._seed = seed or os.urandom(16)
        self._fresh = count(-1, -1)

    def extend(self, seq: Sequence, blocks: int) -> list[Key]:
        """`seq.keys`, made at least `blocks` long. Generated blocks of a block-id trace get keys nobody else has."""
        keys = seq.keys
        if len(keys) >= blocks:
            return keys
        if seq.tokens is None:
            keys.extend(next(self._fresh) for _ in range(blocks - len(keys)))
            return keys
        parent = keys[-1] if keys else self._root(seq)
        assert isinstance(parent, bytes)
        width = self.block_size
        packed = seq.tokens[len(keys) * width : blocks * width].tobytes()
        step = width * TOKEN_BYTES
        for start in range(0, len(packed), step):
            parent = sha256(parent + packed[start : start + step]).digest()
            keys.append(parent)
        return keys

    def _root(self, seq: Sequence) -> bytes:
        parts = [(part or "").encode() for part in (seq.lora, seq.salt)]
        return sha256(self._seed + b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()


def describe(seq: Sequence, index: int, block_size: int, parent: Prefix | None) -> Prefix:
    """Block `index` of a sequence with tokens, as the truth endpoint shows it."""
    assert seq.tokens is not None
    tokens = seq.tokens[index * block_size : (index + 1) * block_size].tobytes()
    return Prefix(seq.keys[index], parent, tokens, seq.lora, seq.salt)
