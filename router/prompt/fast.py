"""`tiktoken` in the place of `tokenizers`, where both were seen to give the same ids: it is smaller and faster.

Asked for: a byte-level BPE with split patterns that are known, and added tokens that are all matched literally. Shown
when a model is loaded: every merged token of the vocabulary comes out as itself (`tiktoken` takes a whole word from
its table, `tokenizers` builds it from merges), and a corpus of odd texts is encoded equally. Text with characters
whose class may differ between the two libraries' Unicode tables is split by `tokenizers`, and each word encoded by
`tiktoken`. So the vocabulary of `tokenizers` (50 MB for 150,000 tokens) need not stay.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers

from router.blocks import pack
from router.prompt.shapes import CL100K, DEEPSEEK, O200K, QWEN, matcher, parts, shape_of
from router.prompt.stable import numbers, printed, stable

_CORPUS = (
    "def f(x: int) -> str:\n    return f'{x:>8}'  # it's, WE'LL, they'VE\r\n\r\n\t\tclass ABCdef_9: pass\n",
    '{"path": "/a/b-c_d.py", "n": 12345678.90, "list": [null, true, "\\n\\u00e9"]}   \n \n\n  x',
    "The quick brown fox's 1000000 jumps!!! ... ??? --- *** === ((())) </div>\n```python\n>>> 1+1\n```\n",
    "Größe, naïve café; Привет мир, Ελληνικά; 世界、こんにちは。カタカナ 한국어 “quotes” – dash…\u00a0nbsp\u3000wide",
    "HTTPServer XMLHttpRequest iPhone aB Ab aBC ABc  a  b   c    \n\n\n\n    d\t\te \x00\x01\x7f\x85\x1c",
    "✅ done → next 🚀 │ ├── └ ﷽ ½² \U0001e2f0\U0001e2f1 \u0870\u0cf3 ꟊꟋx 👩\u200d👧 e\u0301 \u1e9e's\n",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 0123456789 =-=-=-=-=-=-=-=-= ____________ ////////// \\\\\\\\\\\\",
)


@dataclass(frozen=True, slots=True)
class Splits:
    """How a text is split into words: `apart` stands on its own, the rest is split by `pattern`.

    Only a text that `settled` matches: others `tokenizers` splits.
    """

    pattern: str
    apart: re.Pattern[str] | None
    settled: re.Pattern[str]


def _splits_of(tokenizer: Tokenizer) -> Splits | None:
    """None if no other library is known to split in the same way."""
    if tokenizer.pre_tokenizer is None:
        return None
    members = parts(json.loads(tokenizer.pre_tokenizer.__getstate__()), "pretokenizers")[:-1]
    patterns = tuple(member.get("pattern", {}).get("Regex") for member in members)
    if patterns in ((CL100K,), (QWEN,), (O200K,)):
        return Splits(patterns[0], None, stable())
    if patterns == DEEPSEEK:
        # Numbers first, then these letters, which are no numbers: one pattern. What the third pattern does not match is
        # neither letter, mark, number, punctuation, symbol nor white space: `printed` has none of it.
        return Splits(DEEPSEEK[2], re.compile(f"[{numbers()}]{{1,3}}|{DEEPSEEK[1]}"), printed())
    return None


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a FastEncoder is built from: read from a tokenizer, whose memory is free before the encoder's is taken.

    `words`: the spellings of all tokens, joined, `sizes[n]` bytes each; `ids[n]` is the token's id.
    """

    splits: Splits
    words: bytes
    sizes: array[int]
    ids: array[int]
    added: dict[int, str]
    cuts: tuple[str, ...]
    normalizer: Any
    splitter: Any
    expected: list[bytes]


class FastEncoder:
    """An Encoder that keeps the split rules of `tokenizers`, not the vocabulary."""

    def __init__(self, recipe: Recipe, encoding: Any) -> None:
        self._normalizer = recipe.normalizer
        self._split = recipe.splitter.pre_tokenize_str
        self._apart = None if recipe.splits.apart is None else recipe.splits.apart.finditer
        self._settled = recipe.splits.settled.fullmatch
        self._special = matcher(recipe.cuts)
        self._packed = {content: pack((number,)) for number, content in recipe.added.items()}
        self._bytes = {number: _spelled(content) for number, content in recipe.added.items()}
        self._encode = encoding.encode_ordinary
        self._encode_word = encoding._encode_single_piece
        self._decode = encoding.decode_single_token_bytes

    def encode(self, pieces: Sequence[str]) -> list[bytes]:
        return [self._piece(piece) for piece in pieces]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self._token, ids)).decode("utf-8", "replace")

    def _piece(self, piece: str) -> bytes:
        """A piece has an added token at its beginning or none."""
        special = self._special.match(piece) if self._special is not None else None
        head = b""
        if special is not None:
            head = self._packed[special.group()]
            piece = piece[special.end() :]
        if self._normalizer is not None and not piece.isascii():
            piece = self._normalizer.normalize_str(piece)
        if self._apart is None:
            ids = self._encode(piece) if piece.isascii() or self._settled(piece) else self._by_words(piece)
        else:
            ids = self._by_runs(piece) if self._settled(piece) else self._by_words(piece)
        return head + pack(ids)

    def _by_runs(self, piece: str) -> list[int]:
        assert self._apart is not None
        encode, encode_word = self._encode, self._encode_word
        ids: list[int] = []
        at = 0
        for run in self._apart(piece):
            begin, end = run.span()
            if begin > at:
                ids += encode(piece[at:begin])
            ids += encode_word(piece[begin:end])
            at = end
        ids += encode(piece[at:])
        return ids

    def _by_words(self, piece: str) -> list[int]:
        encode, ids = self._encode_word, []
        for _, (begin, end) in self._split(piece):
            ids += encode(piece[begin:end])
        return ids

    def _token(self, number: int) -> bytes:
        spelled = self._bytes.get(number)
        if spelled is not None:
            return spelled
        try:
            return self._decode(number)  # type: ignore[no-any-return]
        except KeyError:
            return b""


def recipe_of(tokenizer: Tokenizer) -> Recipe | None:
    """How to encode the tokenizer's pieces (see SegmentTokenizer.cut) without it; None if that is not known.

    Takes about a second: it reads the whole vocabulary.
    """
    try:
        import tiktoken  # noqa: F401
    except ImportError:
        return None
    shape = shape_of(tokenizer)
    splits = _splits_of(tokenizer)
    added = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()}
    if splits is None or not shape.line_safe or len(shape.cuts) != len(added):
        return None
    if not isinstance(tokenizer.decoder, decoders.ByteLevel):
        return None
    table = _vocabulary(tokenizer)
    if table is None or not _in_order(table):
        return None
    expected = tokenizer.encode_batch(_pieces(shape.cuts), add_special_tokens=False)
    return Recipe(
        splits,
        b"".join(table),
        array("I", map(len, table)),
        array("I", table.values()),
        added,
        shape.cuts,
        tokenizer.normalizer,
        tokenizer.pre_tokenizer,
        [pack(one.ids) for one in expected],
    )


def build(recipe: Recipe) -> FastEncoder | None:
    """The encoder; None if its ids are not those that the tokenizer gave."""
    import tiktoken

    begins = accumulate(recipe.sizes, initial=0)
    sized = zip(begins, recipe.sizes, recipe.ids, strict=False)
    ranks = {recipe.words[begin : begin + size]: number for begin, size, number in sized}
    encoding = tiktoken.Encoding("router", pat_str=recipe.splits.pattern, mergeable_ranks=ranks, special_tokens={})
    ranks.clear()  # the encoding keeps the dict, but encodes from a table of its own: 25 MB for 150,000 tokens
    encoder = FastEncoder(recipe, encoding)
    return encoder if encoder.encode(_pieces(recipe.cuts)) == recipe.expected else None


def _pieces(cuts: Sequence[str]) -> list[str]:
    """Odd texts, and the added tokens in front of some."""
    pieces = [text[begin:] for text in _CORPUS for begin in range(0, len(text), 3)]
    return pieces + [cut + text for cut in cuts[:40] for text in ("", "\nuser\n", " x")]


def _in_order(table: dict[bytes, int]) -> bool:
    """Whether ids may serve as ranks: none is there twice, and the token that is merged first has the smaller."""
    merged = [number for word, number in table.items() if len(word) > 1]
    return len(set(table.values())) == len(table) and all(earlier < later for earlier, later in pairwise(merged))


def _spelled(content: str) -> bytes:
    """An added token's bytes: as `tokenizers` decodes it, by the byte alphabet if it has no other characters."""
    alphabet = _alphabet()
    try:
        return bytes(map(alphabet.__getitem__, content))
    except KeyError:
        return content.encode()


@cache
def _alphabet() -> dict[str, int]:
    """Byte-level BPE's character -> byte: printable Latin-1 stands for itself, the rest for U+0100 and on, in order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    table = {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
    assert set(table) == set(pre_tokenizers.ByteLevel.alphabet())
    return table


def _vocabulary(tokenizer: Tokenizer) -> dict[bytes, int] | None:
    """Spelling -> id: single bytes first, then merges in order. None if a token can't be reached."""
    model = tokenizer.model
    layout = json.loads(model.__getstate__())
    if layout.get("unk_token") or layout.get("continuing_subword_prefix") or layout.get("end_of_word_suffix"):
        return None
    vocab: dict[str, int] = layout["vocab"]
    alphabet = _alphabet()
    ordered = sorted(alphabet, key=alphabet.__getitem__)
    for merge in layout["merges"]:
        ordered.append("".join(merge) if isinstance(merge, list) else merge.replace(" ", "", 1))
    if layout.get("ignore_merges"):
        ordered += sorted(vocab, key=vocab.__getitem__)
    ids: dict[bytes, int] = {}
    for token in dict.fromkeys(ordered):
        number = vocab.get(token)
        if number is None:
            return None
        try:
            spelled = bytes(map(alphabet.__getitem__, token))
        except KeyError:
            continue  # an added token that the vocabulary lists too
        found = model.tokenize(token)
        if len(found) != 1 or found[0].id != number:
            return None
        ids[spelled] = number
    return ids
