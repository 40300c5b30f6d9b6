"""tiktoken's ids equal those of `tokenizers` for real tokenizer files, and it isn't used where that was not shown."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from router.blocks import pack
from router.prompt.fast import FastEncoder, build, recipe_of
from router.prompt.stable import printed, stable

pytest.importorskip("tiktoken", reason="tiktoken is not installed; run: pip install 'tiktoken>=0.9'")

KNOWN = {"qwen3": True, "llama3_1": True, "gptoss": True, "deepseek_v3": True, "llama2": False}
WORDS = ["'s", "'LL", "x", "The", " the", "  ", "\n", "\r\n", "\n\n", "123", "4567", "é", "e\u0301", "世界", "!", "//"]
WORDS += ["\u017f", "'\u017f", "\u1e9e", "🎉", "\u00a0", "\x85", "\u3000", "ÀB", "\u2028", "_", "ひ", "가", "İ", "ǅ"]
WORDS += ["1", "٣", "Ⅻ", "世界ー、ゝ゛", "\u3099", "\x00\x00", "\ufeff", "+=", "x=1", " \t", "`a", "\x1c"]
WORDS += ["﷽", "\u0870", "\ua7cb", "\U0001e2f1", "👩\u200d👧", "│", "→", "\u180e", "<|im_end|>", "<|eot_id|>"]
texts = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=3)), max_size=40).map("".join)


@cache
def loaded(directory: Path) -> tuple[Tokenizer, FastEncoder | None]:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    recipe = recipe_of(tokenizer)
    return tokenizer, build(recipe) if recipe is not None else None


def test_only_proven_tokenizers(real_directory: Path) -> None:
    assert (loaded(real_directory)[1] is not None) == KNOWN[real_directory.name]


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(text=texts)
def test_ids_are_equal(real_directory: Path, text: str) -> None:
    """Pieces have an added token at their beginning or none."""
    tokenizer, encoder = loaded(real_directory)
    if encoder is None:
        return
    for piece in split_off(tokenizer, text):
        assert encoder.encode([piece]) == [pack(tokenizer.encode(piece, add_special_tokens=False).ids)]


def split_off(tokenizer: Tokenizer, text: str) -> list[str]:
    for token in tokenizer.get_added_tokens_decoder().values():
        text = text.replace(token.content, "\0\0" + token.content)
    return text.split("\0\0")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_decoded_texts_are_equal(real_directory: Path, data: st.DataObject) -> None:
    """Also where ids split a character, are of an added token, or are nobody's."""
    tokenizer, encoder = loaded(real_directory)
    if encoder is None:
        return
    size = tokenizer.get_vocab_size()
    ids = data.draw(
        st.lists(st.one_of(st.integers(0, 300), st.integers(size - 400, size + 9), st.integers(0, 1 << 31)))
    )
    assert encoder.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False)


def test_every_token_is_decoded(real_directory: Path) -> None:
    tokenizer, encoder = loaded(real_directory)
    if encoder is None:
        return
    for number in range(0, tokenizer.get_vocab_size() + 10, 7):
        assert encoder.decode([number]) == tokenizer.decode([number], skip_special_tokens=False), number


def test_every_stable_character(real_directory: Path) -> None:
    """In any place: both libraries split the text of such characters at the same places."""
    tokenizer, encoder = loaded(real_directory)
    if encoder is None:
        return
    settled = [chr(i) for i in range(0x30000) if stable().fullmatch(chr(i))]
    assert len(settled) > 100_000
    assert {one for one in settled if printed().fullmatch(one)} > set("aé✅→│🚀世ひ가½\u2028 \n")
    assert not any(printed().fullmatch(one) for one in "\0\u200d\ufeff\ue000\u017f")
    assert all(stable().fullmatch(one) for one in "é✅→│🚀\u200d世ひ가½\u2028") and not stable().fullmatch("\u017f")
    for form in ("a{0}B", "'{0} 1{0}2\n{0}!{0} {0}\n"):
        pieces = [form.format(one) for one in settled]
        for at in range(0, len(pieces), 5_000):
            some = pieces[at : at + 5_000]
            expected = [pack(one.ids) for one in tokenizer.encode_batch(some, add_special_tokens=False)]
            wrong = [
                piece
                for piece, ours, theirs in zip(some, encoder.encode(some), expected, strict=True)
                if ours != theirs
            ]
            assert not wrong, wrong[:5]


def test_a_lone_surrogate_is_told(real_directory: Path) -> None:
    encoder = loaded(real_directory)[1]
    if encoder is not None:
        with pytest.raises(UnicodeEncodeError):
            encoder.encode(["a\ud800"])


def test_other_pipelines_are_left_alone(tiny_tokenizer: Tokenizer) -> None:
    assert recipe_of(tiny_tokenizer) is None


def test_an_encoder_with_other_ids_is_not_used(real_directory: Path) -> None:
    tokenizer, encoder = loaded(real_directory)
    recipe = recipe_of(tokenizer)
    if encoder is None or recipe is None:
        return
    a, b = (recipe.ids.index(int.from_bytes(encoder.encode([letter])[0], "little")) for letter in "ab")
    ids = recipe.ids[:]
    ids[a], ids[b] = ids[b], ids[a]
    assert build(replace(recipe, ids=ids)) is None
