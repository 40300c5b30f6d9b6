"""A text without the text: enough to find where a later version of it differs, and to show what kind of text was there.

Kept of a text: its hash, a 32-bit hash for every 64 characters (more when it is long: at most 512 hashes), and of its
beginning one byte a character, the *shape*. A shape's byte says the character's class and a little more: a letter is
one of 8 groups, a digit one of 5, drawn anew in each process; other ASCII characters are themselves. That pins a
difference to a character, shows "2024-05-15" as "0000-00-00", and can't be read back.
"""

from __future__ import annotations

import random
import string
from array import array
from dataclasses import dataclass
from typing import Any

import msgspec
import xxhash

CHUNK_CHARS = 64
MAX_CHUNKS = 512
SHAPE_CHARS = 512
"""Characters of shape kept of an ordinary text; texts whose changes matter most (system prompts) get more."""

_LOWER, _UPPER, _DIGIT, _OTHER = 0x80, 0x90, 0xA0, 0xB0
_hash32 = xxhash.xxh32_intdigest
_hash64 = xxhash.xxh3_64_intdigest


def _groups(alphabet: str, groups: int) -> dict[str, int]:
    order = list(alphabet)
    random.SystemRandom().shuffle(order)
    return {character: place % groups for place, character in enumerate(order)}


class _Wide(dict[int, int]):
    """Code point -> shape byte; characters beyond ASCII are one class in 64 groups, worked out when first seen."""

    def __missing__(self, point: int) -> int:
        if len(self) > 1 << 14:
            self.clear()
            self.update(_CODES)
        code = self[point] = _OTHER + _hash32(point.to_bytes(4, "little"), _SEED) % 64
        return code


_SEED = random.SystemRandom().getrandbits(32)
# 7 -> 8 and 9 -> 0 never share a group: counters change by one.
_TURN = random.SystemRandom().randrange(5)
_CODES: dict[int, int] = (
    {point: point for point in range(128)}
    | {ord(c): _LOWER + group for c, group in _groups(string.ascii_lowercase, 8).items()}
    | {ord(c): _UPPER + group for c, group in _groups(string.ascii_uppercase, 8).items()}
    | {ord(c): _DIGIT + (int(c) + _TURN) % 5 for c in string.digits}
)
_ASCII = bytes(_CODES[point] for point in range(128)) + bytes(range(128, 256))
_WIDE = _Wide(_CODES)
_SHOWN = "".join(
    chr(code) if 32 <= code < 127 else " " if code < 128 else "a" if code < _UPPER else
    "A" if code < _DIGIT else "0" if code < _OTHER else "a"
    for code in range(256)
)  # fmt: skip


def shape(text: str) -> bytes:
    """One byte a character."""
    if text.isascii():
        return text.encode().translate(_ASCII)
    return text.translate(_WIDE).encode("latin-1")


def masked(shaped: bytes) -> str:
    """What may be shown of a shape: a for a letter, A for a capital, 0 for a digit, white space as blanks."""
    return shaped.decode("latin-1").translate(_SHOWN_TABLE)


_SHOWN_TABLE: dict[int, Any] = dict(enumerate(_SHOWN))


class TextPrint(msgspec.Struct, frozen=True, gc=False):
    """What is kept of one text. `step`: characters a chunk. `kept`: its beginning, when texts may be shown."""

    hash: int
    chars: int
    step: int
    chunks: array[int]
    shape: bytes
    kept: str | None = None

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        chunks = 80 + 4 * len(self.chunks) if self.chunks else 0
        return 140 + chunks + len(self.shape) + (len(self.kept) if self.kept else 0)


@dataclass(frozen=True, slots=True)
class Place:
    """Where two texts part: the first character that differs. `within`: it may be this many characters later."""

    offset: int
    within: int = 0


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


_NO_CHUNKS: array[int] = array("I")


def print_text(text: str, shape_chars: int = SHAPE_CHARS, keep_text: bool = False) -> TextPrint:
    """The print of a text. About 2 ns a character."""
    chars = len(text)
    raw = _bytes(text)
    step = CHUNK_CHARS
    while chars > step * MAX_CHUNKS:
        step *= 2
    chunks = _NO_CHUNKS
    if chars > CHUNK_CHARS:
        if len(raw) == chars:
            chunks = array("I", [_hash32(raw[at : at + step]) for at in range(0, chars, step)])
        else:
            chunks = array("I", [_hash32(_bytes(text[at : at + step])) for at in range(0, chars, step)])
    head = text[:shape_chars]
    return TextPrint(_hash64(raw), chars, step, chunks, shape(head), head if keep_text else None)


def locate(before: TextPrint, text: str) -> Place:
    """Where `text` parts from the text that `before` was taken of; they are known to differ.

    A letter that became another one of its group (1 in 8) goes unseen: then the place is that of the next difference.
    """
    start = 0
    for number, known in enumerate(before.chunks):
        start = number * before.step
        if _hash32(_bytes(text[start : start + before.step])) != known:
            break
    end = min(start + before.step, before.chars, len(text))
    old, new = before.shape[start:end], shape(text[start : min(end, len(before.shape))])
    for at, (one, other) in enumerate(zip(old, new, strict=True)):
        if one != other:
            return Place(start + at)
    seen = start + len(old)
    if seen == end:
        return Place(end) if end in (before.chars, len(text)) else Place(start, end - start)
    return Place(seen, end - seen)


def alike(before: TextPrint, text: str) -> bool:
    """Whether the texts look like versions of one another: equal pieces, the same beginning, or the same length."""
    for number, known in enumerate(before.chunks):
        start = number * before.step
        if _hash32(_bytes(text[start : start + before.step])) == known:
            return True
    head = min(16, before.chars, len(text), len(before.shape))
    if head == 16 and before.shape[:16] == shape(text[:16]):
        return True
    return abs(before.chars - len(text)) <= max(16, before.chars // 10)


_RESUME_WITHIN = 256


def resumes(before: TextPrint, text: str, at: Place) -> bool:
    """Whether `text` goes on as before after the difference: an edit, where a fork has nothing more in common."""
    first = at.offset // before.step + 1
    for number in range(first, len(before.chunks)):
        start = number * before.step
        if start + before.step > before.chars:
            break
        if _hash32(_bytes(text[start : start + before.step])) == before.chunks[number]:
            return True
    for number in range(first, min(first + 2, len(before.chunks))):
        start = number * before.step
        if start + before.step > before.chars:
            break
        for shift in range(-_RESUME_WITHIN, _RESUME_WITHIN + 1):
            piece = text[max(0, start + shift) : start + shift + before.step]
            if _hash32(_bytes(piece)) == before.chunks[number]:
                return True
    return False
