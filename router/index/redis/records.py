"""Records of the delta stream: what a writer sends to the `apply` script and every mirror reads.

All little-endian. A record starts with its kind (u8) and the slot it is about (u16):

| kind       | then                                                                                         |
|------------|----------------------------------------------------------------------------------------------|
| 1 DELTA    | age u32 (ms when written, of the oldest change), then sections: code u8 (tier << 1, plus 1   |
|            | for stored), count u16, count hashes of 8 bytes                                              |
| 2 ASSIGN   | why u8 (types.Cleared), replica id in UTF-8: the slot is now this replica's and empty; the   |
|            | slot it had before is dead                                                                   |
| 3 GONE     | nothing: the replica of this slot is gone                                                     |
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from itertools import islice

from router.index.types import Cleared, Delta, Tier

DELTA, ASSIGN, GONE = 1, 2, 3

_HEAD = struct.Struct("<BH")
_DELTA = struct.Struct("<BHI")
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
    head = _DELTA.pack(DELTA, slot, min(0xFFFFFFFF, int(1000 * delta.age_s)))
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
    """A DELTA record. Raises RecordError."""
    at, end = _DELTA.size, len(record)
    if end < at:
        raise RecordError("a delta is cut off")
    delta = Delta(age_s=_DELTA.unpack_from(record)[2] / 1000)
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


def read_assign(record: bytes) -> tuple[str, Cleared]:
    """The replica id of an ASSIGN record, and why what was known of it is no longer true. Raises RecordError."""
    if len(record) <= _HEAD.size:
        raise RecordError("an assignment is cut off")
    why = record[_HEAD.size]
    known = Cleared(why) if Cleared.EMPTIED <= why <= Cleared.LOST else Cleared.EMPTIED
    return record[_HEAD.size + 1 :].decode("utf-8", "replace"), known
