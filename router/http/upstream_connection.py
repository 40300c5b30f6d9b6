"""One connection to a replica: a request out, the answer's bytes handed on as they come."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Protocol, cast

from router.http.errors import BadResponse, ConnectionLost, UpstreamError, UpstreamTimeout
from router.http.framing import ChunkScanner, FramingError
from router.http.sockets import notice_vanished_peer
from router.http.upstream_head import Framing, ResponseHead, parse_head

if TYPE_CHECKING:
    from router.http.upstream import Origin, UpstreamPool

_PENDING_BYTES = 256 * 1024  # body bytes kept before anybody takes them; above it the upstream is not read
_JOIN_BYTES = 16 * 1024  # head and body below it leave as one write


class BodySink(Protocol):
    """Takes an answer's body."""

    def data(self, raw: bytes, payload: bytes, safe: int) -> None:
        """raw: bytes as received, chunk framing included. payload: the body bytes in them. safe: ChunkScanner.safe,
        the offset in raw up to which whole SSE events in whole chunks have come (0 for other framings)."""
        ...


class UpstreamConnection(asyncio.Protocol):
    """One request at a time. `deadline` (monotonic seconds) is watched by the pool's sweep."""

    def __init__(self, pool: UpstreamPool, origin: Origin) -> None:
        self._pool = pool
        self.origin = origin
        self.uses = 0
        self.closed = False
        self.counted = True  # among the pool's open connections
        self.idle_since = 0.0
        self.deadline = math.inf
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set by connection_made
        self._busy = False
        self._paused = False
        self._method = "GET"
        self._buffer = b""
        self._head: ResponseHead | None = None
        self._head_waiter: asyncio.Future[ResponseHead] | None = None
        self._body_waiter: asyncio.Future[None] | None = None
        self._sink: BodySink | None = None
        self._pending: list[tuple[bytes, bytes, int]] = []
        self._pending_bytes = 0
        self._scanner: ChunkScanner | None = None
        self._left = 0
        self._complete = False
        self._error: UpstreamError | None = None
        self._idle_s = pool.limits.idle_timeout_s

    # one exchange

    def send(self, method: str, head: bytes, body: bytes, timeout_s: float) -> asyncio.Future[ResponseHead]:
        """Send a request. The future has the answer's head once the first byte of its body, or its end, is there.

        It fails with ConnectionLost, UpstreamTimeout (`first_byte`, after timeout_s) or BadResponse.
        """
        self.uses += 1
        self._busy = True
        self._method = method
        self._buffer = b""
        self._head = None
        self._sink = None
        self._pending = []
        self._pending_bytes = 0
        self._complete = False
        self._body_waiter = None
        self.deadline = time.monotonic() + timeout_s
        self._pool.busy.add(self)
        self._head_waiter = waiter = self._pool.loop.create_future()
        if self._error is not None or self._transport.is_closing():
            self._fail(
                ConnectionLost(f"{self.origin} closed the connection", stage="before_head", reused=self.uses > 1)
            )
        elif not body:
            self._transport.write(head)
        elif len(body) < _JOIN_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        return waiter

    def peek(self) -> bytes:
        """The first piece of the body's payload, before `relay`; empty if there is none."""
        return self._pending[0][1] if self._pending else b""

    def relay(self, sink: BodySink) -> asyncio.Future[None] | None:
        """Hand the body to sink as it comes. None: it is whole already; else a future of its end (or its failure).

        The connection stays the caller's until `release`, `discard` or `abort`: were it back in the pool while the
        caller is still to be woken, closing or pausing it then would hit the request that has taken it meanwhile.
        """
        self._sink = sink
        pending, self._pending = self._pending, []
        for raw, payload, safe in pending:
            sink.data(raw, payload, safe)
        if self._complete:
            return None
        self._body_waiter = waiter = self._pool.loop.create_future()
        if self._error is not None:
            waiter.set_exception(self._error)
        elif self._pending_bytes > _PENDING_BYTES:
            self.resume()
        return waiter

    def discard(self) -> None:
        """The answer is not wanted: back to the pool if it is whole, else closed (the replica stops its work)."""
        if self._complete and not self.closed:
            self.release()
        else:
            self.abort()

    def abort(self) -> None:
        """Close at once; nothing more is handed on."""
        self._busy = False
        self._sink = None
        self._close()

    def pause(self) -> None:
        """Stop reading: the client is slower than the replica."""
        if not (self._paused or self.closed or self._complete):
            self._paused = True
            self.deadline = math.inf
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._paused:
            self._paused = False
            if not self.closed:
                self.deadline = time.monotonic() + self._idle_s
                self._transport.resume_reading()

    @property
    def usable(self) -> bool:
        """Idle and, as far as is known, open."""
        return not (self.closed or self._transport.is_closing())

    # protocol callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        notice_vanished_peer(transport)

    def data_received(self, data: bytes) -> None:
        if not self._busy or self._complete:
            # Bytes nobody asked for: whatever they are, they must not become the next request's answer.
            self._close()
        elif self._head is None:
            self._take_head(data)
        else:
            self.deadline = time.monotonic() + self._idle_s
            self._take_body(data)

    def eof_received(self) -> None:
        if self._busy and self._head is not None and self._head.framing is Framing.CLOSE and not self._complete:
            self._take_end()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._pool.closed(self)
        if self._busy and not self._complete:
            self._fail(
                ConnectionLost(f"{self.origin} closed the connection", stage=self._stage(), reused=self.uses > 1)
            )

    def time_out(self) -> None:
        """The deadline passed."""
        self.deadline = math.inf
        if self._head_waiter is not None:
            self._fail(UpstreamTimeout(f"{self.origin} sent no answer in time", stage="first_byte"))
        else:
            self._fail(UpstreamTimeout(f"{self.origin} stalled within its answer", stage="idle"))

    # receiving

    def _stage(self) -> str:
        if self._head is None:
            return "in_head" if self._buffer else "before_head"
        return "before_body" if self._head_waiter is not None else "in_body"

    def _take_head(self, data: bytes) -> None:
        self._buffer = data = self._buffer + data if self._buffer else data
        end = data.find(b"\r\n\r\n")
        while 0 <= end <= self._pool.limits.max_head_bytes:
            end += 4
            try:
                head = parse_head(data[:end], self._method)
            except BadResponse as fault:
                self._fail(BadResponse(f"{self.origin}: {fault}"))
                return
            data = data[end:]
            if head.status >= 200:
                self._begin_body(head, data)
                return
            self._buffer = data  # 1xx: skipped
            end = data.find(b"\r\n\r\n")
        if len(data) > self._pool.limits.max_head_bytes:
            self._fail(BadResponse(f"{self.origin}: header block over {self._pool.limits.max_head_bytes} bytes"))
        elif b"\n\n" in data:  # its end would be waited for in vain
            self._fail(BadResponse(f"{self.origin}: header lines that don't end in CRLF"))

    def _begin_body(self, head: ResponseHead, data: bytes) -> None:
        self._head = head
        self._buffer = b""
        if head.framing is Framing.CHUNKED:
            self._scanner = ChunkScanner()
        elif head.framing is Framing.LENGTH:
            self._left = head.length or 0
        elif head.framing is Framing.NONE:
            head.keep_alive = head.keep_alive and not data
            self._take_end()
            return
        if data:
            self._take_body(data)

    def _take_body(self, data: bytes) -> None:
        head = self._head
        assert head is not None
        payload = data
        safe = 0
        ended = False
        if head.framing is Framing.CHUNKED:
            scanner = self._scanner
            assert scanner is not None
            try:
                payload = scanner.feed(data)
            except FramingError as fault:
                self._fail(BadResponse(f"{self.origin}: {fault}", in_body=self._head_waiter is None))
                return
            safe = scanner.safe
            if scanner.end >= 0:
                ended = True
                if scanner.end < len(data):
                    head.keep_alive = False
                    data = data[: scanner.end]
        elif head.framing is Framing.LENGTH:
            self._left -= len(data)
            if self._left <= 0:
                ended = True
                if self._left < 0:
                    head.keep_alive = False
                    data = payload = data[: self._left]
        if self._sink is not None:
            self._sink.data(data, payload, safe)
        else:
            self._pending.append((data, payload, safe))
            self._pending_bytes += len(data)
            if self._pending_bytes > _PENDING_BYTES:
                self.pause()
        if ended:
            self._take_end()
        elif payload and self._head_waiter is not None:
            self._announce(head)

    def _announce(self, head: ResponseHead) -> None:
        waiter, self._head_waiter = self._head_waiter, None
        self.deadline = time.monotonic() + self._idle_s
        if waiter is not None and not waiter.done():
            waiter.set_result(head)

    def _take_end(self) -> None:
        self._complete = True
        self.deadline = math.inf
        head = self._head
        assert head is not None
        if self._head_waiter is not None:
            self._announce(head)
            self.deadline = math.inf
        waiter, self._body_waiter = self._body_waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def release(self) -> None:
        """The answer was handed on whole: back to the pool, unless the connection cannot serve another request."""
        head = self._head
        self._busy = False
        self._sink = None
        self._head = None
        self._scanner = None
        self._pool.busy.discard(self)
        # A request body still in the buffer means that the replica answered without reading it.
        if head is None or not head.keep_alive or self.closed or self._transport.get_write_buffer_size():
            self._close()
            return
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        self.deadline = math.inf
        self._pool.put(self)

    def _fail(self, error: UpstreamError) -> None:
        self._error = error
        for waiter in (self._head_waiter, self._body_waiter):
            if waiter is not None and not waiter.done():
                waiter.set_exception(error)
        self._head_waiter = self._body_waiter = None
        self._close()

    def _close(self) -> None:
        self.closed = True
        self.deadline = math.inf
        self._pool.busy.discard(self)
        if self._transport is not None:
            self._transport.abort()
