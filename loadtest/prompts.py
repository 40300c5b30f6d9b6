"""Prompts: chat messages, plain text, token ids, and runs of words made from hash ids."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import xxhash

from loadtest.types import CHAT, COMPLETIONS, PrefixChain

CHARS_PER_TOKEN = 4
"""The usual rough measure for English; recorded agent prompts have 4.5-4.8 (see /loadtest/data)."""
CHAIN_CHARS = 16 * CHARS_PER_TOKEN
"""Characters per key of an approximate chain: about one 16-token block."""

Message = Mapping[str, Any]

# 256 common words, so that a byte names one. Each is one token in the usual byte-pair vocabularies when a space stands
# in front of it, so n words are close to n tokens; what the engine counted is what the report uses.
_COMMON = """
    the of and to in is that for it as was with be by on not he his but at are this have from or had an they
    which one you were her all she there would their we him been has when who will more no if out so said what up its
    about into than them can only other new some could time these two may then do first any my now such like our over
    man me even most made after also did many before must through back years where much your way well down should
    because each just those people how too little state good very make world still own see men work long get here
    between both life being under never day same another know while last might us great old year off come since
    against go came right used take three states himself few house use during without again place around however
    home small found mrs thought went say part once general high upon school every does got united left number
    course war until always away something fact water though less public put thing almost hand enough far took head
    yet government system better set told nothing night end why called eyes find going look asked later knew point next
    program city business give group toward young days let room word side social present given several order national
    second possible rather per face among form important often things looked early white case john become large big
    need four within felt along children saw best church ever least power development light
"""
WORDS = tuple(_COMMON.split())


def words(key: str, count: int) -> str:
    """`count` pseudo-random words, always the same for the same key, each with a space in front.

    >>> words("a", 8) == words("a", 9).rsplit(" ", 1)[0]
    True
    """
    return "".join(f" {WORDS[byte]}" for byte in hashlib.shake_128(key.encode()).digest(count)) if count > 0 else ""


@lru_cache(maxsize=4096)
def cached_words(key: str, count: int) -> str:
    """As `words`, for runs that many prompts share."""
    return words(key, count)


def text_chain(text: str) -> PrefixChain:
    """Approximate chain over `CHAIN_CHARS` characters a key."""
    data = text.encode("utf-32-le", "surrogatepass")
    width = CHAIN_CHARS * 4
    keys: list[int] = []
    parent = 0
    for start in range(0, len(data) - width + 1, width):
        parent = xxhash.xxh3_64_intdigest(data[start : start + width], seed=parent)
        keys.append(parent)
    return PrefixChain(keys, CHAIN_CHARS, max(len(text), 1), exact=False)


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """The first `upto` messages of a conversation, with its tools. The list is shared by all steps, never copied."""

    messages: Sequence[Message]
    upto: int
    tools: Sequence[Message] | None = None
    endpoint: str = CHAT

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {"messages": list(self.messages[: self.upto])}
        if self.tools:
            body["tools"] = list(self.tools)
        return body

    def chain(self) -> PrefixChain:
        return text_chain(self.text())

    def text(self) -> str:
        """A ChatML-like rendering: tools first, then the messages. Not any model's template; stable, and about as
        long as one, which is all the ideal hit rate needs."""
        parts = [f"<tools>{json.dumps(self.tools, sort_keys=True)}</tools>\n"] if self.tools else []
        for message in self.messages[: self.upto]:
            content = message.get("content")
            text = content if isinstance(content, str) else "" if content is None else json.dumps(content)
            calls = message.get("tool_calls")
            if calls:
                text += json.dumps(calls, sort_keys=True)
            parts.append(f"<|im_start|>{message.get('role')}\n{text}<|im_end|>\n")
        return "".join(parts)


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """One text, for `/v1/completions` or as the only user message of a chat."""

    text: str
    endpoint: str = COMPLETIONS

    def body(self) -> dict[str, Any]:
        return text_body(self.text, self.endpoint)

    def chain(self) -> PrefixChain:
        return text_chain(self.text)


@dataclass(frozen=True, slots=True)
class HashPrompt:
    """A prompt given by block ids, as in Mooncake's traces: each id becomes a fixed run of words or of token ids.

    ids: one per block, the last may be partly filled; an id stands for the block and everything before it.
    tokens: length of the prompt; block: tokens per id. Trailing ids are cut, not padded.
    vocabulary: None sends words; a number sends token ids below it (exact lengths, completions only).
    """

    ids: array[int]
    tokens: int
    block: int
    seed: int
    vocabulary: int | None = None
    endpoint: str = COMPLETIONS

    def body(self) -> dict[str, Any]:
        if self.vocabulary is None:
            return text_body("".join(cached_words(f"{self.seed}/{i}", n) for i, n in self._runs()), self.endpoint)
        prompt: list[int] = []
        for block_id, count in self._runs():
            prompt += token_run(self.seed, block_id, count, self.vocabulary)
        return {"prompt": prompt}

    def chain(self) -> PrefixChain:
        return PrefixChain(self.ids[: self.tokens // self.block], self.block, max(self.tokens, 1), exact=True)

    def _runs(self) -> list[tuple[int, int]]:
        full, rest = divmod(self.tokens, self.block)
        runs = [(block_id, self.block) for block_id in self.ids[:full]]
        if rest and full < len(self.ids):
            runs.append((self.ids[full], rest))
        return runs


FIRST_ORDINARY_TOKEN = 256
"""Ids below are special tokens or single bytes in most vocabularies."""


@lru_cache(maxsize=4096)
def token_run(seed: int, block_id: int, count: int, vocabulary: int) -> tuple[int, ...]:
    """`count` pseudo-random token ids in [256, vocabulary), always the same for the same block id."""
    digest = hashlib.shake_128(f"{seed}/{block_id}".encode()).digest(4 * count)
    span = max(vocabulary - FIRST_ORDINARY_TOKEN, 1)
    return tuple(
        FIRST_ORDINARY_TOKEN + int.from_bytes(digest[i : i + 4], "little") % span for i in range(0, 4 * count, 4)
    )


def text_body(text: str, endpoint: str) -> dict[str, Any]:
    """The prompt part of a request body for a plain text."""
    if endpoint == CHAT:
        return {"messages": [{"role": "user", "content": text}]}
    return {"prompt": text}
