"""Messages of growing conversations, and their tools, decoded once: the same JSON bytes give the same object.

An agent sends its whole history with each step. Decoding it, and each engine's conversion of each message, would be
done again every time; here both are kept under the message's own bytes. Being the same object is also what tells a
template's render that it saw a message before (see `resume`).
"""

from __future__ import annotations

import contextlib
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from random import SystemRandom
from typing import Any, NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

_decode = msgspec.json.Decoder().decode
_split_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_split_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_TO_HISTORY = re.compile(
    rb"""
    [ \t\r\n]*+ \{
    (?: [ \t\r\n]*+ "[^"\\]*+" [ \t\r\n]*+ : [ \t\r\n]*+ (?: "(?:[^"\\]|\\.)*+" | [-+.0-9A-Za-z]++ ) [ \t\r\n]*+ , )*+
    [ \t\r\n]*+ "(messages|input)" [ \t\r\n]*+ : [ \t\r\n]*+ \[
    """,
    re.VERBOSE,
)
"""An object's beginning, to its messages, if all that comes before them is texts, numbers and the like."""
_SHARED = frozenset({"messages", "input", "tools"})  # the second is the Responses API's history
SPAN_BYTES = 16 * 1024
_AT_ONCE = 256  # new messages decoded in about a millisecond
_SEED = SystemRandom().getrandbits(64)  # nobody outside can make two messages that have one key
_OVERHEAD = 1600  # a small message's dicts, its conversions and the entry, measured


class Message(dict[str, Any]):
    """A decoded message, shared by requests: not to be changed.

    `converted`: results of its conversions, by kind. `parts`: the chat messages that a message of another protocol is,
    by protocol. `print`: its observe.digest.MessagePrint once that was asked for. `raw`: its JSON.
    """

    __slots__ = ("converted", "parts", "print", "raw")

    def __init__(self, fields: dict[str, Any], raw: bytes = b"") -> None:
        super().__init__(fields)
        self.raw = raw
        self.converted: dict[str, dict[str, Any]] = {}
        self.parts: dict[str, tuple[Message, ...]] = {}
        self.print: Any = None


class SharedList(list[Any]):
    """A decoded list (of tools), shared by requests as a whole: not to be changed. Its fields are as in Message."""

    __slots__ = ("converted", "raw")

    def __init__(self, items: Iterable[Any] = (), raw: bytes = b"") -> None:
        super().__init__(items)
        self.raw = raw
        self.converted: dict[str, SharedList] = {}


class _Span:
    """A run of whole messages within an array: their bytes, to the comma behind the last, and each one's key."""

    __slots__ = ("keys", "raw", "size")

    def __init__(self, raw: bytes, keys: list[int]) -> None:
        self.raw = raw
        self.keys = keys
        self.size = 2 * len(raw) + 40 * len(keys) + 400


class _Beginning(NamedTuple):
    """An object's members, but for those messages that its member `name` begins with and that are known."""

    fields: dict[str, msgspec.Raw]
    name: str
    messages: list[Any]


class History:
    """Message by (a hash of) its bytes, least recently used out first, bounded in bytes. For one thread.

    What a growing history begins with isn't taken apart again: runs of whole messages are known by their first
    SPAN_BYTES and compared as a whole. They take up to a quarter more than `max_bytes`.
    """

    def __init__(self, max_bytes: int = 64 << 20) -> None:
        self.max_bytes = max_bytes
        self._bytes = 0
        self._known: OrderedDict[int, Message | SharedList] = OrderedDict()
        self._spans: OrderedDict[int, _Span] = OrderedDict()
        self._span_bytes = 0
        self.spans_used = 0
        """Runs of messages that were not taken apart again."""

    @property
    def held_bytes(self) -> int:
        """What it holds, bounded."""
        return self._bytes + self._span_bytes

    def decode(self, body: bytes) -> Any:
        """The same as decoding the body, but for the type of its messages. Raises msgspec.DecodeError and the like."""
        if body.lstrip(b" \t\r\n")[:1] != b"{":
            return _decode(body)
        begun = self._beginning(body)
        fields: dict[str, Any] = {}
        for name, raw in begun.fields.items():
            inner = bytes(raw) if name in _SHARED else b""
            if inner[:1] != b"[":
                fields[name] = _decode(raw)
            elif name == "tools":
                fields[name] = self._shared(inner)
            elif name == begun.name:
                fields[name] = begun.messages + self._elements(inner)
            else:
                fields[name] = self._elements(inner)
        return fields

    def warm(self, body: bytes) -> Iterator[None]:
        """Decode the body's messages a few at a time; `decode` then finds them. Raises as it does."""
        if body.lstrip(b" \t\r\n")[:1] != b"{":
            return
        for name, raw in self._beginning(body).fields.items():
            inner = bytes(raw)
            if inner[:1] == b"[" and name in _SHARED and name != "tools" and len(inner) > SPAN_BYTES:
                raws = [bytes(one) for one in _split_array(inner)]
                messages: list[Any] = []
                for at in range(0, len(raws), _AT_ONCE):
                    yield
                    messages += map(self._shared, raws[at : at + _AT_ONCE])
                yield
                yield from self._keep_spans(inner, raws, messages)

    def _beginning(self, body: bytes) -> _Beginning:
        """What is known of an object's history is left out before the rest is split: that looks at each byte."""
        opened = _TO_HISTORY.match(body) if len(body) > SPAN_BYTES else None
        if opened is not None:
            begin = opened.end()
            messages, at = self._run(body, begin)
            # Behind a comma there must be another element: an array that ends there is no JSON.
            if messages and body[at : at + 64].lstrip(b" \t\r\n")[:1] not in (b"]", b""):
                rest = body[:begin] + body[at:]
                name = opened.group(1).decode()
                # Errors tell a place in the whole body; and if the name comes again, the last one counts.
                with contextlib.suppress(msgspec.DecodeError):
                    fields = _split_object(rest)
                    if rest.startswith(fields.get(name, b""), begin - 1):
                        return _Beginning(fields, name, messages)
        return _Beginning(_split_object(body), "", [])

    def _run(self, data: bytes, at: int) -> tuple[list[Any], int]:
        """The messages of the known spans that an array, whose elements begin at `at`, begins with; where they end."""
        found: list[Any] = []
        while len(data) - at > SPAN_BYTES:
            key = xxh3_64_intdigest(data[at : at + SPAN_BYTES])
            span = self._spans.get(key)
            if span is None or not data.startswith(span.raw, at):
                break
            messages = list(map(self._known.get, span.keys))
            if None in messages:
                break
            self.spans_used += 1
            self._spans.move_to_end(key)
            for one in span.keys:
                self._known.move_to_end(one)
            found += messages
            at += len(span.raw)
        return found, at

    def _elements(self, array: bytes) -> list[Any]:
        """The objects of an array of messages."""
        found, at = self._run(array, 1)
        rest = array if at == 1 else b"[" + array[at:]
        raws = [bytes(one) for one in _split_array(rest)]
        messages = list(map(self._shared, raws))
        if len(rest) > SPAN_BYTES:
            for _ in self._keep_spans(rest, raws, messages):
                pass
        return found + messages if found else messages

    def _keep_spans(self, array: bytes, raws: list[bytes], messages: list[Any]) -> Iterator[None]:
        """Remember the runs of whole messages that `array`, which has these elements, begins with; one at a time."""
        begin = end = 1
        keys: list[int] = []
        for raw, message in zip(raws, messages, strict=True):
            while array[end] in b" \t\r\n":
                end += 1
            end = array.find(b",", end + len(raw)) + 1
            key = xxh3_64_intdigest(raw, _SEED)
            if not end or not isinstance(message, Message) or self._known.get(key) is not message:
                return
            keys.append(key)
            if end - begin >= SPAN_BYTES:
                self._keep_span(xxh3_64_intdigest(array[begin : begin + SPAN_BYTES]), _Span(array[begin:end], keys))
                begin, keys = end, []
                yield

    def _keep_span(self, key: int, span: _Span) -> None:
        old = self._spans.pop(key, None)
        self._span_bytes += span.size - (old.size if old is not None else 0)
        self._spans[key] = span
        while self._span_bytes > self.max_bytes >> 2:
            self._span_bytes -= self._spans.popitem(last=False)[1].size

    def _shared(self, raw: bytes) -> Any:
        """The object of an object's or a list's bytes."""
        key = xxh3_64_intdigest(raw, _SEED)
        known = self._known.get(key)
        if known is not None and known.raw == raw:
            self._known.move_to_end(key)
            return known
        decoded = _decode(raw)
        if isinstance(decoded, dict):
            shared: Message | SharedList = Message(decoded, raw)
        elif isinstance(decoded, list):
            shared = SharedList(decoded, raw)
        else:
            return decoded
        size = _size(raw)
        if size <= self.max_bytes >> 3 and known is None:
            self._known[key] = shared
            self._bytes += size
            while self._bytes > self.max_bytes:
                self._bytes -= _size(self._known.popitem(last=False)[1].raw)
        return shared


def skim(body: bytes) -> Any:
    """The same as History.decode, but with empty lists for those of messages and tools. Raises as it does."""
    if body.lstrip(b" \t\r\n")[:1] != b"{":
        return _decode(body)
    return {
        name: [] if name in _SHARED and memoryview(raw)[0] == 0x5B else _decode(raw)
        for name, raw in _split_object(body).items()
    }


def _size(raw: bytes) -> int:
    """Bound on an entry's memory: its bytes, and its texts, which take up to four bytes a character."""
    return len(raw) * (2 if raw.isascii() and b"\\u" not in raw else 5) + _OVERHEAD
