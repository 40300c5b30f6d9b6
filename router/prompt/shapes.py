"""Which tokenizers may be fed piece by piece: an allow-list of `tokenizer.json` shapes (engine-protocol.md F.4).

`tokenizers` first splits the raw text at its non-normalized added tokens, then treats every piece on its own. So a cut
right in front of such a token changes nothing, unless an added token reaches over the cut (lstrip, single_word).
Every piece keeps its leading special token, which is the "sentinel" that rstrip tokens and Metaspace's `first` need.

Inside a piece a second cut is exact for the known byte-level regexes: behind a newline that follows a non-space and
precedes an ASCII letter. There each of these regexes ends one match and begins another, whatever lies on either side.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer

_PRE_TOKENIZERS = frozenset(
    {"ByteLevel", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit", "BertPreTokenizer"}
    | {"CharDelimiterSplit", "UnicodeScripts", "Metaspace"}
)
_POST_PROCESSORS = frozenset({"ByteLevel", "TemplateProcessing", "BertProcessing", "RobertaProcessing"})
_MODELS = frozenset({"BPE", "WordPiece", "WordLevel", "Unigram"})

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
CL100K = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
QWEN = CL100K.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CONTRACTIONS}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CONTRACTIONS}?|"
    rf"\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
    " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
# The only split patterns for which the cut between lines was proven; in the order of a tokenizer file's Splits.
_LINE_SAFE: frozenset[tuple[str, ...]] = frozenset({(CL100K,), (QWEN,), (O200K,), DEEPSEEK})


@dataclass(frozen=True, slots=True)
class Shape:
    """What a tokenizer file allows.

    `reason`: why it may not be cut at all (None: it may). `cuts`: the added tokens in front of which it may be cut.
    `line_safe`: a piece may also be cut between lines (see the module's docstring).
    """

    reason: str | None
    cuts: tuple[str, ...] = ()
    line_safe: bool = False


def shape_of(tokenizer: Tokenizer) -> Shape:
    """Judges a loaded tokenizer. Everything not on the allow-list is encoded whole, with `reason` saying why."""
    layout = _layout(tokenizer)
    tokens = list(tokenizer.get_added_tokens_decoder().values())
    reason = _refusal(layout, tokens)
    if reason is not None:
        return Shape(reason)
    raw = [token.content for token in tokens if not token.normalized]
    normalized = [token.content for token in tokens if token.normalized]
    normalizers = _kinds(layout["normalizer"], "normalizers")
    if normalized and not normalizers and not _overlap(raw, normalized):
        raw += normalized
    plain = not any(token.rstrip or "\n" in token.content for token in tokens)
    line_safe = plain and set(normalizers) <= {"NFC"} and layout["model"]["type"] == "BPE" and _line_safe(layout)
    return Shape(None, tuple(raw), line_safe)


def _layout(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer's JSON without its vocabulary (a part's own state is small, the whole is megabytes)."""

    def state(part: Any) -> Any:
        return None if part is None else json.loads(part.__getstate__())

    model = tokenizer.model
    return {
        "normalizer": state(tokenizer.normalizer),
        "pre_tokenizer": state(tokenizer.pre_tokenizer),
        "post_processor": state(tokenizer.post_processor),
        "truncation": tokenizer.truncation,
        "padding": tokenizer.padding,
        "split_special": tokenizer.encode_special_tokens,
        "model": {"type": type(model).__name__, "dropout": getattr(model, "dropout", None)},
    }


def parts(part: dict[str, Any] | None, sequence_key: str) -> list[dict[str, Any]]:
    """The members of a pipeline component, with Sequences flattened."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [inner for member in part[sequence_key] for inner in parts(member, sequence_key)]
    return [part]


def _kinds(part: dict[str, Any] | None, sequence_key: str) -> list[str]:
    return [member["type"] for member in parts(part, sequence_key)]


def _refusal(layout: dict[str, Any], tokens: Sequence[AddedToken]) -> str | None:
    for token in tokens:
        if token.lstrip or token.single_word:
            return f"added token {token.content!r} is matched with its surroundings (lstrip or single_word)"
    if layout["truncation"] or layout["padding"]:
        return "truncation or padding is set in tokenizer.json"
    if layout["split_special"]:
        return "special tokens are split (split_special_tokens)"
    if layout["model"]["type"] not in _MODELS or layout["model"]["dropout"]:
        return f"model {layout['model']['type']} with dropout {layout['model']['dropout']}"
    unknown = set(_kinds(layout["pre_tokenizer"], "pretokenizers")) - _PRE_TOKENIZERS
    unknown |= set(_kinds(layout["post_processor"], "processors")) - _POST_PROCESSORS
    if unknown:
        return f"unknown pipeline part {sorted(unknown)[0]}"
    changing = set(_kinds(layout["normalizer"], "normalizers")) - {"NFC"}
    if changing and any(token.normalized for token in tokens):
        return f"normalized added tokens together with the normalizer {sorted(changing)[0]}"
    return None


def _overlap(some: Iterable[str], others: Iterable[str]) -> bool:
    """Could a match of one set begin, end, or lie inside a match of the other?"""
    others = list(others)
    return any(_touch(one, other) for one in some for other in others)


def _touch(one: str, other: str) -> bool:
    if one in other or other in one:
        return True
    shorter = min(len(one), len(other))
    return any(one.endswith(other[:size]) or other.endswith(one[:size]) for size in range(1, shorter))


def _line_safe(layout: dict[str, Any]) -> bool:
    members = parts(layout["pre_tokenizer"], "pretokenizers")
    if not members or members[-1]["type"] != "ByteLevel" or members[-1]["add_prefix_space"]:
        return False
    splits = members[:-1]
    if not splits:
        return bool(members[-1]["use_regex"])  # GPT-2's pattern, built into `tokenizers`
    if members[-1]["use_regex"] or any(split["type"] != "Split" or split["invert"] for split in splits):
        return False
    if any(split["behavior"] != "Isolated" for split in splits):
        return False
    return tuple(split["pattern"].get("Regex", "") for split in splits) in _LINE_SAFE


def matcher(contents: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that finds the leftmost, longest of the given strings, as `tokenizers` does; None for none.

    Built as a prefix tree: one of hundreds of reserved tokens is told apart character by character, not one by one.
    """
    tree: dict[str, Any] = {}
    for content in contents:
        node = tree
        for character in content:
            node = node.setdefault(character, {})
        node[""] = {}
    return re.compile(_branch(tree)) if tree else None


def _branch(node: dict[str, Any]) -> str:
    """The pattern of everything below `node`. Greedy, so that a longer token wins over its own prefix."""
    optional = "" in node
    branches: list[str] = []
    for character, below in node.items():
        if character == "":
            continue
        text = re.escape(character)
        while len(below) == 1 and "" not in below:
            ((character, below),) = below.items()
            text += re.escape(character)
        branches.append(text + _branch(below))
    if not branches:
        return ""
    group = branches[0] if len(branches) == 1 and not optional else f"(?:{'|'.join(branches)})"
    return group + "?" if optional else group
