"""An engine that answers everything at once and takes nothing that is not one well-formed request after the other."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httptools

ANSWER = json.dumps(
    {"id": "x", "choices": [{"message": {"content": "ok"}}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}
).encode()
PAGES = {
    b"/version": b'{"version":"0.32.0"}',
    b"/health": b"{}",
    b"/v1/models": b'{"data":[{"id":"sim","object":"model"}]}',
    b"/metrics": b"vllm:num_requests_running 0\n",
}


class Engine:
    """`faults`: what was wrong with the requests it got; `requests`: how many POSTs it answered."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.requests = 0
        self.url = ""
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, backlog=4096)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()


class _Connection(asyncio.Protocol):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._lengths = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._engine.faults.append(f"an upgrade was passed on: {data[:200]!r}")
            self._transport.abort()
        except httptools.HttpParserError as fault:
            self._engine.faults.append(f"{fault}: {data[:200]!r}")
            self._transport.abort()

    def on_message_begin(self) -> None:
        self._url = b""
        self._lengths = 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.lower()
        self._lengths += key == b"content-length"
        if key in (b"transfer-encoding", b"upgrade", b"te", b"trailer") or (key == b"connection"):
            self._engine.faults.append(f"hop-by-hop header {name!r} was passed on")

    def on_message_complete(self) -> None:
        if self._lengths > 1:
            self._engine.faults.append("two Content-Length headers")
        page = PAGES.get(self._url) if self._parser.get_method() == b"GET" else None
        status, body = 200, page
        if body is None:
            known = self._parser.get_method() not in (b"GET", b"HEAD")
            status, body = (200, ANSWER) if known else (404, b'{"detail":"nothing here"}')
            self._engine.requests += known
        head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
        self._transport.write(head if self._parser.get_method() == b"HEAD" else head + body)
