"""Publishing cache events as the engines do: ZMQ PUB, a ROUTER that replays, and every wire dialect.

    dialect        engine                       batch   BlockStored, beyond [tag, hashes, parent, token_ids, block_size]
    array-0.9      vLLM 0.9                     array   lora_id
    array-0.10     vLLM 0.10.2-0.12             array   lora_id, medium
    array-0.14     vLLM 0.14-0.16               array   ... lora_name
    array-0.18     vLLM 0.18                    array   ... extra_keys
    array-0.20     vLLM 0.20-0.21               array   ... group_idx
    array-0.22     vLLM 0.22-0.23               array   ... kv_cache_spec_kind, kv_cache_spec_sliding_window
    map            vLLM 0.24 and later          array   the same by name, None optionals omitted
    allmap         none yet (a batch as a map)  map
    sglang-array   SGLang 0.5.9-0.5.19          array   lora_id, medium[, {"cache_salt": ...}]
    sglang-map     SGLang 0.5.20 and later      array   by name

PUB frames: topic, seq (8 bytes big-endian, from 0), payload. Replay: a DEALER sends [b"", first seq]; the answer is
one message per buffered batch, then seq ff*8 with an empty payload. Three replay frames: without the topic
(vLLM <= 0.25), four: with it. See reference/engine-protocol.md, A.2-A.4 and D.1.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from router.blocks import unpack

from .records import Cleared, Event, Key, Removed, Stored

_VLLM_ARRAY_FIELDS = {
    "array-0.9": 6,
    "array-0.10": 7,
    "array-0.14": 8,
    "array-0.18": 9,
    "array-0.20": 10,
    "array-0.22": 12,
}
_VLLM_REMOVED_FIELDS = {
    "array-0.9": 2,
    "array-0.10": 3,
    "array-0.14": 3,
    "array-0.18": 3,
    "array-0.20": 4,
    "array-0.22": 4,
}
DIALECTS = (*_VLLM_ARRAY_FIELDS, "map", "allmap", "sglang-array", "sglang-map")
END = b"\xff" * 8


def encode_batch(
    events: list[Event], *, dialect: str, timestamp: float, rank: int = 0, bytes_hashes: bool = False
) -> bytes:
    """One batch as msgpack. Raises ValueError for an unknown dialect."""
    if dialect not in DIALECTS:
        raise ValueError(f"event dialect {dialect!r} is unknown; one of: {', '.join(DIALECTS)}")
    exported = _exporter(dialect.startswith("sglang"), bytes_hashes)
    encoded: list[Any]
    if dialect in _VLLM_ARRAY_FIELDS:
        encoded = [_vllm_array(event, exported, dialect) for event in events]
    elif dialect == "sglang-array":
        encoded = [_sglang_array(event, exported) for event in events]
    else:
        build = _sglang_map if dialect == "sglang-map" else _vllm_map
        encoded = [build(event, exported) for event in events]
    batch: Any = [timestamp, encoded, rank]
    if dialect == "allmap":
        batch = {"ts": timestamp, "events": encoded, "data_parallel_rank": rank}
    return msgspec.msgpack.encode(batch)


def _exporter(signed: bool, raw: bool) -> Callable[[Key], Key]:
    """The engine's digest as it travels: raw, low 8 bytes unsigned (vLLM), or high 8 bytes signed (SGLang)."""

    def export(key: Key) -> Key:
        if raw or isinstance(key, int):
            return key
        return int.from_bytes(key[:8], "big", signed=True) if signed else int.from_bytes(key[-8:], "big")

    return export


def _extra_keys(event: Stored) -> list[list[str] | None]:
    lora = [event.lora] if event.lora else []
    keys: list[list[str] | None] = [list(lora) or None for _ in event.hashes]
    if event.first and event.salt:
        keys[0] = [*lora, event.salt]
    return keys


def _stored_values(event: Stored, export: Callable[[Key], Key]) -> list[Any]:
    parent = None if event.parent is None else export(event.parent)
    lora_id = 1 if event.lora else None
    return [[export(key) for key in event.hashes], parent, unpack(event.tokens), event.block_size, lora_id, "GPU"]


def _vllm_array(event: Event, export: Callable[[Key], Key], dialect: str) -> list[Any]:
    if isinstance(event, Cleared):
        return ["AllBlocksCleared"]
    if isinstance(event, Removed):
        full: list[Any] = ["BlockRemoved", [export(key) for key in event.hashes], "GPU", 0]
        return full[: _VLLM_REMOVED_FIELDS[dialect]]
    values = [*_stored_values(event, export), event.lora, _extra_keys(event), 0, "full_attention", None]
    return ["BlockStored", *values][: _VLLM_ARRAY_FIELDS[dialect]]


_STORED_NAMES = ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium")


def _vllm_map(event: Event, export: Callable[[Key], Key]) -> dict[str, Any]:
    if isinstance(event, Cleared):
        return {"type": "AllBlocksCleared"}
    if isinstance(event, Removed):
        return {
            "type": "BlockRemoved",
            "block_hashes": [export(key) for key in event.hashes],
            "medium": "GPU",
            "group_idx": 0,
        }
    return {
        "type": "BlockStored",
        **dict(zip(_STORED_NAMES, _stored_values(event, export), strict=True)),
        "lora_name": event.lora,
        "extra_keys": _extra_keys(event),
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }


def _sglang_array(event: Event, export: Callable[[Key], Key]) -> list[Any]:
    if isinstance(event, Cleared):
        return ["AllBlocksCleared"]
    if isinstance(event, Removed):
        return ["BlockRemoved", [export(key) for key in event.hashes], "GPU"]
    values = _stored_values(event, export)
    values[4] = None
    return ["BlockStored", *values, *([{"cache_salt": event.salt}] if event.salt else [])]


def _sglang_map(event: Event, export: Callable[[Key], Key]) -> dict[str, Any]:
    if isinstance(event, Cleared):
        return {"type": "AllBlocksCleared"}
    if isinstance(event, Removed):
        return {"type": "BlockRemoved", "block_hashes": [export(key) for key in event.hashes], "medium": "GPU"}
    stored = dict(zip(_STORED_NAMES, _stored_values(event, export), strict=True))
    stored["lora_id"] = None
    if event.salt:
        stored["cache_salt"] = event.salt
    if event.lora:
        stored["lora_name"] = event.lora
    return {"type": "BlockStored", **stored}


class EventPublisher:
    """One publisher process' life: `start`, `publish`..., `stop`. Sequence numbers begin at 0 with every start."""

    def __init__(
        self,
        endpoint: str,
        replay_endpoint: str | None,
        *,
        dialect: str = "map",
        topic: str = "",
        bytes_hashes: bool = False,
        replay_frames: int = 4,
        buffer_steps: int = 10_000,
        hwm: int = 100_000,
    ) -> None:
        if dialect not in DIALECTS:
            raise ValueError(f"event dialect {dialect!r} is unknown; one of: {', '.join(DIALECTS)}")
        if replay_frames not in (3, 4):
            raise ValueError(f"replay_frames must be 3 (vLLM <= 0.25) or 4, got {replay_frames}")
        self.endpoint = endpoint
        """As configured; after `start` with the real port."""
        self.replay_endpoint = replay_endpoint
        self.dialect = dialect
        self.topic = topic
        self.buffer_steps = buffer_steps
        self.hwm = hwm
        self.drop = 0
        """Fault: this many of the next batches take a sequence number but are neither sent nor kept for replay."""
        self.seq = 0
        self._bytes_hashes = bytes_hashes
        self._replay_head = [topic.encode()] if replay_frames == 4 else []
        self._end_head = [b""] if replay_frames == 4 else []
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=buffer_steps)
        self._pub: zmq.Socket[bytes] | None = None
        self._replayer: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bind. A port that a stopped publisher just gave up is waited for, at most 5 s."""
        self.seq = 0
        self._buffer.clear()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        pub = context.socket(zmq.PUB)
        pub.setsockopt(zmq.SNDHWM, self.hwm)
        pub.setsockopt(zmq.LINGER, 0)
        self._pub = pub
        self.endpoint = await _bind(pub, self.endpoint)
        if self.replay_endpoint is not None:
            router = zmq.asyncio.Context.shadow(context.underlying).socket(zmq.ROUTER)
            router.setsockopt(zmq.SNDHWM, 2 * (self.buffer_steps + 1))
            router.setsockopt(zmq.LINGER, 0)
            self.replay_endpoint = await _bind(router, self.replay_endpoint)
            self._replayer = asyncio.create_task(self._serve_replay(router), name="simulator-replay")

    async def stop(self) -> None:
        if self._replayer is not None:
            self._replayer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._replayer
            self._replayer = None
        if self._pub is not None:
            self._pub.close(linger=0)
            self._pub = None

    def publish(self, events: list[Event], timestamp: float) -> None:
        """Send one batch; no events, no batch. Does nothing while stopped."""
        if not events or self._pub is None:
            return
        seq, self.seq = self.seq, self.seq + 1
        if self.drop > 0:
            self.drop -= 1
            return
        payload = encode_batch(events, dialect=self.dialect, timestamp=timestamp, bytes_hashes=self._bytes_hashes)
        self._buffer.append((seq, payload))
        self._pub.send_multipart([self.topic.encode(), seq.to_bytes(8, "big"), payload], zmq.NOBLOCK)

    async def _serve_replay(self, router: zmq.asyncio.Socket) -> None:
        try:
            while True:
                frames = await router.recv_multipart()
                if len(frames) != 3 or frames[1] != b"" or len(frames[2]) != 8:
                    continue
                client, first = frames[0], int.from_bytes(frames[2], "big")
                for seq, payload in list(self._buffer):
                    if seq >= first:
                        await router.send_multipart([client, b"", *self._replay_head, seq.to_bytes(8, "big"), payload])
                await router.send_multipart([client, b"", *self._end_head, END, b""])
        finally:
            router.close(linger=0)


async def _bind(socket: zmq.Socket[Any] | zmq.asyncio.Socket, endpoint: str) -> str:
    """Bind and return the endpoint with its real port. Raises zmq.ZMQError when the address stays taken for 5 s."""
    for attempt in range(100):
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE or attempt == 99:
                raise
            await asyncio.sleep(0.05)
        else:
            break
    return str(socket.getsockopt_string(zmq.LAST_ENDPOINT)) if endpoint.startswith("tcp:") else endpoint
