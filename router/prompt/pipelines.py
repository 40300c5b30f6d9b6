"""Tokenizer classes that transformers 5 builds with a pipeline of their own, whatever tokenizer.json says.

Measured on the recorded engines (tests/prompt/fixtures/recorded.json): vLLM 0.32 gave the tiny model, whose file asks
for GPT-2's pattern, the Qwen2 class's pattern and NFC, because config.json says qwen2; SGLang 0.5.23 followed
the file. For real Qwen models file and class agree, and this changes nothing.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from router.prompt.shapes import QWEN

CLASSES = ("Qwen2Tokenizer",)


def apply_class(tokenizer: Tokenizer, name: str) -> None:
    """Gives the tokenizer the pipeline of transformers' class `name`. Raises ValueError for one that is not known."""
    if name not in CLASSES:
        raise ValueError(f"tokenizer class {name!r} is not known; known: {', '.join(CLASSES)}")
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
