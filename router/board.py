"""Memory that the workers of one router share: each writes its own row and reads the others'.

A row, all numbers u64:

| bytes | content |
|---|---|
| 0..32 | the state's version (0: nobody), its length, its xxh3_64; bytes ever written to the ring |
| 64.. | the state, whole each time it is told |
| then | a ring of messages, each: length, xxh3_64, bytes |

Nobody waits for anybody: who reads while another writes sees it by the hash. A state is then read the next time;
messages that were overwritten before they were read are lost. Both are hints only: losing one costs time, no answer.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Iterator

from xxhash import xxh3_64_intdigest as checksum

STATE_BYTES = 1 << 20
RING_BYTES = 4 << 20
_MESSAGE = struct.Struct("<2Q")
_VERSION, _LENGTH, _HASH, _WRITTEN = range(4)
_STATE = 64
_RING = _STATE + STATE_BYTES
ROW_BYTES = _RING + RING_BYTES
LARGEST_MESSAGE = RING_BYTES // 4


def make_board(rows: int) -> int:
    """A descriptor of fresh memory for so many rows, to be inherited by the workers. Untouched pages cost nothing."""
    if hasattr(os, "memfd_create"):
        made = os.memfd_create("prefix-router-workers")
    else:
        with tempfile.TemporaryFile() as file:
            made = os.dup(file.fileno())
    os.ftruncate(made, rows * ROW_BYTES)
    return made


class Row:
    """One worker's row, as its writer or as one of its readers."""

    def __init__(self, memory: mmap.mmap, at: int) -> None:
        self._memory = memory
        self._at = at
        # Not struct.pack_into: it writes zeros first, which others would see. A view's item is written at once.
        self._head = memoryview(memory)[at : at + 32].cast("Q")
        self._version = 0
        self._read = self._written

    def clear(self) -> None:
        """Its worker is gone: it has no work any more."""
        self._head[_VERSION] = 0

    def tell(self, state: bytes) -> None:
        """Replace the state. Raises ValueError for one that doesn't fit."""
        if len(state) > STATE_BYTES:
            raise ValueError(f"a worker's state of {len(state)} bytes is larger than {STATE_BYTES}")
        self._version += 1
        start = self._at + _STATE
        self._memory[start : start + len(state)] = state
        self._head[_LENGTH], self._head[_HASH] = len(state), checksum(state)
        self._head[_VERSION] = self._version

    def heard(self) -> bytes | None:
        """The state, if it is another than at the last call; empty when its worker is gone."""
        version, length, hashed = self._head[_VERSION], self._head[_LENGTH], self._head[_HASH]
        if version == self._version:
            return None
        if not version:
            self._version = 0
            return b""
        start = self._at + _STATE
        state = self._memory[start : start + length]
        if checksum(state) != hashed:
            return None
        self._version = version
        return state

    def say(self, message: bytes) -> None:
        """Add a message; one larger than LARGEST_MESSAGE is left out."""
        if len(message) > LARGEST_MESSAGE:
            return
        data = _MESSAGE.pack(len(message), checksum(message)) + message
        written = self._written
        place = written % RING_BYTES
        first = data[: RING_BYTES - place]
        start = self._at + _RING
        self._memory[start + place : start + place + len(first)] = first
        self._memory[start : start + len(data) - len(first)] = data[len(first) :]
        self._head[_WRITTEN] = written + len(data)

    def said(self) -> Iterator[bytes]:
        """The messages since the last call, as far as they are still there."""
        end = self._written
        if end == self._read:
            return
        if not 0 < end - self._read <= RING_BYTES:
            self._read = end
        while self._read < end:
            length, hashed = _MESSAGE.unpack(self._bytes(self._read, _MESSAGE.size))
            message = self._bytes(self._read + _MESSAGE.size, min(length, LARGEST_MESSAGE))
            if length > LARGEST_MESSAGE or checksum(message) != hashed:
                self._read = end
                return
            self._read += _MESSAGE.size + length
            yield message

    @property
    def _written(self) -> int:
        return self._head[_WRITTEN]

    def _bytes(self, position: int, length: int) -> bytes:
        start, place = self._at + _RING, position % RING_BYTES
        first = self._memory[start + place : start + min(place + length, RING_BYTES)]
        return first + self._memory[start : start + length - len(first)]


class Board:
    """All rows. `descriptor`: from make_board, here or in the process that started this one."""

    def __init__(self, descriptor: int, rows: int) -> None:
        memory = mmap.mmap(descriptor, rows * ROW_BYTES)
        self.rows = [Row(memory, number * ROW_BYTES) for number in range(rows)]
