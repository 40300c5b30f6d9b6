"""Ids put together from cached pieces equal the ids of the whole text, for every tokenizer shape that is cut."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Regex as TokenizerRegex

from router.blocks import pack, unpack
from router.prompt import tokenizer as segments
from router.prompt.model import load_model
from router.prompt.shapes import CL100K, O200K, QWEN, matcher
from router.prompt.tokenizer import HuggingFace, SegmentCache, SegmentTokenizer, cutting_of

CORPUS = ["the quick brown fox\njumps over  the lazy dog's back 1234 times\r\n\tdef f(x):\n    return x + 1\n"] * 3
CORPUS += ["こんにちは 世界 é ñ ü 🎉 <tool>\n</tool> !!! ...\n\n\nEnd\n"]
MARKS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|im|>"]


def trained(
    pre: Any,
    *,
    normalizer: Any = None,
    post: Any = None,
    unigram: bool = False,
    **flags: bool,
) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram() if unigram else models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre is not None:
        tokenizer.pre_tokenizer = pre
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer: Any = (
        trainers.UnigramTrainer(vocab_size=400, show_progress=False, unk_token="<unk>", special_tokens=["<unk>"])
        if unigram
        else trainers.BpeTrainer(vocab_size=500, show_progress=False, initial_alphabet=alphabet)
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokens = [AddedToken(mark, **{"normalized": False, "special": True, **flags}) for mark in MARKS]
    tokenizer.add_tokens(tokens)
    if post is not None:
        tokenizer.post_processor = post
    return tokenizer


def split(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(TokenizerRegex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def sentencepiece(scheme: str, *, unigram: bool = False, nfkc: bool = False, **flags: bool) -> Tokenizer:
    """As converted SentencePiece models are: bytes for what the vocabulary lacks, Metaspace, hardly any alphabet."""
    if unigram:
        words = ["▁", "▁the", "▁T", "he", "x", "=", "▁def", "a", "b", "word", "é", "!", "▁1", "2", "3", "."]
        table = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -20.0) for byte in range(256))]
        table += [(word, -2.0 - i / 3) for i, word in enumerate(words)]
        tokenizer = Tokenizer(models.Unigram(table, unk_id=0, byte_fallback=True))
    else:
        symbols = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁Thexdfabwor=123.!é"]
        merges = [("▁", "T"), ("h", "e"), ("▁T", "he"), ("w", "o"), ("wo", "r"), ("wor", "d"), ("▁", "▁"), ("▁▁", "▁▁")]
        vocab = {symbol: i for i, symbol in enumerate([*symbols, *("".join(merge) for merge in merges)])}
        tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if nfkc:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(TokenizerRegex(" {2,}"), " ")]
        )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=unigram)
    tokenizer.add_tokens([AddedToken(mark, **{"normalized": False, "special": True, **flags}) for mark in MARKS])
    return tokenizer


def wordpiece(normalizer: Any) -> Tokenizer:
    pieces = ["[UNK]", "the", "quick", "fox", "x", "=", "1", "##2", "##3", "a", "b", "word", "e", "!", ".", "##s", "'"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_tokens([AddedToken(mark, normalized=False, special=True) for mark in MARKS])
    return tokenizer


BOS = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 500)])
SHAPES: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "gpt2 prefix space": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "cl100k": lambda: trained(split(CL100K)),
    "qwen NFC": lambda: trained(split(QWEN), normalizer=normalizers.NFC()),
    "o200k": lambda: trained(split(O200K)),
    "bos": lambda: trained(split(CL100K), post=BOS),
    "metaspace always": lambda: trained(pre_tokenizers.Metaspace(prepend_scheme="always")),
    "metaspace never": lambda: trained(pre_tokenizers.Metaspace(prepend_scheme="never")),
    "metaspace first": lambda: trained(pre_tokenizers.Metaspace(prepend_scheme="first")),
    "unigram first": lambda: trained(pre_tokenizers.Metaspace(prepend_scheme="first"), unigram=True),
    **{
        f"byte fallback {scheme}{kind}": partial(sentencepiece, scheme, unigram=bool(kind))
        for scheme in ("first", "always", "never")
        for kind in ("", " unigram")
    },
    "sentencepiece NFKC": lambda: sentencepiece("first", nfkc=True),
    "sentencepiece rstrip": lambda: sentencepiece("first", rstrip=True),
    "wordpiece": lambda: wordpiece(normalizers.BertNormalizer()),
    "wordpiece NFD": lambda: wordpiece(normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])),
    "bytes NFKC": lambda: trained(split(CL100K), normalizer=normalizers.NFKC()),
    "bytes lowercase": lambda: trained(split(QWEN), normalizer=normalizers.Lowercase()),
    "gpt2 rstrip normalized": lambda: trained(pre_tokenizers.ByteLevel(), rstrip=True, normalized=True),
    "prepend": lambda: trained(
        None, normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ),
    "strip": lambda: trained(pre_tokenizers.Whitespace(), normalizer=normalizers.Strip()),
    "rstrip token": lambda: trained(split(CL100K), rstrip=True),
    "normalized, no normalizer": lambda: trained(split(CL100K), normalized=True),
    "normalized NFC": lambda: trained(split(QWEN), normalizer=normalizers.NFC(), normalized=True),
}
REFUSED: dict[str, Callable[[], Tokenizer]] = {
    "lstrip": lambda: trained(split(CL100K), lstrip=True),
    "single word": lambda: trained(split(CL100K), single_word=True),
    "byte fallback lstrip": lambda: sentencepiece("first", lstrip=True),
    "byte fallback single word": lambda: sentencepiece("never", single_word=True),
    "lstrip and rstrip": lambda: trained(split(QWEN), lstrip=True, rstrip=True),
    "normalized NFKC": lambda: trained(split(QWEN), normalizer=normalizers.NFKC(), normalized=True),
    "normalized lowercase": lambda: trained(split(QWEN), normalizer=normalizers.Lowercase(), normalized=True),
    "normalized and prepend": lambda: trained(None, normalizer=normalizers.Prepend("▁"), normalized=True),
}

FRAGMENTS = ["\n", "\n\n", " ", "  ", "\r\n", "a", "The", "x = 1", "'s", "1234", "!\n", "é", "e\u0301", "世界", "🎉"]
FRAGMENTS += ["<|im", "_start|>", "</", "\u3000", "\t", "\x85", "_\nDef", ".\n", "word\nword", "a b\nc"]
fragments = st.sampled_from(MARKS + FRAGMENTS)
texts = st.lists(st.one_of(fragments, st.text(max_size=4)), max_size=60).map("".join)


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "PIECE_CHARS", 4)
    monkeypatch.setattr(segments, "SPAN_CHARS", 24)


@pytest.fixture(scope="module", params=SHAPES)
def shape(request: pytest.FixtureRequest) -> Tokenizer:
    return SHAPES[request.param]()


def segmented(tokenizer: Tokenizer, kept: SegmentCache | None = None) -> SegmentTokenizer:
    return SegmentTokenizer(cutting_of(tokenizer), HuggingFace(tokenizer), kept)


def whole(tokenizer: Tokenizer, text: str, special: bool = False) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=special).ids)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(text=texts, special=st.booleans())
def test_pieces_give_the_whole_texts_ids(shape: Tokenizer, text: str, special: bool) -> None:
    cut = segmented(shape)
    assert cut.unsupported is None
    assert "".join(cut.cut(text)) == text
    expected = whole(shape, text, special)
    assert unpack(cut.encode(text, special)) == expected
    assert unpack(cut.encode(text, special)) == expected  # now from the cache


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(start=texts, ends=st.lists(texts, min_size=2, max_size=4))
def test_spans_hold_whatever_follows_them(shape: Tokenizer, start: str, ends: list[str]) -> None:
    cut = segmented(shape)
    for end in ends:
        for length in (len(start), len(start) // 2):
            text = start[:length] + end
            assert unpack(cut.encode(text)) == whole(shape, text)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(text=texts)
def test_real_tokenizers(real_directory: Path, text: str) -> None:
    model, tokenizer = _real(real_directory)
    real_marks = text.replace("<|im|>", "<|eot_id|>").replace("<s>", "<｜User｜>")
    assert unpack(model.encode(real_marks)) == whole(tokenizer, real_marks)


@cache
def _real(directory: Path) -> tuple[SegmentTokenizer, Tokenizer]:
    loaded = load_model(directory).tokenizer
    assert loaded.unsupported is None
    return loaded, Tokenizer.from_file(str(directory / "tokenizer.json"))


@pytest.mark.parametrize("name", REFUSED)
def test_other_shapes_are_encoded_whole(name: str) -> None:
    tokenizer = REFUSED[name]()
    cut = segmented(tokenizer)
    text = "a <s> b <|im_end|>\nword</s>"
    assert cut.unsupported is not None
    assert cut.cut(text) == [text]
    assert unpack(cut.encode(text)) == whole(tokenizer, text)


def test_truncating_tokenizer_is_refused() -> None:
    tokenizer = SHAPES["cl100k"]()
    tokenizer.enable_truncation(5)
    assert segmented(tokenizer).unsupported == "truncation or padding is set in tokenizer.json"


@settings(max_examples=200)
@given(
    contents=st.lists(st.text("ab<|", min_size=1, max_size=4), min_size=1, max_size=8),
    text=st.text("ab<|", max_size=30),
)
def test_matcher_finds_leftmost_longest(contents: list[str], text: str) -> None:
    pattern = matcher(contents)
    assert pattern is not None
    found = [match.group() for match in pattern.finditer(text)]
    expected, at = [], 0
    while at < len(text):
        here = [content for content in contents if text.startswith(content, at)]
        expected += [max(here, key=len)] if here else []
        at += len(max(here, key=len)) if here else 1
    assert found == expected


def test_cache_is_bounded_in_bytes_and_drops_the_oldest() -> None:
    kept = SegmentCache(max_bytes=10_000)
    for i in range(100):
        kept.keep([f"piece {i}"], [pack([i] * 50)])
        kept.find(["piece 0"])
    assert kept.bytes <= 10_000
    assert 0 < len(kept) < 100
    assert kept.find(["piece 0"]) == [pack([0] * 50)]
    assert kept.find(["piece 1"]) == [None]
    kept.keep(["huge"], [bytes(5_000)])
    assert kept.find(["huge"]) == [None]


def test_growing_text_encodes_only_its_end(tiny_tokenizer: Tokenizer) -> None:
    cut = segmented(tiny_tokenizer)
    text = "".join(f"line {i} of a long text\nand more\n" for i in range(200))
    cut.encode(text)
    encoding = cut.begin(text + "tail")
    assert encoding.missing_chars < 60


def test_threads_share_the_cache(tiny_tokenizer: Tokenizer) -> None:
    cut = segmented(tiny_tokenizer, SegmentCache(20_000))
    lines = [f"<|im_start|>user\nthread text {i}<|im_end|>\n" * 5 for i in range(40)]
    expected = [whole(tiny_tokenizer, line) for line in lines]
    wrong: list[str] = []

    def work() -> None:
        for line, ids in zip(lines, expected, strict=True):
            if unpack(cut.encode(line)) != ids:
                wrong.append(line)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
