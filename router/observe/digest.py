"""A request as its fields: what a later step is compared with (breaks.py), without its texts.

Only fields that can reach the prompt count: cache markers, metadata and sampling settings may change from step to step.

| family | parts |
|---|---|
| chat, Anthropic messages, Responses | template arguments, tools, system text outside the messages, messages |
| completions, generate, embeddings | one message of role `prompt` with the first text or list of ids |
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from sys import intern
from typing import Any

import msgspec
import xxhash

from router.observe.fingerprint import SHAPE_CHARS, TextPrint, print_text
from router.prompt.history import Message
from router.prompt.requests import ApiRequest, Endpoint

SYSTEM_SHAPE_CHARS = 8192
"""Of system texts more is kept, once for all sessions that have the same: their changes cost the most."""

ARGUMENTS = (
    "chat_template_kwargs", "reasoning_effort", "reasoning", "thinking", "documents", "add_generation_prompt",
    "continue_final_message", "add_special_tokens", "truncate_prompt_tokens", "truncation_side",
)  # fmt: skip
_JSON_FIELDS = ("arguments", ".input")
SYSTEM_ROLES = ("system", "developer")

_AT_ONCE = 128
"""Messages looked at in a millisecond or two."""

_encode = msgspec.json.Encoder().encode
_encode_sorted = msgspec.json.Encoder(order="sorted").encode
_hash64 = xxhash.xxh3_64_intdigest
_OBJECTS = {dict, Message}
_SIZE = attrgetter("size")


class MessagePrint(msgspec.Struct, frozen=True, gc=False):
    """One message: its fields in the order they are read, and one hash of them all.

    `json`: of fields that are JSON objects (tool calls' arguments), the hash whatever the order of the keys.
    """

    role: str
    hash: int
    fields: tuple[tuple[str, TextPrint], ...]
    json: tuple[tuple[str, int], ...] = ()
    size: int = 0
    """Bytes of memory, about."""
    chars: int = 0
    """Of all fields."""


class ToolPrint(msgspec.Struct, frozen=True, gc=False):
    """One tool as the client wrote it, and its hash whatever the order of its keys."""

    name: str
    text: TextPrint
    canonical: int


class Digest(msgspec.Struct, frozen=True, gc=False):
    """What is kept of a request. `system`: text outside the messages (Anthropic, Responses), as a message.

    `size`: bytes of memory, about; what sessions share is counted in each.
    """

    arguments: Mapping[str, int] = msgspec.field(default_factory=dict)
    tools: tuple[ToolPrint, ...] = ()
    system: MessagePrint | None = None
    messages: tuple[MessagePrint, ...] = ()
    size: int = 0


class Digester:
    """Makes digests. `keep_text`: beginnings of texts are kept, so that a break can show what was there.

    Prints of system texts and of tools are shared between sessions; the last used `max_system` of each are kept.
    """

    def __init__(self, *, keep_text: bool = False, max_system: int = 512) -> None:
        self._keep_text = keep_text
        self._max_system = max_system
        self._system: OrderedDict[str, TextPrint] = OrderedDict()
        self._offered: OrderedDict[int, tuple[ToolPrint, ...]] = OrderedDict()

    def digest(self, request: ApiRequest, before: Digest | None = None) -> Digest:
        """The whole request's digest; with `before`, of a request that this one is known to extend, only the new part.

        Of the messages of `before` the last four are looked at again: a change within the last, partly filled block
        does not show in the chain.
        """
        messages = messages_of(request)
        if before is not None:
            same = max(0, len(before.messages) - 4)
            fresh = self._messages(messages[same:])
            size = before.size + sum(each.size for each in fresh[len(before.messages) - same :])
            return Digest(before.arguments, before.tools, before.system, before.messages[:same] + fresh, size)
        outside = system_of(request)
        system = None if outside is None else self.message(outside)
        tools = self._tools(tools_of(request))
        prints = self._messages(messages)
        size = 400 + sum(map(_SIZE, prints)) + sum([150 + tool.text.size for tool in tools])
        return Digest(arguments_of(request), tools, system, prints, size + (system.size if system is not None else 0))

    def warm(self, request: ApiRequest) -> Iterator[None]:
        """Look at the request's messages a few at a time; `digest` then finds what they are."""
        new = 0
        for message in messages_of(request):
            if isinstance(message, Message) and message.print is None:
                self.message(message)
                new += 1
                if new % _AT_ONCE == 0:
                    yield

    def _tools(self, tools: Sequence[Any]) -> tuple[ToolPrint, ...]:
        if not tools:
            return ()
        key = _hash64(_encode(tools))
        known = self._offered.get(key)
        if known is None:
            known = self._offered[key] = tuple(_tool(tool) for tool in tools)
            if len(self._offered) > self._max_system:
                self._offered.popitem(last=False)
        else:
            self._offered.move_to_end(key)
        return known

    def _messages(self, messages: Sequence[Mapping[str, Any]]) -> tuple[MessagePrint, ...]:
        take = self.message  # most have their print already: no call for those
        return tuple([getattr(message, "print", None) or take(message) for message in messages])

    def message(self, message: Mapping[str, Any]) -> MessagePrint:
        """One message's print; computed once for a message that requests share."""
        if isinstance(message, Message):
            if message.print is None:
                message.print = self._message(message)
            known: MessagePrint = message.print
            return known
        return self._message(message)

    def _message(self, message: Mapping[str, Any]) -> MessagePrint:
        role = role_of(message)
        take = self._system_print if role in SYSTEM_ROLES else self._print
        fields = []
        marks = [role]
        objects = []
        size, chars = 160, 0
        for name, text in fields_of(message):
            one = take(text)
            fields.append((intern(name), one))
            marks += (name, str(one.hash))
            size += 64 + one.size
            chars += one.chars
            if name.endswith(_JSON_FIELDS):
                objects.append((name, canonical(text)))
        return MessagePrint(role, _hash64("\0".join(marks).encode()), tuple(fields), tuple(objects), size, chars)

    def _print(self, text: str) -> TextPrint:
        return print_text(text, SHAPE_CHARS, self._keep_text)

    def _system_print(self, text: str) -> TextPrint:
        if len(text) <= SHAPE_CHARS:
            return self._print(text)
        known = self._system.get(text)
        if known is None:
            known = self._system[text] = print_text(text, SYSTEM_SHAPE_CHARS, self._keep_text)
            if len(self._system) > self._max_system:
                self._system.popitem(last=False)
        else:
            self._system.move_to_end(text)
        return known


def canonical(text: str) -> int:
    """Hash of a JSON text whatever its spacing and the order of its keys; of the text itself if it is none."""
    try:
        return _hash64(_encode_sorted(msgspec.json.decode(text.encode())))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _hash64(text.encode("utf-8", "surrogatepass"))


def role_of(message: Mapping[str, Any]) -> str:
    """A message's role, or a Responses item's type."""
    for name in ("role", "type"):
        if isinstance(message.get(name), str):
            return str(message[name])
    return "?"


def messages_of(request: ApiRequest) -> Sequence[Mapping[str, Any]]:
    """The request's messages; a prompt without messages is one of role `prompt`."""
    if request.prompts:
        first = request.prompts[0]
        return [{"role": "prompt", "ids": first} if isinstance(first, bytes) else {"role": "prompt", "content": first}]
    body = request.body
    history = body.get("input") if request.endpoint is Endpoint.RESPONSES else body.get("messages")
    if isinstance(history, str):
        return [{"role": "user", "content": history}]
    if not isinstance(history, list):
        return []
    if {*map(type, history)} <= _OBJECTS:
        return history
    return [message if isinstance(message, dict) else {"role": "?", "content": str(message)} for message in history]


def system_of(request: ApiRequest) -> Mapping[str, Any] | None:
    """System text that is not a message: Anthropic's `system`, the Responses API's `instructions`."""
    for name in ("system", "instructions"):
        content = request.body.get(name)
        if content and not request.prompts and request.endpoint is not Endpoint.CHAT:
            return {"role": "system", "content": content}
    return None


def tools_of(request: ApiRequest) -> Sequence[Any]:
    """The request's tool schemas."""
    tools = request.body.get("tools")
    return tools if isinstance(tools, list) and not request.prompts else []


def tool_name(tool: Any) -> str:
    """A tool's name, wherever its family of APIs puts it."""
    inner = tool.get("function", tool) if isinstance(tool, dict) else None
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else "?"


def tool_text(tool: Any) -> str:
    """A tool's schema as JSON, its keys in the client's order."""
    return _encode(tool).decode()


def _tool(tool: Any) -> ToolPrint:
    return ToolPrint(tool_name(tool), print_text(tool_text(tool), 2 * SHAPE_CHARS), _hash64(_encode_sorted(tool)))


def arguments_of(request: ApiRequest) -> dict[str, int]:
    """Hash of each argument that the chat template gets beside messages and tools; members of objects one by one."""
    found: dict[str, int] = {}
    for name in ARGUMENTS:
        value = request.body.get(name)
        if isinstance(value, dict) and name != "documents":
            found |= {f"{name}.{key}": _hash64(_encode_sorted(inner)) for key, inner in value.items()}
        elif value is not None:
            found[name] = _hash64(_encode_sorted(value))
    return found


def fields_of(message: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, text) of each field of a message that can reach the prompt, in a fixed order."""
    ids = message.get("ids")
    if isinstance(ids, bytes):
        yield "ids", ids.decode("latin-1")
    for name in ("name", "reasoning", "reasoning_content"):
        if isinstance(message.get(name), str):
            yield name, message[name]
    content = message.get("content")
    if isinstance(content, str):
        yield "content", content
    elif isinstance(content, list):
        for place, part in enumerate(content):
            yield from _part(f"content[{place}]", part)
    calls = message.get("tool_calls")
    for place, call in enumerate(calls if isinstance(calls, list) else ()):
        yield from _call(f"tool_calls[{place}]", call)
    for name in ("tool_call_id", "call_id", "arguments", "output", "summary", "encrypted_content", "tools"):
        value = message.get(name)
        if value:
            yield name, value if isinstance(value, str) else tool_text(value)


def _call(path: str, call: Any) -> Iterator[tuple[str, str]]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        yield path, tool_text(call)
        return
    for name in ("name", "arguments"):
        value = function.get(name)
        if value is not None:
            yield f"{path}.{name}", value if isinstance(value, str) else tool_text(value)
    if isinstance(call.get("id"), str):
        yield f"{path}.id", call["id"]


def _part(path: str, part: Any) -> Iterator[tuple[str, str]]:
    """A content part: OpenAI's text and media, Anthropic's text, thinking, tool_use and tool_result."""
    if not isinstance(part, dict):
        yield path, part if isinstance(part, str) else tool_text(part)
        return
    kind = part.get("type")
    for name in ("text", "thinking", "refusal", "name", "id", "tool_use_id"):
        if isinstance(part.get(name), str):
            yield f"{path}.{name}", part[name]
    if kind == "tool_use" and "input" in part:
        yield f"{path}.input", tool_text(part["input"])
    elif kind == "tool_result":
        inner = part.get("content")
        if isinstance(inner, str):
            yield f"{path}.content", inner
        elif isinstance(inner, list):
            for place, item in enumerate(inner):
                yield from _part(f"{path}.content[{place}]", item)
    elif kind not in ("text", "input_text", "output_text", "thinking", "refusal"):
        rest = {name: value for name, value in part.items() if name not in ("cache_control", "type")}
        yield f"{path}.{kind if isinstance(kind, str) else 'part'}", tool_text(rest)
