"""Records of the delta stream: what a writer sends to the `apply` script and every mirror reads.

All little-endian. A record starts with its kind (u8) and the slot it is about (u16):

| kind       | then                                                                                         |
|------------|----------------------------------------------------------------------------------------------|
| 1 DELTA    | sections: code u8 (tier << 1, plus 1 for stored), count u16, count hashes of 8 bytes          |
| 2 ASSIGN   | replica id, UTF-8: the slot is now this replica's and empty; the slot it had before is dead   |
| 3 GONE     | nothing: the replica of this slot is gone                                                     |
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from itertools import islice

from router.index.types import Delta, Tier

DELTA, ASSIGN, GONE = 1, 2, 3

_HEAD = struct.Struct("<BH")
_SECTION = struct.Struct("<BH")
_TIERS = tuple(Tier)


class RecordError(ValueError):
    """Bytes that are no record of this layout."""


def unpack_hashes(packed: bytes) -> list[int]:
    """8-byte little-endian hashes -> ints. ValueError when the length is no multiple of 8."""
    hashes = array("Q")
    hashes.frombytes(packed)
    if sys.byteorder == "big":
        hashes.byteswap()
    return hashes.tolist()


def delta_records(delta: Delta, slot: int, limit: int) -> Iterator[bytes]:
    """`delta` as DELTA records of at most `limit` hashes each: drops first (they free memory), never both in one."""
    head = _HEAD.pack(DELTA, slot)
    for stored, side in ((0, delta.dropped), (1, delta.stored)):
        parts: list[bytes] = [head]
        room = limit
        for tier, keys in side.items():
            source = iter(keys)
            while part := list(islice(source, room)):
                parts += (_SECTION.pack(tier << 1 | stored, len(part)), struct.pack(f"<{len(part)}Q", *part))
                room -= len(part)
                if not room:
                    yield b"".join(parts)
                    parts, room = [head], limit
        if room < limit:
            yield b"".join(parts)


def head_of(record: bytes) -> tuple[int, int]:
    """(kind, slot). Raises RecordError."""
    if len(record) < _HEAD.size:
        raise RecordError(f"a record of {len(record)} bytes is too short")
    kind, slot = _HEAD.unpack_from(record)
    return kind, slot


def read_delta(record: bytes) -> Delta:
    """The body of a DELTA record. Raises RecordError."""
    delta = Delta()
    at, end = _HEAD.size, len(record)
    while at < end:
        try:
            code, count = _SECTION.unpack_from(record, at)
            tier = _TIERS[code >> 1]
        except (struct.error, IndexError) as error:
            raise RecordError(f"a delta section at byte {at} cannot be read") from error
        at += _SECTION.size + 8 * count
        if at > end:
            raise RecordError("a delta section is cut off")
        side = delta.stored if code & 1 else delta.dropped
        side.setdefault(tier, []).extend(unpack_hashes(record[at - 8 * count : at]))
    return delta


def read_replica(record: bytes) -> str:
    """The replica id of an ASSIGN record."""
    return record[_HEAD.size :].decode("utf-8", "replace")
