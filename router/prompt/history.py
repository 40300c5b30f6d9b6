"""Messages of growing conversations, and their tools, decoded once: the same JSON bytes give the same object.

An agent sends its whole history with each step. Decoding it, and each engine's conversion of each message, would be
done again every time; here both are kept under the message's own bytes. Being the same object is also what tells a
template's render that it saw a message before (see `resume`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import msgspec

_decode = msgspec.json.Decoder().decode
_split_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_split_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_SHARED = frozenset({"messages", "input", "tools"})  # the second is the Responses API's history
_OVERHEAD = 1600  # a small message's dicts, its conversions and the entry, measured


class Message(dict[str, Any]):
    """A decoded message, shared by requests: not to be changed.

    `converted`: results of its conversions, by kind. `parts`: the chat messages that a message of another protocol is,
    by protocol. `print`: its observe.digest.MessagePrint once that was asked for.
    """

    __slots__ = ("converted", "parts", "print")

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self.converted: dict[str, dict[str, Any]] = {}
        self.parts: dict[str, tuple[Message, ...]] = {}
        self.print: Any = None


class SharedList(list[Any]):
    """A decoded list (of tools), shared by requests as a whole: not to be changed. `converted`: as in Message."""

    __slots__ = ("converted",)

    def __init__(self, items: Iterable[Any] = ()) -> None:
        super().__init__(items)
        self.converted: dict[str, SharedList] = {}


class History:
    """Message bytes -> message, least recently used out first, bounded in bytes. For one thread."""

    def __init__(self, max_bytes: int = 64 << 20) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._known: OrderedDict[bytes, Any] = OrderedDict()

    def decode(self, body: bytes) -> Any:
        """The same as decoding the body, but for the type of its messages. Raises msgspec.DecodeError and the like."""
        if body.lstrip(b" \t\r\n")[:1] != b"{":
            return _decode(body)
        fields: dict[str, Any] = {}
        for name, raw in _split_object(body).items():
            inner = bytes(raw)
            if inner[:1] != b"[" or name not in _SHARED:
                fields[name] = _decode(inner)
            elif name == "tools":
                fields[name] = self._shared(inner)
            else:
                fields[name] = [self._shared(bytes(one)) for one in _split_array(inner)]
        return fields

    def _shared(self, raw: bytes) -> Any:
        """The object of an object's or a list's bytes."""
        known = self._known.get(raw)
        if known is not None:
            self._known.move_to_end(raw)
            return known
        decoded = _decode(raw)
        if isinstance(decoded, dict):
            shared: Message | SharedList = Message(decoded)
        elif isinstance(decoded, list):
            shared = SharedList(decoded)
        else:
            return decoded
        size = _size(raw)
        if size <= self.max_bytes >> 3:
            self._known[raw] = shared
            self.bytes += size
            while self.bytes > self.max_bytes:
                self.bytes -= _size(self._known.popitem(last=False)[0])
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
