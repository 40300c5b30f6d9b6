"""Bytes from an engine's KV event sockets -> events. Every dialect of vLLM >= 0.9 and SGLang >= 0.5.8; no I/O.

Frames (reference/engine-protocol.md A.2; `seq` is 8 bytes, big-endian, unsigned):

    live      PUB     [topic, seq, payload]
    request   DEALER  [b"", first seq wanted]               without the empty frame the engine ignores it
    replay    ROUTER  [b"", seq, payload]                   vLLM <= 0.25, SGLang <= 0.5.21
                      [b"", topic, seq, payload]            since
    end                ... seq = ff*8, payload empty        both framings, so they are parsed from the end

Payload (msgpack): a batch is an array `[ts, events, dp_rank]` or a map with the keys `ts`, `events`,
`data_parallel_rank`; each event is an array `[tag, field, ...]` or a map `{"type": tag, field: ...}`:

    BlockStored    array position   since            meaning
      block_hashes        1         0.9              int (signed, unsigned, up to 2**64-1) or bytes, opaque
      parent_block_hash   2         0.9              hash before the first listed; None at position 0
      token_ids           3         0.9              tokens of the listed blocks; [] = placeholder (offload tiers)
      block_size          4         0.9              tokens per listed block
      lora_id             5         0.9              engine-local number of an adapter
      medium              6         0.10.2           "GPU" (or missing), "CPU", "CPU_PINNED", "STORAGE", "DISK"
      lora_name           7         0.14             SGLang 0.5.18-0.5.19 puts a map {"cache_salt": ...} here
      extra_keys          8         0.18             per block: None or a list
      group_idx           9         0.20             KV cache group
      kv_cache_spec_kind 10         0.22             "full_attention", "sliding_window", ...
      cache_salt          -         SGLang 0.5.20    map only
    BlockRemoved   block_hashes 1, medium 2 (0.10.2), group_idx 3 (0.20)
    AllBlocksCleared   no fields

Fields that are missing are None, fields that are not listed are ignored, an unknown tag or medium is counted and
skipped, so is a malformed event (`lost_removals` says when that may leave a stale block). Example:

    >>> batch = decode_batch(msgspec.msgpack.encode([1.5, [["BlockRemoved", [7], "CPU"]], 0]))
    >>> batch.events
    [BlockRemoved(block_hashes=[7], medium=<Tier.HOST: 1>, group=None)]
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from router.blocks import TOKEN_BYTES, pack
from router.index.types import Tier

EngineHash: TypeAlias = int | bytes
"""An engine's own name of a block: opaque, only ever compared within one engine."""

_MEDIA = {
    None: Tier.DEVICE,
    "GPU": Tier.DEVICE,
    "CPU": Tier.HOST,
    "CPU_PINNED": Tier.HOST,
    "STORAGE": Tier.DISK,
    "DISK": Tier.DISK,
}
_HASH_TYPES: tuple[set[type], ...] = ({int}, {bytes}, set())
_SEQ = struct.Struct(">Q")
_END = 2**64 - 1
_decode = msgspec.msgpack.Decoder().decode


class WireError(ValueError):
    """Bytes that are not what an engine sends."""


class UnsupportedEvents(WireError):
    """Well-formed events that cannot be indexed; the message tells the operator what to change."""


@dataclass(slots=True)
class BlockStored:
    """Blocks that now exist. `tokens` is packed (little-endian u32); empty = a placeholder for known hashes."""

    block_hashes: list[EngineHash]
    parent: EngineHash | None
    tokens: bytes
    block_size: int
    medium: Tier = Tier.DEVICE
    lora_id: int | None = None
    lora_name: str | None = None
    extra_keys: list[list[Any] | None] | None = None
    group: int | None = None
    spec_kind: str | None = None
    salt: str = ""


@dataclass(slots=True)
class BlockRemoved:
    """One copy of each listed block is gone from `medium`."""

    block_hashes: list[EngineHash]
    medium: Tier = Tier.DEVICE
    group: int | None = None


@dataclass(slots=True)
class AllBlocksCleared:
    """The engine's prefix cache was reset."""


Event: TypeAlias = BlockStored | BlockRemoved | AllBlocksCleared


@dataclass(slots=True)
class Batch:
    """One message of one rank, events in the order in which they happened. `ts`: the engine's clock, Unix seconds."""

    ts: float
    events: list[Event]
    dp_rank: int | None = None
    malformed: int = 0
    unknown: int = 0
    lost_removals: bool = False
    """Whether one of the malformed events may have been a removal: blocks may be gone that nobody will name again."""


class _Unknown(Exception):
    """An event that a newer engine may send: skipped, not malformed."""


def _hashes(value: Any) -> list[EngineHash]:
    if type(value) is not list or set(map(type, value)) not in _HASH_TYPES:
        raise WireError("block_hashes must be a list of ints or of bytes")
    return value


def _tier(value: Any) -> Tier:
    if value is not None and not isinstance(value, str):
        raise WireError("medium must be a string")
    tier = _MEDIA.get(value)
    if tier is None:
        raise _Unknown
    return tier


def _optional(value: Any, kind: type, name: str) -> Any:
    if value is not None and type(value) is not kind:
        raise WireError(f"{name} must be {kind.__name__} or absent")
    return value


def _tokens(value: Any) -> bytes:
    if type(value) is not list:
        raise WireError("token_ids must be a list")
    try:
        return pack(value)
    except (TypeError, OverflowError) as error:
        if value and all(type(pair) is list and len(pair) == 2 and set(map(type, pair)) == {int} for pair in value):
            raise UnsupportedEvents(
                "token_ids are pairs of ids (SGLang with EAGLE speculative decoding): blocks of such a cache have no "
                "token ids to match prompts with; start the engine without --speculative-algorithm EAGLE, or without "
                "--kv-events-config (the router then models its cache)"
            ) from error
        raise WireError("token_ids must be ints in 0..2**32-1") from error


def _extra_keys(value: Any, count: int) -> list[list[Any] | None] | None:
    if value is None:
        return None
    if type(value) is not list or len(value) != count:
        raise WireError("extra_keys must have one entry per block hash")
    if value.count(None) == count:
        return None
    if not set(map(type, value)) <= {list, type(None)}:
        raise WireError("extra_keys entries must be lists or absent")
    return value


def _stored(fields: dict[str, Any]) -> BlockStored:
    get = fields.get
    hashes = _hashes(get("block_hashes"))
    parent = get("parent_block_hash")
    if parent is not None and type(parent) is not int and type(parent) is not bytes:
        raise WireError("parent_block_hash must be an int, bytes or absent")
    block_size = get("block_size")
    if type(block_size) is not int or block_size < 0:
        raise WireError("block_size must be an int of at least 0")
    lora_name, salt = get("lora_name"), get("cache_salt")
    if type(lora_name) is dict:  # SGLang 0.5.18-0.5.19: metadata where vLLM has the adapter's name
        salt, lora_name = lora_name.get("cache_salt"), None
    return BlockStored(
        block_hashes=hashes,
        parent=parent,
        tokens=_tokens(get("token_ids")),
        block_size=block_size,
        medium=_tier(get("medium")),
        lora_id=_optional(get("lora_id"), int, "lora_id"),
        lora_name=_optional(lora_name, str, "lora_name"),
        extra_keys=_extra_keys(get("extra_keys"), len(hashes)),
        group=_optional(get("group_idx"), int, "group_idx"),
        spec_kind=_optional(get("kv_cache_spec_kind"), str, "kv_cache_spec_kind"),
        salt=_optional(salt, str, "cache_salt") or "",
    )


def _removed(fields: dict[str, Any]) -> BlockRemoved:
    get = fields.get
    group = _optional(get("group_idx"), int, "group_idx")
    return BlockRemoved(_hashes(get("block_hashes")), _tier(get("medium")), group)


def _cleared(fields: dict[str, Any]) -> AllBlocksCleared:
    return AllBlocksCleared()


_STORED_FIELDS = (
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
)
_EVENTS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "BlockStored": (_stored, _STORED_FIELDS),
    "BlockRemoved": (_removed, ("block_hashes", "medium", "group_idx")),
    "AllBlocksCleared": (_cleared, ()),
}


def _is_store(raw: Any) -> bool:
    return (raw.get("type") if type(raw) is dict else raw[0] if type(raw) is list and raw else None) == "BlockStored"


def _event(raw: Any) -> Event:
    if type(raw) is dict:
        tag = raw.get("type")
    elif type(raw) is list and raw:
        tag = raw[0]
    else:
        raise WireError("an event must be a map or a non-empty array")
    if not isinstance(tag, str):
        raise WireError("an event's tag must be a string")
    known = _EVENTS.get(tag)
    if known is None:
        raise _Unknown
    build, names = known
    fields = raw if type(raw) is dict else dict(zip(names, raw[1:], strict=False))
    event: Event = build(fields)
    return event


def decode_batch(payload: bytes) -> Batch:
    """One payload. Raises WireError if it is no batch at all, UnsupportedEvents if its events cannot be indexed."""
    try:
        raw = _decode(payload)
    except (msgspec.DecodeError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise WireError(f"not msgpack: {error}") from error
    if type(raw) is dict:
        rank = raw.get("data_parallel_rank", raw.get("attn_dp_rank"))
        ts, events = raw.get("ts"), raw.get("events")
    elif type(raw) is list and len(raw) >= 2:
        ts, events = raw[0], raw[1]
        rank = raw[2] if len(raw) > 2 else None
    else:
        raise WireError("a batch must be an array [ts, events, rank] or a map with these fields")
    if not isinstance(ts, float | int) or type(events) is not list:
        raise WireError("a batch needs a number `ts` and a list `events`")
    batch = Batch(float(ts) if math.isfinite(ts) else 0.0, [], rank if type(rank) is int else None)
    for item in events:
        try:
            batch.events.append(_event(item))
        except _Unknown:
            batch.unknown += 1
        except UnsupportedEvents:
            raise
        except WireError:
            batch.malformed += 1
            batch.lost_removals = batch.lost_removals or not _is_store(item)
    return batch


def token_count(event: BlockStored) -> int:
    """Tokens of the event's span; differs from hashes * block size when blocks are masked."""
    return len(event.tokens) // TOKEN_BYTES


def _tail(frames: Sequence[bytes], least: int) -> tuple[int, bytes]:
    if len(frames) < least:
        raise WireError(f"expected at least {least} frames, got {len(frames)}")
    seq = frames[-2]
    if len(seq) != _SEQ.size:
        raise WireError(f"the sequence number must be {_SEQ.size} bytes, got {len(seq)}")
    return _SEQ.unpack(seq)[0], frames[-1]


def parse_live(frames: Sequence[bytes]) -> tuple[int, bytes]:
    """(seq, payload) of a published message. Raises WireError."""
    return _tail(frames, 3)


def parse_replay(frames: Sequence[bytes]) -> tuple[int, bytes] | None:
    """(seq, payload) of one replayed batch in either framing, None for the end marker. Raises WireError."""
    seq, payload = _tail(frames, 2)
    return None if seq == _END else (seq, payload)


def replay_request(start_seq: int) -> list[bytes]:
    """Frames asking for every buffered batch with seq >= `start_seq`."""
    return [b"", _SEQ.pack(start_seq)]
