"""One client connection: requests in order, one at a time, all in one task."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, cast

from router.http.errors import HttpError
from router.http.message import Request, RequestParser
from router.http.response import Response
from router.http.sockets import notice_vanished_peer

if TYPE_CHECKING:
    from router.http.server import HttpServer

log = logging.getLogger(__name__)

Handler = Callable[[Request, Response], Awaitable[None]]

_BACKLOG_BYTES = 64 * 1024  # unparsed bytes taken while a request runs; above it the client is not read


class ServerConnection(asyncio.Protocol):
    """Reads while a request runs, so that a client that leaves is noticed at once; what it sends meanwhile waits
    unparsed. `deadline` (monotonic seconds) is looked at by the server's sweep, so that no request arms a timer. One
    task answers a connection's requests and sleeps between them: a task for each would cost some microseconds more.
    """

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._limits = server.limits
        self._parser = RequestParser(server.limits, self._on_request, self._on_continue, self._may_hold)
        self._held = 0  # bytes of request bodies that this connection has in memory
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set by connection_made
        self._peer = ""
        self._waiting: deque[Request] = deque()
        self._backlog = bytearray()
        self._reading = True
        self._fault: HttpError | None = None  # answered after the requests that came before it
        self._request: Request | None = None  # being answered, by _response
        self._response: Response | None = None
        self._task: asyncio.Task[None] | None = None
        self._asleep: asyncio.Future[None] | None = None  # what the task waits for between requests
        self._paused = False
        self._deaf = False  # nothing more is read from this client
        self._body_from = 0.0
        self.deadline = math.inf

    # state

    @property
    def running(self) -> bool:
        """A request is being answered or received."""
        return self._response is not None or bool(self._waiting) or self._parser.in_head or self._parser.in_body

    # protocol callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        transport.set_write_buffer_limits(self._limits.write_buffer_bytes)
        notice_vanished_peer(transport)
        connections = self._server.connections
        connections.add(self)
        self.deadline = time.monotonic() + self._limits.header_timeout_s
        if len(connections) > self._limits.max_connections:
            self._refuse(HttpError(503, "too many connections"))

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._response is None:
            self._feed(data)
            self._next()
            return
        self._backlog += data
        if len(self._backlog) > _BACKLOG_BYTES and self._reading:
            self._reading = False
            self._transport.pause_reading()

    def eof_received(self) -> None:
        # A client that shut its sending side while its answer is due has left: agents' clients do not half-close.
        if self._response is not None:
            self._leave()
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._give_back(self._held)
        self._leave()
        self._waiting.clear()
        self._deaf = True
        self.deadline = math.inf
        self._server.check_idle()

    def pause_writing(self) -> None:
        self._paused = True
        self.deadline = time.monotonic() + self._limits.write_timeout_s
        if self._response is not None:
            self._response.pause()

    def resume_writing(self) -> None:
        self._paused = False
        self.deadline = math.inf
        if self._response is not None:
            self._response.resume()
        elif not self._deaf:
            self._set_deadline()

    # receiving

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed(data)
        except HttpError as fault:
            self._fault = fault
            self._deaf = True
        if self._parser.finished:
            self._deaf = True

    def _on_request(self, request: Request) -> None:
        request.peer = self._peer
        if len(self._waiting) < self._limits.max_pipelined:
            self._waiting.append(request)
        else:
            self._parser.finished = True  # answered up to here, then closed: a client has to expect that

    def _may_hold(self, size: int) -> bool:
        self._held += size
        self._server.held_bytes += size
        return self._server.held_bytes <= self._limits.max_buffered_bytes

    def _give_back(self, size: int) -> None:
        size = min(size, self._held)
        self._held -= size
        self._server.held_bytes -= size

    def _on_continue(self) -> None:
        if self._response is None and not self._waiting:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _next(self) -> None:
        """With no request running: start the next one, or wait for it."""
        while True:
            if self._waiting:
                self._start(self._waiting.popleft())
                return
            if self._fault is not None:
                self._refuse(self._fault)
                return
            if self._parser.finished or (self._server.draining and not self.running and not self._backlog):
                self._close()
                return
            if not self._backlog:
                break
            data = bytes(self._backlog)
            self._backlog.clear()
            self._feed(data)
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        if not self._paused:
            self._set_deadline()

    def _set_deadline(self) -> None:
        parser, limits, now = self._parser, self._limits, time.monotonic()
        if parser.in_body:
            self._body_from = self._body_from or now
            self.deadline = self._body_from + limits.body_timeout_s + parser.body_bytes / limits.min_body_rate
        elif not parser.in_head:
            self._body_from = 0.0
            self.deadline = now + limits.keepalive_s
        else:
            self._body_from = 0.0
            self.deadline = min(self.deadline, now + limits.header_timeout_s)

    # answering

    def _start(self, request: Request) -> None:
        self._body_from = 0.0
        if not self._paused:
            self.deadline = math.inf
        response = Response(request, self._transport, self._server.errors, paused=self._paused)
        if self._server.draining or self._server.leaving:
            response.keep_alive = False
        self._request, self._response = request, response
        if self._task is None:
            self._task = self._server.loop.create_task(self._run())
        elif self._asleep is not None and not self._asleep.done():
            self._asleep.set_result(None)

    async def _run(self) -> None:
        """Answer the present request, and each further one, until the client has left."""
        try:
            while (request := self._request) is not None and (response := self._response) is not None:
                try:
                    await self._server.handler(request, response)
                except Exception:
                    log.exception("handler failed: %s %s", request.method, request.path)
                finally:
                    self._request = self._response = None
                    self._give_back(request.received)
                    self._finish(response)
                if self._response is None and not response.gone:
                    del request, response  # nothing of them stays in memory meanwhile
                    self._asleep = self._server.loop.create_future()
                    await self._asleep
        finally:
            self._task = None

    def _finish(self, response: Response) -> None:
        response.attach(None)
        if response.gone:
            return
        if not response.ended:
            if response.started:
                response.abort()
                return
            response.keep_alive = False
            response.fail(500, "internal error in the router")
        if response.keep_alive and not self._server.draining:
            self._next()
        else:
            self._close()

    def _leave(self) -> None:
        if self._response is not None:
            self._response.gone = True
        if self._task is not None:
            self._task.cancel()

    def _refuse(self, fault: HttpError) -> None:
        """Answer a fault found before a handler ran, then close without a reset that could overtake the answer."""
        self._deaf = True
        request = Request("GET", self._parser.target, [], keep_alive=False)
        headers = [(b"retry-after", b"1")] if fault.status == 503 else None
        errors = self._server.errors_at(request.path)
        Response(request, self._transport, errors).fail(fault.status, fault.message, headers)
        self._linger()

    def _linger(self) -> None:
        if not self._transport.can_write_eof():
            self._close()
            return
        self._transport.write_eof()
        self.deadline = time.monotonic() + self._limits.linger_s

    def _close(self) -> None:
        self._deaf = True
        self.deadline = time.monotonic() + self._limits.write_timeout_s  # for the flush
        self._transport.close()

    # called by the server

    def time_out(self) -> None:
        """The deadline passed."""
        self.deadline = math.inf
        if self._deaf or self._paused or self._transport.is_closing():
            self._leave()
            self._transport.abort()
        elif self._parser.in_head or self._parser.in_body:
            part = "body" if self._parser.in_body else "header"
            self._refuse(HttpError(408, f"request {part} not received in time"))
        else:
            self._close()

    def close_if_idle(self) -> None:
        if not self.running and not self._backlog:
            self._close()

    def kill(self) -> None:
        """Drop the connection and cancel what runs for it."""
        self._leave()
        self._transport.abort()
