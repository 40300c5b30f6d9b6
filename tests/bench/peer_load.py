"""Load for peers.py: raw HTTP/1.1 over asyncio protocols, so that the client costs little."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

HEADERS = (
    b"Host: a\r\nContent-Type: application/json\r\nAccept: */*\r\nAuthorization: Bearer x\r\nUser-Agent: bench\r\n"
)


def post(body: bytes, extra: bytes = b"") -> bytes:
    path = b"POST /v1/chat/completions HTTP/1.1\r\n"
    return path + HEADERS + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body


@dataclass(slots=True)
class Tally:
    latencies: list[float] = field(default_factory=list)
    events: int = 0
    errors: list[str] = field(default_factory=list)


class Connection(asyncio.Protocol):
    """Sends a request, waits for the whole answer (Content-Length or chunked), says so."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.waiting: asyncio.Future[None] | None = None
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, request: bytes) -> asyncio.Future[None]:
        self.buffer = b""
        self.needed = -1
        self.seen = 0
        self.began = time.perf_counter()
        self.waiting = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.waiting

    def data_received(self, data: bytes) -> None:
        if self.needed < 0:
            self.buffer += data
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head, data = self.buffer[:end].lower(), self.buffer[end + 4 :]
            self.status = int(head[9:12])
            at = head.find(b"content-length:")
            self.needed = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            self.chunked = at < 0
            self.buffer = b""
        self.seen += len(data)
        if self.chunked:
            self.tally.events += data.count(b'"delta":{"content"')
            self.buffer = (self.buffer + data)[-16:]
            if self.buffer.endswith(b"\r\n0\r\n\r\n"):
                self.finish(None)
        elif self.seen >= self.needed:
            self.finish(None)

    def finish(self, error: str | None) -> None:
        waiting, self.waiting = self.waiting, None
        if waiting is None or waiting.done():
            return
        if error is None and self.status != 200:
            error = f"status {self.status}"
        if error is not None:
            self.tally.errors.append(error)
        self.tally.latencies.append(time.perf_counter() - self.began)
        waiting.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.status = 0
        self.finish(f"connection lost: {error}")


async def connect(port: int, tally: Tally) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(tally), "127.0.0.1", port)
    return connection


async def closed(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Tally:
    """`connections` clients, each sends its next request when an answer is whole."""
    tally = Tally()
    until = time.perf_counter() + seconds
    source = itertools.cycle(requests)

    async def client() -> None:
        connection = await connect(port, tally)
        while time.perf_counter() < until and not connection.transport.is_closing():
            await connection.send(next(source))
        connection.transport.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    return tally


async def paced(port: int, requests: Sequence[bytes], rate: float, seconds: float) -> Tally:
    """`rate` requests a second, evenly spaced, whatever the answers do; latency counts from when each was due."""
    tally = Tally()
    idle: list[Connection] = [await connect(port, tally) for _ in range(16)]
    tasks: set[asyncio.Task[None]] = set()
    source: Iterator[bytes] = itertools.cycle(requests)
    began = time.perf_counter()

    async def one(due: float) -> None:
        connection = idle.pop() if idle else await connect(port, tally)
        if connection.transport.is_closing():
            connection = await connect(port, tally)
        waiting = connection.send(next(source))
        connection.began = due
        await waiting
        idle.append(connection)

    for number in range(int(rate * seconds)):
        due = began + number / rate
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(one(due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    for connection in idle:
        connection.transport.close()
    return tally


async def streams(port: int, request: bytes, count: int, opening_s: float = 0.0) -> Tally:
    """`count` streams at once, each on a connection of its own, opened over `opening_s`."""
    tally = Tally()

    async def one(place: int) -> None:
        await asyncio.sleep(opening_s * place / count)
        try:
            connection = await connect(port, tally)
        except OSError as error:
            tally.errors.append(f"connect: {error}")
            return
        await connection.send(request)
        connection.transport.close()

    await asyncio.gather(*(one(place) for place in range(count)))
    return tally


async def sequences(port: int, sessions: Sequence[Sequence[bytes]], at_once: int = 4) -> Tally:
    """Each session's requests one after the other; so many sessions at once."""
    tally = Tally()
    waiting = list(sessions)

    async def client() -> None:
        connection = await connect(port, tally)
        while waiting:
            for request in waiting.pop():
                await connection.send(request)
        connection.transport.close()

    await asyncio.gather(*(client() for _ in range(at_once)))
    return tally
