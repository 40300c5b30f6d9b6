"""Recorded frames of real engines, and a publisher with an engine's PUB and replay sockets."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

CAPTURES = Path(__file__).parent.parent / "fixtures" / "captures"


@pytest.fixture(scope="session")
def captures() -> Path:
    return CAPTURES


@pytest.fixture(scope="session")
def read_frames() -> Callable[[Path], list[bytes]]:
    def read(path: Path) -> list[bytes]:
        data, frames, at = path.read_bytes(), [], 0
        while at < len(data):
            (length,) = struct.unpack_from(">I", data, at)
            frames.append(data[at + 4 : at + 4 + length])
            at += 4 + length
        return frames

    return read


@pytest.fixture(scope="session")
def recorded_json() -> Callable[[Path], Any]:
    def revive(value: dict[str, Any]) -> Any:
        return bytes.fromhex(value["__bytes_hex__"]) if "__bytes_hex__" in value else value

    return lambda path: json.loads(path.read_text(), object_hook=revive)


class Publisher:
    """PUB and ROUTER as an engine has them, the ROUTER served by a thread. `mute`: ask-only, no answer."""

    def __init__(self, live: str, replay: str | None, *, topic_frame: bool = True, connect: bool = False) -> None:
        self.buffer: list[tuple[int, bytes]] = []
        self.seq = 0
        self.buffer_steps = 10_000
        self.mute = False
        self.requests: list[int] = []
        self._topic_frame = topic_frame
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._pub = self._context.socket(zmq.XPUB)
        self._pub.set(zmq.LINGER, 0)
        (self._pub.connect if connect else self._pub.bind)(live)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if replay is not None:
            router = self._context.socket(zmq.ROUTER)
            router.set(zmq.LINGER, 0)
            router.bind(replay)
            self._thread = threading.Thread(target=self._serve, args=(router,), daemon=True)
            self._thread.start()

    async def subscribed(self, timeout_s: float = 60.0) -> None:
        """Until a subscription arrived: what is published before is lost."""
        assert await asyncio.to_thread(self._pub.poll, timeout_s * 1000), "nobody subscribed"
        self._pub.recv()

    def publish(self, payload: bytes, *, lost: bool = False) -> None:
        self.buffer = [*self.buffer, (self.seq, payload)][-self.buffer_steps :]
        if not lost:
            self._pub.send_multipart([b"kv", self.seq.to_bytes(8, "big"), payload])
        self.seq += 1

    def send_raw(self, frames: list[bytes]) -> None:
        self._pub.send_multipart(frames)

    def _serve(self, router: zmq.Socket[bytes]) -> None:
        while not self._stop.is_set():
            if not router.poll(20):
                continue
            client, _, start = router.recv_multipart()
            self.requests.append(int.from_bytes(start, "big"))
            if self.mute:
                continue
            head = [client, b"", b"kv"] if self._topic_frame else [client, b""]
            for seq, payload in list(self.buffer):
                if seq >= int.from_bytes(start, "big"):
                    router.send_multipart([*head, seq.to_bytes(8, "big"), payload])
            router.send_multipart([*([client, b"", b""] if self._topic_frame else [client, b""]), b"\xff" * 8, b""])
        router.close(0)

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(60)
        self._pub.close(0)
        self._context.term()


@pytest.fixture
def publishers() -> Iterator[Callable[..., Publisher]]:
    made: list[Publisher] = []

    def make(*args: Any, **kwargs: Any) -> Publisher:
        made.append(Publisher(*args, **kwargs))
        return made[-1]

    yield make
    for publisher in made:
        if not publisher._pub.closed:
            publisher.close()
