"""Text -> token ids at the cost of the text not seen before.

The text is cut at special tokens (where that is exact: see `shapes`), and each piece's ids are kept, packed, in a
cache bounded in bytes. A step of a growing conversation then encodes its new pieces only; the rest is one dictionary
look-up and one copy per piece. Pieces are shared by all sessions: a tool list or system prompt is encoded once.

What was seen before isn't even cut again: a span of text that begins where a piece begins is kept with the ids of its
whole pieces. A cut depends on the text before it and on as many characters behind it as the longest special token
has, so the cuts that lie further than that from a span's end are the same whatever follows the span.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenizers import Tokenizer

from router.blocks import pack
from router.prompt.shapes import Shape, matcher, shape_of

# Several prompts are encoded at a time, each in a thread of ours; the library's own threads per batch would only fight
# with the event loop for the cores (measured: twice the time and twice the stalls on two cores).
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A piece longer than this is cut again between lines, where the tokenizer's shape allows it. It bounds what is encoded
# again when a piece without special tokens grows, and how long one piece keeps a thread busy (about 0.6 ms).
PIECE_CHARS = 1024
# A growing text's beginning is looked up in spans of this many characters: one look-up instead of about 80.
SPAN_CHARS = 16 * 1024
# Ids of a batch become Python objects while the GIL is held: about 1 ms for this much text.
_BATCH_CHARS = 16 * 1024
_INLINE_CHARS = 2048  # about 1 ms
_INLINE_CHARS_FAST = 4096  # about 0.5 ms, at most 2
_ENTRY_BYTES = 240  # a str's and a bytes' header and the cache's own bookkeeping, measured
_PROBES = ("a", "Hello, world 12", "x\ny")


class Encoder(Protocol):
    """What knows the vocabulary. Called from several threads."""

    def encode(self, pieces: Sequence[str]) -> list[bytes]:
        """Each piece's ids, packed, without special tokens added. UnicodeEncodeError for a lone surrogate."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens included; ids that mean nothing are left out."""
        ...


class HuggingFace:
    """An Encoder that is a `tokenizers.Tokenizer`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, pieces: Sequence[str]) -> list[bytes]:
        encoded = self._tokenizer.encode_batch_fast(list(pieces), add_special_tokens=False)
        return [pack(one.ids) for one in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def whole(self, text: str) -> bytes:
        """The text's packed ids, with special tokens added wherever the tokenizer adds them."""
        return pack(self._tokenizer.encode(text, add_special_tokens=True).ids)


class SegmentCache:
    """Piece -> packed ids, least recently used out first, bounded in bytes (keys, values and overhead). Thread-safe."""

    def __init__(self, max_bytes: int = 128 << 20) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, got {max_bytes}")
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._entries.clear()
            self.bytes = 0

    def find(self, pieces: Sequence[str]) -> list[bytes | None]:
        """One answer per piece; None where it isn't known."""
        entries = self._entries
        get, refresh = entries.get, entries.move_to_end
        found: list[bytes | None] = []
        hits = 0
        with self._lock:
            for piece in pieces:
                ids = get(piece)
                if ids is not None:
                    refresh(piece)
                    hits += 1
                found.append(ids)
            self.hits += hits
            self.misses += len(pieces) - hits
        return found

    def keep(self, pieces: Iterable[str], packed: Iterable[bytes]) -> None:
        """Adds entries; one that would fill more than an eighth of the cache alone is not kept."""
        with self._lock:
            for piece, ids in zip(pieces, packed, strict=True):
                size = _size(piece, ids)
                if piece in self._entries or size > self.max_bytes >> 3:
                    continue
                self._entries[piece] = ids
                self.bytes += size
            while self.bytes > self.max_bytes:
                piece, ids = self._entries.popitem(last=False)
                self.bytes -= _size(piece, ids)


def _size(piece: str, ids: bytes) -> int:
    widest = 1 if piece.isascii() else 4
    return len(piece) * widest + len(ids) + _ENTRY_BYTES


@dataclass(slots=True)
class Encoding:
    """A text on its way to ids: its pieces, the ids already known, and where the unknown ones are."""

    pieces: list[str]
    ids: list[bytes | None]
    missing: list[int]
    missing_chars: int
    prefix: bytes
    suffix: bytes
    text: str = ""
    spans: int = 0  # so many leading pieces are whole spans' pieces, joined

    def join(self) -> bytes:
        """The whole text's packed ids. Everything missing must have been filled in."""
        return b"".join([self.prefix, *self.ids, self.suffix])  # type: ignore[list-item]


@dataclass(frozen=True, slots=True)
class Cutting:
    """What must be known of a tokenizer to cut its texts.

    `ends`: what it puts in front and behind where special tokens are added, packed; None if it does something else.
    `vocab_size`: number of token ids, added tokens included.
    """

    shape: Shape
    ends: tuple[bytes, bytes] | None
    vocab_size: int


def cutting_of(tokenizer: Tokenizer) -> Cutting:
    """Keeps nothing of the tokenizer."""
    return Cutting(shape_of(tokenizer), _added_ends(tokenizer), tokenizer.get_vocab_size())


class SegmentTokenizer:
    """A tokenizer that remembers pieces. Thread-safe.

    `encoder` gives the ids of the tokenizer that `cutting` is of; where its `ends` are not known, it is HuggingFace.
    `unsupported` says why the text isn't cut (None: it is); such a tokenizer is still exact, only dearer.
    """

    def __init__(self, cutting: Cutting, encoder: Encoder, cache: SegmentCache | None = None) -> None:
        self.vocab_size = cutting.vocab_size
        self.fast = not isinstance(encoder, HuggingFace)
        """Whether another library than `tokenizers` encodes."""
        self.inline_chars = _INLINE_CHARS_FAST if self.fast else _INLINE_CHARS
        """New text up to this long is encoded on the event loop: a thread's turn costs more."""
        self._ends = cutting.ends
        self._encoder = encoder
        self._cache = cache if cache is not None else SegmentCache()
        shape = cutting.shape
        self.unsupported: str | None = shape.reason
        self._specials = matcher(shape.cuts)
        self._spans = SegmentCache(max(1, self._cache.max_bytes >> 1))
        self._reach = max((len(content) for content in shape.cuts), default=1)
        self._line_safe = shape.line_safe

    @property
    def cache(self) -> SegmentCache:
        return self._cache

    def forget(self) -> None:
        """Empties the caches."""
        self._cache.clear()
        self._spans.clear()

    def encode(self, text: str, add_special_tokens: bool = False) -> bytes:
        """The text's ids, packed. Special tokens spelled in the text are matched, as engines do."""
        encoding = self.begin(text, add_special_tokens)
        self.fill(encoding)
        return self.finish(encoding)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens included."""
        return self._encoder.decode(ids)

    def begin(self, text: str, add_special_tokens: bool = False) -> Encoding:
        """Cuts the text and looks its pieces up. Cheap: for the event loop."""
        prefix = suffix = b""
        if add_special_tokens:
            if self._ends is None:
                assert isinstance(self._encoder, HuggingFace)
                return Encoding([text], [self._encoder.whole(text)], [], 0, b"", b"")
            prefix, suffix = self._ends
        pieces, ids, at = self._known_spans(text)
        spans = len(pieces)
        rest = self.cut(text[at:] if at else text)
        pieces += rest
        ids += self._cache.find(rest)
        missing = [index for index, packed in enumerate(ids) if packed is None]
        chars = sum(len(pieces[index]) for index in missing)
        return Encoding(pieces, ids, missing, chars, prefix, suffix, text, spans)

    def finish(self, encoding: Encoding) -> bytes:
        """The whole text's packed ids, everything missing having been filled in; its spans are remembered."""
        self._keep_spans(encoding)
        return encoding.join()

    def _known_spans(self, text: str) -> tuple[list[str], list[bytes | None], int]:
        """The text of each known leading span's pieces, their ids, and where the rest begins."""
        pieces: list[str] = []
        ids: list[bytes | None] = []
        at = 0
        while len(text) - at >= SPAN_CHARS:
            span = text[at : at + SPAN_CHARS]
            (known,) = self._spans.find((span,))
            if known is None:
                break
            used = int.from_bytes(known[:4], "little")
            pieces.append(span[:used])
            ids.append(known[4:])
            at += used
        return pieces, ids, at

    def _keep_spans(self, encoding: Encoding) -> None:
        if self.unsupported is not None:
            return
        text, pieces = encoding.text, encoding.pieces
        index = encoding.spans
        start = sum(len(pieces[i]) for i in range(index))
        while len(text) - start >= SPAN_CHARS:
            first, end = index, start
            while end + len(pieces[index]) <= start + SPAN_CHARS - self._reach:
                end += len(pieces[index])
                index += 1
            if index == first:
                return
            packed = b"".join(encoding.ids[first:index])  # type: ignore[arg-type]
            self._spans.keep((text[start : start + SPAN_CHARS],), ((end - start).to_bytes(4, "little") + packed,))
            start = end

    def fill(self, encoding: Encoding) -> None:
        """Encodes what is missing. Releases the GIL while a batch (16 kB of text) is encoded."""
        batch: list[int] = []
        size = 0
        for index in encoding.missing:
            batch.append(index)
            size += len(encoding.pieces[index])
            if size >= _BATCH_CHARS:
                self._fill(encoding, batch)
                batch, size = [], 0
        if batch:
            self._fill(encoding, batch)
        encoding.missing, encoding.missing_chars = [], 0

    def _fill(self, encoding: Encoding, batch: list[int]) -> None:
        pieces = [encoding.pieces[index] for index in batch]
        packed = self._encoder.encode(pieces)
        for index, ids in zip(batch, packed, strict=True):
            encoding.ids[index] = ids
        self._cache.keep(pieces, packed)

    def cut(self, text: str) -> list[str]:
        """The pieces that may be encoded on their own; joined they are the text."""
        if not text:
            return []
        if self.unsupported is not None:
            return [text]
        pieces: list[str] = []
        starts = [match.start() for match in self._specials.finditer(text)] if self._specials is not None else []
        starts.append(len(text))
        begin = 0
        for end in starts:
            if end > begin:
                if end - begin > PIECE_CHARS and self._line_safe:
                    begin = self._cut_lines(text, begin, end, pieces)
                pieces.append(text[begin:end])
                begin = end
        return pieces

    def _cut_lines(self, text: str, begin: int, end: int, pieces: list[str]) -> int:
        """Cuts behind lines, at places that depend only on what lies before: a growing text keeps its pieces."""
        at = begin + PIECE_CHARS
        while (at := text.find("\n", at, end - 1)) >= 0:
            at += 1
            if text[at].isascii() and text[at].isalpha() and not text[at - 2].isspace():
                pieces.append(text[begin:at])
                begin = at
                at += PIECE_CHARS
        return begin


def _added_ends(tokenizer: Tokenizer) -> tuple[bytes, bytes] | None:
    ends: set[tuple[bytes, bytes]] = set()
    for probe in _PROBES:
        bare = tokenizer.encode(probe, add_special_tokens=False).ids
        full = tokenizer.encode(probe, add_special_tokens=True).ids
        at = next((i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare), None)
        if at is None:
            return None
        ends.add((pack(full[:at]), pack(full[at + len(bare) :])))
    return ends.pop() if len(ends) == 1 else None
