"""Where the chunks of a chunked body begin and end (RFC 9112, section 7.1), without re-framing it. No I/O."""

from __future__ import annotations

import re

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n\0]*)?")
_EVENT_ENDS = (b"\n\n", b"\n\r\n")
_MAX_LINE = 8192


class FramingError(Exception):
    """Bytes that are not a chunked body."""


class ChunkScanner:
    """Fed the raw bytes of a chunked body; says which are payload and where the body ends.

    After `feed(data)`: `end` is the offset in `data` just past the body, -1 while it goes on. `safe` is the offset in
    `data` up to which everything is whole chunks that close whole SSE events (0: none; at the end: all), so a stream
    cut there can be continued with a chunk of our own.

    One event is nearly always one chunk in one read: that case costs one regex match and one slice.
    """

    __slots__ = ("_left", "_line", "_state", "_tail", "end", "safe")

    _AT_SIZE, _DATA, _DATA_END, _TRAILER, _DONE = range(5)

    def __init__(self) -> None:
        self._state = self._AT_SIZE
        self._left = 0
        self._line = b""
        self._tail = b""  # last payload bytes, to see an event's end that two reads or chunks share; may be those
        # before a whole event: what that makes of a blank line behind it is a place between events all the same
        self.end = -1
        self.safe = 0

    def feed(self, data: bytes) -> bytes:
        """Payload in `data`. Raises FramingError."""
        if self._state == self._AT_SIZE and not self._line:
            match = _SIZE.match(data)
            if match is not None:
                start = match.end()
                stop = start + int(match[1], 16)
                if stop != start and len(data) == stop + 2 and data.endswith(b"\r\n"):
                    self.safe = len(data)
                    if not data.endswith(_EVENT_ENDS, start, stop):
                        self._tail = (self._tail + data[max(start, stop - 3) : stop])[-3:]
                        if not self._tail.endswith(_EVENT_ENDS):
                            self.safe = 0
                    return data[start:stop]
        return self._scan(data)

    def _scan(self, data: bytes) -> bytes:
        self.safe = 0
        payload: list[bytes] = []
        position = 0
        size = len(data)
        while position < size and self._state != self._DONE:
            if self._state == self._DATA:
                part = data[position : position + self._left]
                payload.append(part)
                self._tail = (self._tail + part[-3:])[-3:]
                position += len(part)
                self._left -= len(part)
                if not self._left:
                    self._state, self._left = self._DATA_END, 2
            elif self._state == self._DATA_END:
                if data[position] != (13 if self._left == 2 else 10):
                    raise FramingError("no CRLF after a chunk")
                position += 1
                self._left -= 1
                if not self._left:
                    self._state = self._AT_SIZE
                    if self._tail.endswith(_EVENT_ENDS):
                        self.safe = position
            else:
                position = self._take_line(data, position)
        if self._state == self._DONE:
            self.end = self.safe = position
        return payload[0] if len(payload) == 1 else b"".join(payload)

    def _take_line(self, data: bytes, position: int) -> int:
        """A size line or a trailer line; returns the new position."""
        newline = data.find(b"\n", position)
        stop = len(data) if newline < 0 else newline + 1
        self._line += data[position:stop]
        if len(self._line) > _MAX_LINE:
            raise FramingError("chunk size or trailer line too long")
        if newline < 0:
            return stop
        line, self._line = self._line, b""
        if not line.endswith(b"\r\n"):
            raise FramingError("bare LF in the chunk framing")
        line = line[:-2]
        if self._state == self._TRAILER:
            if not line:
                self._state = self._DONE
            return stop
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise FramingError("invalid chunk size")
        self._left = int(match[1], 16)
        self._state = self._DATA if self._left else self._TRAILER
        return stop


def events_end(payload: bytes) -> int:
    """Offset just past the last SSE event's end in `payload`, 0 if it has none."""
    return max(
        payload.rfind(b"\n\n") + 2 if b"\n\n" in payload else 0,
        payload.rfind(b"\n\r\n") + 3 if b"\n\r\n" in payload else 0,
    )


def chunk(payload: bytes) -> bytes:
    """`payload` (not empty) as one chunk."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


LAST_CHUNK = b"0\r\n\r\n"
