"""Messages of growing conversations, decoded once: the same JSON bytes give the same object.

An agent sends its whole history with each step. Decoding it, and each engine's conversion of each message, would be
done again every time; here both are kept under the message's own bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import msgspec

_decode = msgspec.json.Decoder().decode
_split_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_split_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_HISTORIES = ("messages", "input")  # the latter of the Responses API
_OVERHEAD = 1200  # a small message's dicts, its conversions and the entry, measured


class Message(dict[str, Any]):
    """A decoded message, shared by requests: not to be changed.

    `converted`: results of its conversions, by kind. `print`: its observe.digest.MessagePrint once that was asked for.
    """

    __slots__ = ("converted", "print")

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self.converted: dict[str, dict[str, Any]] = {}
        self.print: Any = None


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
            messages = name in _HISTORIES and inner[:1] == b"["
            fields[name] = [self._message(bytes(one)) for one in _split_array(inner)] if messages else _decode(inner)
        return fields

    def _message(self, raw: bytes) -> Any:
        known = self._known.get(raw)
        if known is not None:
            self._known.move_to_end(raw)
            return known
        decoded = _decode(raw)
        if not isinstance(decoded, dict):
            return decoded
        message = Message(decoded)
        size = _size(raw)
        if size <= self.max_bytes >> 3:
            self._known[raw] = message
            self.bytes += size
            while self.bytes > self.max_bytes:
                self.bytes -= _size(self._known.popitem(last=False)[0])
        return message


def _size(raw: bytes) -> int:
    """Bound on an entry's memory: its bytes, and its texts, which take up to four bytes a character."""
    return len(raw) * (2 if raw.isascii() and b"\\u" not in raw else 5) + _OVERHEAD
