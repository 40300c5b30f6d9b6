"""Block chains of growing prompts: only the blocks not hashed before are hashed.

A prompt's ids are taken in chunks of 64 blocks. A chunk's hashes depend on its bytes and on the hash of the block
before it, so they are kept under one 64-bit hash of both: 0.3 us instead of 13 us a chunk, shared by all sessions, and
without knowing which prompt grew out of which.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict

import xxhash

from router.blocks import TOKEN_BYTES, chain

CHUNK_BLOCKS = 64

_xxh3 = xxhash.xxh3_64_intdigest


class ChainCache:
    """Remembers the hashes of whole chunks, least recently used out first (640 bytes each). For one thread."""

    def __init__(self, max_chunks: int = 1 << 15) -> None:
        if max_chunks < 1:
            raise ValueError(f"max_chunks must be at least 1, got {max_chunks}")
        self.max_chunks = max_chunks
        self._chunks: OrderedDict[tuple[int, int], array[int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._chunks)

    def extend(self, parent: int, tokens: bytes, block_size: int, hashes: list[int], max_new: int) -> int:
        """Appends hashes of `tokens` (packed) to `hashes`, which already has those of the first blocks.

        Stops after about `max_new` hashed blocks, so that a caller can let others run; returns the number of full
        blocks still to come. `parent` is the chain's root. Call it with an empty list first, and until it returns 0.
        """
        total = len(tokens) // (TOKEN_BYTES * block_size)
        chunk_bytes = CHUNK_BLOCKS * block_size * TOKEN_BYTES
        chunks = self._chunks
        whole = memoryview(tokens)
        done = len(hashes)
        parent = hashes[-1] if hashes else parent
        while done < total and max_new > 0:
            start = done * block_size * TOKEN_BYTES
            part = whole[start : start + chunk_bytes]
            if done + CHUNK_BLOCKS > total:
                hashes += chain(parent, bytes(part), block_size)
                return 0
            key = (_xxh3(part, parent), block_size)
            known = chunks.get(key)
            if known is None:
                known = array("Q", chain(parent, bytes(part), block_size))
                self._keep(key, known)
                max_new -= CHUNK_BLOCKS
            else:
                chunks.move_to_end(key)
            hashes += known
            done += CHUNK_BLOCKS
            parent = hashes[-1]
        return total - done

    def chain(self, parent: int, tokens: bytes, block_size: int) -> list[int]:
        """The same as `blocks.chain`."""
        hashes: list[int] = []
        while self.extend(parent, tokens, block_size, hashes, 1 << 30):
            pass
        return hashes

    def _keep(self, key: tuple[int, int], hashes: array[int]) -> None:
        self._chunks[key] = hashes
        if len(self._chunks) > self.max_chunks:
            self._chunks.popitem(last=False)
