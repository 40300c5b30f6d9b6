"""A connection belongs to one request until it is released, even when its answer is whole already."""

from __future__ import annotations

import asyncio

from router.http.limits import UpstreamLimits
from router.http.upstream import Origin, UpstreamPool

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
HEAD = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


class Sink:
    def __init__(self) -> None:
        self.received = b""

    def data(self, raw: bytes, payload: bytes, safe: int) -> None:
        self.received += payload


async def test_an_answered_request_cannot_close_the_connection_of_the_next() -> None:
    """The first request's task is cancelled after its answer's last byte and before it was woken."""
    may_answer = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(ANSWER[:-2])
            await may_answer.wait()
            writer.write(ANSWER[-2:])

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    origin = Origin("127.0.0.1", server.sockets[0].getsockname()[1])
    pool = UpstreamPool(UpstreamLimits(connect_timeout_s=5, first_byte_timeout_s=5, idle_timeout_s=5, keepalive_s=60))
    try:
        connection = await pool.connect(origin)
        await connection.send("GET", HEAD, b"", 5)
        first = Sink()
        ended = connection.relay(first)
        assert ended is not None
        may_answer.set()
        while not ended.done():
            await asyncio.sleep(0)
        assert first.received == b"hello"
        assert pool.take(origin) is None, "it is not free before its owner let go"
        connection.abort()  # what a cancelled owner does

        other = await pool.connect(origin)
        await other.send("GET", HEAD, b"", 5)
        second = Sink()
        ended = other.relay(second)
        if ended is not None:
            await ended
        other.release()
        assert second.received == b"hello"
        assert pool.take(origin) is other
    finally:
        pool.close()
        server.close()
