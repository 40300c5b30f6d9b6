"""The answer to one request, written to the client's connection."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Protocol

from router.http.errors import ErrorFormat, Headers, reason_phrase
from router.http.framing import LAST_CHUNK, chunk
from router.http.message import Request

_JOIN_BYTES = 32 * 1024  # copying less is cheaper than a second buffer


class Source(Protocol):
    """Where the body's bytes come from; told to stop while the client takes none."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Response:
    """Answer of one request; every method is a no-op once the client is gone.

    started: the head was written (the request can no longer be retried). ended: the body is whole. gone: the client
    left. keep_alive: the connection stays open after the body. errors: format of `fail`, may be replaced.
    paused: the client takes fewer bytes than come; at most `write_buffer_bytes` plus what is written while paused wait.
    """

    __slots__ = (
        "_chunked",
        "_head",
        "_head_only",
        "_source",
        "_transport",
        "_until_close",
        "_version",
        "ended",
        "errors",
        "gone",
        "keep_alive",
        "paused",
        "started",
    )

    def __init__(
        self, request: Request, transport: asyncio.WriteTransport, errors: ErrorFormat, *, paused: bool = False
    ) -> None:
        self._transport = transport
        self._version = request.version
        self._head_only = request.method == "HEAD"
        self.keep_alive = request.keep_alive
        self.errors = errors
        self.paused = paused
        self.started = False
        self.ended = False
        self.gone = False
        self._head = b""  # not written yet: goes out with what comes next, in one system call
        self._chunked = False  # write() has to wrap
        self._until_close = False
        self._source: Source | None = None

    @property
    def can_chunk(self) -> bool:
        """The client understands chunked bodies (HTTP/1.1)."""
        return self._version == "1.1"

    def start(self, status: int, headers: Headers, *, length: int | None = None, framed: bool = False) -> None:
        """Begin the answer; its head is written with the first bytes of the body, or by `flush`.

        headers must hold no framing or connection headers: they are added here.

        length: bytes of the body; None: unknown, so chunked for HTTP/1.1 and until close for HTTP/1.0. For the answer
        to HEAD it is what GET's would be, None if unknown. framed: write() is given chunked bytes, last chunk included
        (needs can_chunk). Statuses 204 and 304 have no body.
        """
        if self.gone:
            return
        self.started = True
        parts = [b"HTTP/1.1 %d %b\r\n" % (status, reason_phrase(status))]
        parts += [b"%b: %b\r\n" % header for header in headers]
        if length is not None and status not in (204, 304):
            parts.append(b"content-length: %d\r\n" % length)
        bodyless = self._head_only or status in (204, 304)
        if not bodyless and length is None:
            if self.can_chunk:
                self._chunked = not framed
                parts.append(b"transfer-encoding: chunked\r\n")
            else:
                self._until_close = True
                self.keep_alive = False
        self._head_only = bodyless
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        elif not self.can_chunk:
            parts.append(b"connection: keep-alive\r\n")
        parts.append(b"\r\n")
        self._head = b"".join(parts)

    def write(self, data: bytes) -> None:
        """Part of the body."""
        if data and not (self.gone or self._head_only):
            if self._chunked:
                data = chunk(data)
            head, self._head = self._head, b""
            if not head:
                self._transport.write(data)
            elif len(data) < _JOIN_BYTES:
                self._transport.write(head + data)
            else:
                self._transport.writelines((head, data))

    def flush(self) -> None:
        """Write the head now, if it was not yet."""
        if self._head and not self.gone:
            self._transport.write(self._head)
        self._head = b""

    def end(self) -> None:
        """The body is whole."""
        if self.gone:
            return
        self.flush()
        if self._chunked and not self._head_only:
            self._transport.write(LAST_CHUNK)
        self.ended = True

    def send(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer."""
        self.start(status, headers, length=len(body))
        self.write(body)
        self.end()

    def fail(self, status: int, message: str, headers: Headers | None = None) -> None:
        """A whole error answer in this request's error format, with extra `headers`."""
        own, body = self.errors.body(status, message)
        self.send(status, own + (headers or []), body)

    def abort(self) -> None:
        """Break off a started body so that the client sees it is cut short, never a clean end."""
        if self.gone:
            return
        self.flush()
        self.gone = True
        self.keep_alive = False
        if not self._until_close:
            self._transport.close()  # flushes; the missing length or last chunk tells the client
            return
        # The end of the connection would read as the end of the body: only a reset tells the client.
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def attach(self, source: Source | None) -> None:
        """Couple the body's source to the client's pace; None uncouples."""
        self.flush()
        self._source = source
        if source is not None and self.paused:
            source.pause()

    # called by the connection

    def pause(self) -> None:
        self.paused = True
        if self._source is not None:
            self._source.pause()

    def resume(self) -> None:
        self.paused = False
        if self._source is not None:
            self._source.resume()
