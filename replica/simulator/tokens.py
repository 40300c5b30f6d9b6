"""The simulated engine's tokenizer: chat requests to token ids as the engine does it, and words to answer with.

Rendering and encoding are router.prompt's; what an engine does to messages before its template (engine-protocol.md,
F.1 and F.2) is written here a second time, on purpose: the router's own code is tested against it.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from zlib import crc32

from router.blocks import unpack
from router.prompt.model import ChatModel, load_model


@dataclass(frozen=True, slots=True)
class Words:
    """Tokens to answer with: one word each, which re-tokenize to themselves when a client sends them back."""

    ids: list[int]
    text: dict[int, str]
    json: dict[int, bytes]

    def answer(self, prompt: array[int], length: int, choice: int) -> list[int]:
        """`length` ids that depend on nothing but the prompt and the choice's index."""
        seed = crc32(prompt[-64:].tobytes(), len(prompt)) + choice * 7919
        stride = 1 + 2 * (seed % 11)
        ids = self.ids
        return [ids[(seed + stride * i) % len(ids)] for i in range(length)]


class EngineTokenizer:
    """A model directory's tokenizer and template. `kind` chooses how messages are prepared."""

    def __init__(self, model: ChatModel, words: Words, kind: str) -> None:
        self.model = model
        self.words = words
        self._kind = kind

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    def encode(self, text: str) -> array[int]:
        return array("I", self.model.encode(text))

    def decode(self, ids: list[int]) -> str:
        return self.model.decode(ids)

    def chat(self, body: dict[str, Any]) -> array[int]:
        """Token ids of a chat request. Raises TemplateError, or ValueError naming the field."""
        messages = [_message(item, self._kind, index) for index, item in enumerate(body["messages"])]
        tools = body.get("tools") or None
        if tools and self._kind == "vllm":
            tools = [_vllm_tool(tool) for tool in tools]
        if self._kind == "sglang":
            if body.get("tool_choice") == "none":
                tools = None
            if messages and messages[-1]["role"] == "assistant" and not body.get("continue_final_message"):
                messages[-1]["role"] = "user"
        continued = bool(body.get("continue_final_message"))
        generation = body.get("add_generation_prompt")
        text = self.model.render(
            messages,
            tools,
            add_generation_prompt=(not continued) if generation is None else bool(generation),
            continue_final_message=continued,
            **(body.get("chat_template_kwargs") or {}),
        )
        return self.encode(text)


def load_tokenizer(model_dir: Path, kind: str) -> EngineTokenizer:
    """Shared by all replicas of one process that serve the same directory."""
    model, words = _load(str(model_dir))
    return EngineTokenizer(model, words, kind)


@lru_cache(maxsize=4)
def _load(model_dir: str) -> tuple[ChatModel, Words]:
    model = load_model(model_dir)
    ids: list[int] = []
    text: dict[int, str] = {}
    for token in range(model.vocab_size):
        word = model.decode([token])
        plain = word[:1] == " " and word[1:].isascii() and word[1:].isalpha() and len(word) > 2
        if plain and unpack(model.encode(word)) == [token]:
            ids.append(token)
            text[token] = word
    if not ids:
        raise ValueError(f"{model_dir}: the tokenizer has no single-token words to answer with")
    return model, Words(ids, text, {token: json.dumps(word).encode() for token, word in text.items()})


def _message(message: Any, kind: str, index: int) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(f"messages[{index}] must be an object with a role")  # noqa: TRY004
    clean: dict[str, Any] = {"role": message["role"], "content": _content(message.get("content"), kind)}
    calls = message.get("tool_calls")
    if calls:
        clean["tool_calls"] = [_tool_call(call, kind) for call in calls]
    for key in ("tool_call_id", "name"):
        if isinstance(message.get(key), str):
            clean[key] = message[key]
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    if message["role"] == "assistant" and reasoning is not None:
        clean["reasoning"] = clean["reasoning_content"] = reasoning
    return clean


def _content(content: Any, kind: str) -> str:
    if content is None:
        return ""
    if isinstance(content, list):
        texts = [part.get("text", "") if isinstance(part, dict) else str(part) for part in content]
        return (" " if kind == "sglang" else "\n").join(texts)
    return str(content)


def _tool_call(call: dict[str, Any], kind: str) -> dict[str, Any]:
    function = call.get("function") or {}
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = {}
    if not isinstance(arguments, dict):
        arguments = {}
    name = function.get("name")
    if kind == "sglang":
        shape = {"name": name, "arguments": arguments}
        return {"id": call.get("id"), "index": call.get("index"), "type": "function", "function": shape}
    return {"id": call.get("id"), "function": {"arguments": arguments, "name": name}, "type": "function"}


def _vllm_tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function") or {}
    shape: dict[str, Any] = {key: function.get(key) for key in ("name", "description", "parameters")}
    if "strict" in function:
        shape["strict"] = function["strict"]
    return {"type": tool.get("type", "function"), "function": shape}
