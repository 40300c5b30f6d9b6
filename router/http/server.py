"""HTTP/1.1 server on asyncio protocols: the client's side of the data plane."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl as ssl_module
import time
from collections.abc import Callable

from router.http.connection import Handler, ServerConnection
from router.http.errors import OPENAI_ERRORS, ErrorFormat
from router.http.limits import Limits

_ACCEPTED_AT_ONCE = 1024
"""Connections taken in one turn of the loop: 60 ms."""


class HttpServer:
    """Calls `handler(request, response)` in a task for each whole request.

    The task is cancelled as soon as the client leaves. A handler that returns without an answer makes a 500; one that
    returns within a started answer breaks the connection off. `errors`: the format of what is refused, unless a handler
    sets another one; `errors_at`: that of what is refused before a handler runs, by the request's path.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        limits: Limits | None = None,
        errors: ErrorFormat = OPENAI_ERRORS,
        errors_at: Callable[[str], ErrorFormat] | None = None,
        backlog: int = 65_535,
    ) -> None:
        self.handler = handler
        self.limits = limits or Limits()
        self.errors = errors
        self.errors_at = errors_at or (lambda _path: errors)
        self.draining = False
        self.leaving = False
        """Clients are told to come back over a new connection, which may lead to another router."""
        self.connections: set[ServerConnection] = set()
        self.held_bytes = 0
        """Bytes of request bodies in memory, all connections."""
        self.loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]  # set by start
        self._backlog = backlog
        self._servers: list[asyncio.Server] = []
        self._listening: list[socket.socket] = []
        self._adopting: set[asyncio.Task[None]] = set()
        self._tls: ssl_module.SSLContext | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._idle: asyncio.Event | None = None

    async def start(
        self, host: str, port: int, *, reuse_port: bool = False, ssl: ssl_module.SSLContext | None = None
    ) -> None:
        """Listen; port 0 takes a free one, see `port`. Raises OSError when the address cannot be bound."""
        self.loop = asyncio.get_running_loop()
        self._tls = ssl
        self._servers = [
            await self.loop.create_server(
                self._accepted,
                host,
                port,
                reuse_port=reuse_port or None,
                ssl=ssl,
                ssl_handshake_timeout=self.limits.header_timeout_s if ssl else None,
                backlog=self._backlog,
            )
        ]
        self._listening = [_duplicate(listening) for listening in self._servers[0].sockets]
        self._sweep()

    async def renew(self, ssl: ssl_module.SSLContext | None) -> None:
        """New connections get this TLS context (None: plain HTTP). The ports stay open all the while."""
        before, self._tls = self._servers, ssl
        self._servers = [
            await self.loop.create_server(
                self._accepted,
                sock=_duplicate(listening),
                ssl=ssl,
                ssl_handshake_timeout=self.limits.header_timeout_s if ssl else None,
                backlog=self._backlog,
            )
            for listening in self._listening
        ]
        for server in before:
            server.close()

    def _accepted(self) -> ServerConnection:
        """A connection was taken; those that wait behind it are taken in the same turn.

        libuv takes one each turn. Turns are long under load: connections would come faster than they are taken, until
        the system's queue overflows and clients are reset.
        """
        for listening in self._listening:
            for _ in range(_ACCEPTED_AT_ONCE):
                try:
                    sock, _address = listening.accept()
                except OSError:  # none waits, or there are too many open files
                    break
                sock.setblocking(False)
                task = self.loop.create_task(self._adopt(sock))
                self._adopting.add(task)
                task.add_done_callback(self._adopted)
        return ServerConnection(self)

    async def _adopt(self, sock: socket.socket) -> None:
        tls = self._tls
        try:
            await self.loop.connect_accepted_socket(
                lambda: ServerConnection(self),
                sock,
                ssl=tls,
                ssl_handshake_timeout=self.limits.header_timeout_s if tls else None,
            )
        except OSError:  # it left, or the handshake failed
            sock.close()

    def _adopted(self, task: asyncio.Task[None]) -> None:
        self._adopting.discard(task)
        self.check_idle()

    def _stop_listening(self) -> None:
        for server in self._servers:
            server.close()
        for listening in self._listening:
            listening.close()
        self._listening = []

    @property
    def port(self) -> int:
        """The bound port."""
        return int(self._servers[0].sockets[0].getsockname()[1])

    async def drain(self, grace_s: float) -> bool:
        """Stop accepting, close idle connections, let running requests finish for grace_s seconds, then cut them.

        True if nothing had to be cut.
        """
        self.draining = True
        self._stop_listening()
        self._idle = asyncio.Event()
        for connection in list(self.connections):
            connection.close_if_idle()
        self.check_idle()
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        clean = self._idle.is_set()
        await self.close()
        return clean

    def cut(self) -> None:
        """Drop every connection; a `drain` that waits for them is done then."""
        for connection in list(self.connections):
            connection.kill()

    async def close(self) -> None:
        """Stop at once: every connection is dropped, every handler cancelled."""
        self.draining = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._stop_listening()
        for connection in list(self.connections):
            connection.kill()
        for _ in range(100):  # connection_lost and the cancelled handlers run in the next turns of the loop
            if not self.connections:
                break
            await asyncio.sleep(0.001)

    def check_idle(self) -> None:
        """Called by a connection that ended. A drained one ends only after its last bytes went out."""
        if self._idle is not None and not self.connections and not self._adopting:
            self._idle.set()

    def _sweep(self) -> None:
        now = time.monotonic()
        for connection in [each for each in self.connections if each.deadline <= now]:
            connection.time_out()
        self._sweeper = self.loop.call_later(self.limits.tick_s(), self._sweep)


def _duplicate(listening: socket.socket) -> socket.socket:
    """The same queue of connections, by a socket that does not block."""
    sock = socket.socket(fileno=os.dup(listening.fileno()))
    sock.setblocking(False)
    return sock
