"""The engine behind every router of peers.py: answers as fast as it can, streams at a pace, publishes KV events.

    python tests/bench/peer_backend.py PORTS MODEL [BLOCKS]

Prints one URL a line, then, with BLOCKS, the ZMQ address of its KV events; on SIGUSR1 it publishes BLOCKS blocks. A
request with "stream":true is answered with `max_tokens` events, one each `x-interval-ms` (10 by default), others at
once.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import sys
from array import array
from typing import Any

import uvloop

from replica.simulator.events import EventPublisher
from replica.simulator.records import Stored
from router.blocks import pack

EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
    b'"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}\n\n'
)
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x" * 300}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    }
).encode()  # fmt: skip
HEAD = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
BLOCKS_PER_EVENT, BLOCK = 512, 16
ACCEPTED_AT_ONCE = 16
"""libuv takes one connection a listener and turn of the loop: with one listener, thousands of streams that begin
together overflow the system's queue."""


class Connection(asyncio.Protocol):
    """Parses as little as it can."""

    model = b"m"
    loop: asyncio.AbstractEventLoop

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.buffer = bytearray()
        self.needed = 0

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while self.buffer and len(self.buffer) >= self.needed:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self.buffer[:end]).lower()
            length = re.search(rb"content-length: *(\d+)", head)
            self.needed = end + 4 + (int(length[1]) if length else 0)
            if len(self.buffer) < self.needed:
                return
            body = bytes(self.buffer[end + 4 : self.needed])
            del self.buffer[: self.needed]
            self.needed = 0
            self.answer(head, body)

    def answer(self, head: bytes, body: bytes) -> None:
        write = self.transport.write
        if not head.startswith(b"post"):
            known = head.split(b" ", 2)[1] in (b"/health", b"/v1/models", b"/version", b"/metrics")
            text = b"" if b"/metrics" in head.split(b"\r\n", 1)[0] else INFO.replace(b"MODEL", self.model)
            write(HEAD % (b"200 OK" if known else b"404 Not Found", len(text), text))
        elif b"/chat/completions" not in head.split(b"\r\n", 1)[0]:
            write(HEAD % (b"404 Not Found", 2, b"{}"))
        elif b"/render" in head.split(b"\r\n", 1)[0]:  # vllm-router's cache_aware asks; ids of about the right number
            ids = b",".join(b"%d" % place for place in range(len(body) // 4))
            text = b'{"request_id":"r","token_ids":[%b],"sampling_params":{},"model":"%b"}' % (ids, self.model)
            write(HEAD % (b"200 OK", len(text), text))
        elif b'"stream":true' in body or b'"stream": true' in body:
            count = re.search(rb'"max_(?:completion_)?tokens": *(\d+)', body)  # sglang-router renames it
            pace = re.search(rb"x-interval-ms: *(\d+)", head)
            write(STREAM_HEAD)
            self.event(int(count[1]) if count else 1, self.loop.time(), int(pace[1]) / 1000 if pace else 0.01)
        else:
            write(HEAD % (b"200 OK", len(ANSWER), ANSWER))

    def event(self, left: int, due: float, pace: float) -> None:
        if self.transport.is_closing():
            return
        if not left:
            self.transport.write(DONE)
            return
        self.transport.write(CHUNK)
        self.loop.call_at(due + pace, self.event, left - 1, due + pace, pace)


INFO = b'{"object":"list","data":[{"id":"MODEL","object":"model","max_model_len":131072}],"version":"0.32.0"}'


async def publish(publisher: EventPublisher, blocks: int) -> None:
    """Blocks of sequences of 8,192 random tokens."""
    source = random.Random(1)
    for number in range(-(-blocks // BLOCKS_PER_EVENT)):
        tokens = pack(array("H", source.randbytes(2 * BLOCK * BLOCKS_PER_EVENT)))
        keys = [number * BLOCKS_PER_EVENT + place + 1 for place in range(BLOCKS_PER_EVENT)]
        publisher.publish([Stored(list(keys), None, tokens, BLOCK, None, None, first=True)], 0.0)
        if number % 20 == 0:
            await asyncio.sleep(0.01)


async def main() -> None:
    count, model = int(sys.argv[1]), sys.argv[2]
    blocks = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    loop = asyncio.get_running_loop()
    Connection.model, Connection.loop = model.encode(), loop
    for _ in range(count):
        listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
        for _ in range(ACCEPTED_AT_ONCE):
            await loop.create_server(Connection, sock=listening.dup(), backlog=4096)
        print(f"http://127.0.0.1:{listening.getsockname()[1]}")
    if blocks:
        publisher = EventPublisher("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
        await publisher.start()
        print(f"events {publisher.endpoint}", flush=True)
        go = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, go.set)
        await go.wait()
        await publish(publisher, blocks)
        print("published", flush=True)
    print(f"serving {os.getpid()}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
