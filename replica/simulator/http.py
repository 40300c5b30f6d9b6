"""HTTP/1.1 on one asyncio protocol: just what a simulated engine needs, and every way of misbehaving.

A reply is written straight to the transport, so that a streamed token costs one `write` and no task. Idle
connections are closed after `keep_alive` seconds, 5 by default like uvicorn's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from time import time
from typing import cast
from urllib.parse import unquote

import httptools

REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    422: "Unprocessable Entity", 424: "Failed Dependency", 429: "Too Many Requests", 500: "Internal Server Error",
    501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout",
}  # fmt: skip
JSON_TYPE = "application/json"


@dataclass(slots=True)
class Request:
    """One request. Header names are lower case in `headers`, as received in `raw_headers`."""

    method: str
    target: str
    raw_headers: list[tuple[bytes, bytes]]
    body: bytes

    @property
    def path(self) -> str:
        return unquote(self.target.partition("?")[0])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self.raw_headers}


class Reply:
    """The answer to one request: `send`, or `start`, `chunk`..., `end`."""

    def __init__(self, connection: Connection, keep_alive: bool) -> None:
        self._connection = connection
        self._keep_alive = keep_alive
        self.on_disconnect: Callable[[], None] | None = None
        """Called when the client leaves before the answer is complete."""
        self.extra = ""
        """Header lines added to every answer."""
        self.done = False
        self.started = False

    def send(self, status: int, body: bytes, content_type: str = JSON_TYPE, headers: str = "") -> None:
        """A whole answer with Content-Length. Does nothing when the client is gone."""
        if self.done:
            return
        head = f"{_head(status, int(time()))}content-length: {len(body)}\r\n"
        if content_type:
            head += f"content-type: {content_type}\r\n"
        self._connection.write(f"{head}{headers}{self._tail()}\r\n".encode("latin-1") + body)
        self._finish()

    def start(self, status: int, content_type: str, headers: str = "") -> None:
        """The head of a chunked answer."""
        if self.done:
            return
        self.started = True
        head = f"{_head(status, int(time()))}content-type: {content_type}\r\n{headers}{self._tail()}"
        self._connection.write(f"{head}transfer-encoding: chunked\r\n\r\n".encode("latin-1"))

    def chunk(self, data: bytes) -> None:
        if not self.done:
            self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        if not self.done:
            self._connection.write(b"0\r\n\r\n")
            self._finish()

    def raw(self, data: bytes) -> None:
        """Fault: bytes as they are, then the connection is closed."""
        self._connection.write(data)
        self.done = True
        self._connection.close()

    def reset(self) -> None:
        """Fault: drop the connection with a TCP reset."""
        self.done = True
        self._connection.reset()

    def _tail(self) -> str:
        return self.extra if self._keep_alive else self.extra + "connection: close\r\n"

    def _finish(self) -> None:
        self.done = True
        self._connection.answered(self._keep_alive)


@lru_cache(maxsize=16)
def _head(status: int, second: int) -> str:
    reason = REASONS.get(status, "Unknown")
    return (
        f"HTTP/1.1 {status} {reason}\r\ndate: {formatdate(second, usegmt=True)}\r\nserver: uvicorn\r\nvary: Origin\r\n"
    )


Handler = Callable[[Request, Reply], None]


class Connection(asyncio.Protocol):
    """One client connection; requests are answered one at a time, in order."""

    def __init__(self, handler: Handler, connections: set[Connection], keep_alive: float) -> None:
        self._handler = handler
        self._connections = connections
        self._keep_alive_s = keep_alive
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[tuple[Request, bool]] = deque()
        self._reply: Reply | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._begin()

    def _begin(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._connections.add(self)
        self._wait_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._transport = None
        self._stop_idle()
        reply, self._reply = self._reply, None
        self._queue.clear()
        if reply is not None and not reply.done:
            reply.done = True
            if reply.on_disconnect is not None:
                reply.on_disconnect()

    def data_received(self, data: bytes) -> None:
        self._stop_idle()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.close()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"expect" and value.lower() == b"100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode("latin-1")
        request = Request(method, self._url.decode("latin-1"), self._headers, b"".join(self._body))
        self._queue.append((request, self._parser.should_keep_alive()))
        self._begin()
        if self._reply is None:
            self._serve_next()

    def _serve_next(self) -> None:
        request, keep_alive = self._queue.popleft()
        reply = self._reply = Reply(self, keep_alive)
        self._handler(request, reply)

    def answered(self, keep_alive: bool) -> None:
        self._reply = None
        if not keep_alive:
            self.close()
        elif self._queue:
            asyncio.get_running_loop().call_soon(self._continue)
        else:
            self._wait_idle()

    def _continue(self) -> None:
        if self._reply is None and self._queue and self._transport is not None:
            self._serve_next()

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Close with RST: SO_LINGER 0 makes the kernel drop what it still holds."""
        if self._transport is None:
            return
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _wait_idle(self) -> None:
        if self._transport is not None and self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(self._keep_alive_s, self._close_idle)

    def _stop_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _close_idle(self) -> None:
        self._idle = None
        if self._reply is None:
            self.close()


class HttpServer:
    """A listener on one address. `port` 0: any; the real one is kept for the next `start`."""

    def __init__(self, handler: Handler, host: str = "127.0.0.1", port: int = 0, keep_alive: float = 5.0) -> None:
        self.host = host
        self.port = port
        self._handler = handler
        self._keep_alive = keep_alive
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._handler, self._connections, self._keep_alive), self.host, self.port, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self, *, reset: bool = False) -> None:
        """Close the listener and every connection; with `reset` as a killed process does (RST)."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            if reset:
                connection.reset()
            else:
                connection.close()
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None
