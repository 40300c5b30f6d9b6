"""tiktoken's ids equal those of `tokenizers` for real tokenizer files, and it isn't used where that was not shown."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from router.blocks import pack
from router.prompt.fast import _STABLE, fast_encoder

pytest.importorskip("tiktoken", reason="tiktoken is not installed; run: pip install 'tiktoken>=0.9'")

KNOWN = {"qwen3": True, "llama3_1": True, "gptoss": True, "deepseek_v3": False, "llama2": False}
WORDS = ["'s", "'LL", "x", "The", " the", "  ", "\n", "\r\n", "\n\n", "123", "4567", "é", "e\u0301", "世界", "!", "//"]
WORDS += ["\u017f", "'\u017f", "\u1e9e", "🎉", "\u00a0", "\x85", "\u3000", "ÀB", "\u2028", "_", "ひ", "가", "İ", "ǅ"]
texts = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=3)), max_size=40).map("".join)


@cache
def loaded(directory: Path) -> tuple[Tokenizer, Callable[[list[str]], list[bytes]] | None]:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return tokenizer, fast_encoder(tokenizer)


def test_only_proven_tokenizers(real_directory: Path) -> None:
    assert (loaded(real_directory)[1] is not None) == KNOWN[real_directory.name]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts)
def test_ids_are_equal(real_directory: Path, text: str) -> None:
    tokenizer, encoder = loaded(real_directory)
    if encoder is not None:
        assert encoder([text]) == [pack(tokenizer.encode(text, add_special_tokens=False).ids)]


def test_every_stable_character(real_directory: Path) -> None:
    tokenizer, encoder = loaded(real_directory)
    if encoder is None:
        return
    stable = [chr(i) for i in range(0xD800) if _STABLE.fullmatch(chr(i))]
    for form in ("{0}", "a{0}B", "'{0} 1{0}2", "\n{0}!{0} {0}\n"):
        pieces = [form.format(one) for one in stable]
        expected = [pack(one.ids) for one in tokenizer.encode_batch(pieces, add_special_tokens=False)]
        wrong = [piece for piece, ours, theirs in zip(pieces, encoder(pieces), expected, strict=True) if ours != theirs]
        assert not wrong, wrong[:5]


def test_other_pipelines_are_left_alone(tiny: Any) -> None:
    assert fast_encoder(tiny.tokenizer._tokenizer) is None
