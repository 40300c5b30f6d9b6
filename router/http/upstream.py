"""Pooled keep-alive connections to the replicas."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Any, NamedTuple

from router.http.errors import ConnectFailed, PoolFull, UpstreamTimeout
from router.http.limits import UpstreamLimits
from router.http.upstream_connection import UpstreamConnection


class Origin(NamedTuple):
    """Where a replica listens; tls: the client context for https, None for http."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


_TURNS = 4
"""Turns of the loop before a connection counts as not made in time: it may have been made while this loop was busy, and
a replica must not be blamed for that."""


class UpstreamPool:
    """Connections per origin, the one used last first; idle ones are dropped before the engine would drop them."""

    def __init__(self, limits: UpstreamLimits | None = None) -> None:
        self.limits = limits or UpstreamLimits()
        self.loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]  # set by the first connect
        self.busy: set[UpstreamConnection] = set()
        self.open: dict[Origin, int] = {}
        """Connections open or being opened, by origin."""
        self._idle: dict[Origin, list[UpstreamConnection]] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def idle_count(self) -> int:
        """Idle connections held, all origins."""
        return sum(len(connections) for connections in self._idle.values())

    def take(self, origin: Origin) -> UpstreamConnection | None:
        """An idle connection that is still open as far as is known, or None."""
        connections = self._idle.get(origin)
        if connections:
            oldest = time.monotonic() - self.limits.keepalive_s
            while connections:
                connection = connections.pop()
                if connection.usable and connection.idle_since > oldest:
                    return connection
                connection.abort()
        return None

    async def connect(self, origin: Origin, timeout_s: float | None = None) -> UpstreamConnection:
        """A fresh connection. Raises PoolFull, ConnectFailed, or UpstreamTimeout (`connect`) after timeout_s."""
        if self.open.get(origin, 0) >= self.limits.max_per_origin:
            raise PoolFull(f"{self.limits.max_per_origin} connections to {origin} are open")
        if self._sweeper is None and not self._closed:
            self.loop = asyncio.get_running_loop()
            self._sweep()
        limit = self.limits.connect_timeout_s
        if timeout_s is not None:
            limit = min(limit, timeout_s)
        connection = UpstreamConnection(self, origin)
        self.open[origin] = self.open.get(origin, 0) + 1
        making = self.loop.create_task(
            self.loop.create_connection(lambda: connection, origin.host, origin.port, ssl=origin.tls)
        )
        connected = False
        try:
            await asyncio.wait((making,), timeout=limit)
            for _ in range(_TURNS):
                if not making.done():
                    await asyncio.sleep(0)
            if not making.done():
                raise UpstreamTimeout(f"{origin} accepted no connection in time", stage="connect")
            making.result()
            connected = True
        except (OSError, ssl.SSLError) as fault:
            raise ConnectFailed(f"cannot connect to {origin}: {fault.strerror or fault}") from None
        finally:
            if not connected:
                making.cancel()
                making.add_done_callback(_done)
                connection.abort()
                self.closed(connection)
        return connection

    def closed(self, connection: UpstreamConnection) -> None:
        """Called when a connection is gone, or never came about; more than once does no harm."""
        if connection.counted:
            connection.counted = False
            left = self.open[connection.origin] - 1
            if left:
                self.open[connection.origin] = left
            else:
                del self.open[connection.origin]

    def put(self, connection: UpstreamConnection) -> None:
        """Called by a connection whose exchange ended well."""
        connections = self._idle.setdefault(connection.origin, [])
        if self._closed or len(connections) >= self.limits.max_idle_per_origin:
            connection.abort()
            return
        connection.idle_since = time.monotonic()
        connections.append(connection)

    def close(self) -> None:
        """Drop every connection, running exchanges included."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()
        for connection in list(self.busy):
            connection.time_out()

    def _sweep(self) -> None:
        now = time.monotonic()
        for connection in [each for each in self.busy if each.deadline <= now]:
            connection.time_out()
        oldest = now - self.limits.keepalive_s
        for origin, connections in list(self._idle.items()):
            kept = []
            for connection in connections:
                if connection.usable and connection.idle_since > oldest:
                    kept.append(connection)
                else:
                    connection.abort()
            if kept:
                connections[:] = kept
            else:
                del self._idle[origin]
        self._sweeper = self.loop.call_later(self.limits.tick_s(), self._sweep)


def _done(making: asyncio.Task[Any]) -> None:
    """How it ended no longer matters."""
    if not making.cancelled():
        making.exception()
