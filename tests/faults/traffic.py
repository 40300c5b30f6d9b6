"""Clients under which a fleet is broken: streams and whole answers, every one of them judged."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter

import aiohttp

PATIENCE_S = 30.0
WHOLE, STREAM, LEAVES = "whole", "stream", "leaves"


class Traffic:
    """`clients` in parallel. Every request is one of:

    - `answered`: 200, and whole;
    - `cut`: a stream that had begun, ended by a well-formed error event and `[DONE]`;
    - `left`: by its client, on purpose;
    - a failure, kept in `failures`: another status, a broken connection, a stream cut without a word.
    """

    def __init__(self, url: str, seed: int, *, clients: int = 16, streams: float = 0.5, leavers: float = 0.02) -> None:
        self.url = url
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._rng = random.Random(seed)
        self._clients = clients
        self._streams = streams
        self._leavers = leavers
        self._stopping = False

    @property
    def requests(self) -> int:
        return self.counts.total()

    def stop(self) -> None:
        """No new requests."""
        self._stopping = True

    async def run(self, count: int = 1 << 60) -> None:
        """Until so many requests were made, or `stop`."""
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await asyncio.gather(*(self._client(session, number, count) for number in range(self._clients)))

    async def _client(self, session: aiohttp.ClientSession, number: int, count: int) -> None:
        history: list[dict[str, str]] = []
        while not self._stopping and self.requests < count and len(self.failures) < 50:
            if len(history) > 8:
                history = []
            history.append({"role": "user", "content": f"{number} {self._rng.random()} " + "word " * 20})
            kind = STREAM if self._rng.random() < self._streams else WHOLE
            if self._rng.random() < self._leavers:
                kind = LEAVES
            body = {"model": "sim", "messages": history, "max_tokens": self._rng.randint(1, 12)}
            try:
                self.counts[await self._one(session, kind, body)] += 1
            except (aiohttp.ClientError, TimeoutError, AssertionError) as error:
                self.counts["failed"] += 1
                self.failures.append(f"{kind}: {type(error).__name__}: {str(error)[:300]}")
            history.append({"role": "assistant", "content": "ok"})

    async def _one(self, session: aiohttp.ClientSession, kind: str, body: dict[str, object]) -> str:
        url = self.url + "/v1/chat/completions"
        if kind == LEAVES:
            task = asyncio.ensure_future(self._stream(session, url, body))
            await asyncio.wait([task], timeout=self._rng.random() * 0.05)
            if task.done():
                return task.result()
            task.cancel()
            await asyncio.wait([task])
            return "left"
        if kind == STREAM:
            return await self._stream(session, url, body)
        async with session.post(url, json=body) as answer:
            text = await answer.text()
            assert answer.status == 200, f"{answer.status} {text}"
            assert "choices" in json.loads(text)
            return "answered"

    async def _stream(self, session: aiohttp.ClientSession, url: str, body: dict[str, object]) -> str:
        text, status, began = "", 0, asyncio.get_running_loop().time()
        try:
            async with session.post(url, json={**body, "stream": True}) as answer:
                status = answer.status
                async for piece in answer.content.iter_any():
                    text += piece.decode()
        except TimeoutError:
            took = asyncio.get_running_loop().time() - began
            raise AssertionError(f"no end after {took:.0f} s: status {status}, received {text[-300:]!r}") from None
        assert answer.status == 200, f"{answer.status} {text}"
        events = [event for event in text.split("\n\n") if event and not event.startswith(":")]
        assert events and events[-1] == "data: [DONE]", f"a stream without an end: {text[-200:]!r}"
        values = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
        if "error" in values[-1]:
            assert len(values) > 1, f"failed before its first token: {text}"
            return "cut"
        return "answered"
