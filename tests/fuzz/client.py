"""Sends fuzzed requests and judges what comes back."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import httptools
from fuzz import mutate

ANSWERED_S = 30.0
"""A request without an answer, and without the connection's end, for so long is a hang."""
ALLOWED = frozenset({200, 400, 401, 403, 404, 405, 408, 413, 414, 417, 422, 429, 431, 501, 503, 504, 505})
"""501: a method that is not served; 503, 504: no room or no time. Never 500 or 502: the engine answers everything."""


class Talk(asyncio.Protocol):
    """One connection: sends, collects statuses. `done`: True when the router closed, False after `expected` answers."""

    def __init__(self, data: bytes, expected: int | None) -> None:
        self.statuses: list[int] = []
        self.garbage = b""
        self.lost = False
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._data = data
        self._expected = expected
        self._parser = httptools.HttpResponseParser(self)
        self._raw = bytearray()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self._data)

    def again(self, data: bytes) -> None:
        """The next request on the same connection."""
        self.statuses = []
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self._expected is None:
            self._raw += data
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as fault:
            self.garbage = f"{fault}: {data[:200]!r}".encode()
            self.transport.abort()

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self.statuses.append(status)
            if len(self.statuses) == self._expected and not self.done.done():
                self.done.set_result(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._expected is None:
            for part in bytes(self._raw).split(b"HTTP/1.1 ")[1:]:
                if part[:3].isdigit() and part[:3] != b"100":
                    self.statuses.append(int(part[:3]))
        if not self.done.done():
            self.done.set_result(True)


class Fuzz:
    """`workers` clients in parallel until `count` requests were sent. Faults are kept, not raised."""

    def __init__(self, port: int, seed: int) -> None:
        self.port = port
        self.statuses: Counter[int] = Counter()
        self.faults: list[str] = []
        self.sent = 0
        self.closed = 0
        self._rng = random.Random(seed)

    async def run(self, count: int, workers: int = 64) -> None:
        await asyncio.gather(*(self._worker(count) for _ in range(workers)))

    async def _worker(self, count: int) -> None:
        kept: Talk | None = None
        while self.sent < count and len(self.faults) < 20:
            self.sent += 1
            if self._rng.random() < 0.25:
                await self._broken()
            else:
                kept = await self._whole(kept)
        if kept is not None:
            kept.transport.abort()

    async def _connect(self, data: bytes, expected: int | None) -> Talk:
        loop = asyncio.get_running_loop()
        _, talk = await loop.create_connection(lambda: Talk(data, expected), "127.0.0.1", self.port)
        return talk

    async def _broken(self) -> None:
        data = mutate.broken(self._rng)
        # The half that stays open ends by the router's own time limits.
        talk = await self._connect(data, None)
        await self._judge(talk, data)

    async def _whole(self, talk: Talk | None) -> Talk | None:
        data = mutate.whole(self._rng)
        if data.startswith(b"HEAD"):  # the parser can't know that no body follows
            talk_once = await self._connect(data.replace(b"Host:", b"Connection: close\r\nHost:", 1), None)
            await self._judge(talk_once, data)
            return talk
        if talk is not None and not talk.lost:
            talk.again(data)
            await asyncio.wait([talk.done], timeout=ANSWERED_S)
            if talk.statuses or not talk.lost:
                return None if await self._judge(talk, data) else talk
        # None yet, or the router closed it as idle in the same moment: a fresh one.
        talk = await self._connect(data, 1)
        return None if await self._judge(talk, data) else talk

    async def _judge(self, talk: Talk, data: bytes) -> bool:
        try:
            async with asyncio.timeout(ANSWERED_S):
                closed = await talk.done
        except TimeoutError:
            self.faults.append(f"hang: {data!r}")
            talk.transport.abort()
            return True
        self.statuses.update(talk.statuses)
        self.closed += not talk.statuses
        if talk.garbage:
            self.faults.append(f"unreadable answer {talk.garbage!r} to {data!r}")
        for status in talk.statuses:
            if status not in ALLOWED:
                self.faults.append(f"{status} for {data!r}")
        return closed
