"""What an agent says about its replica: ReplicaMeta once with its claim, ReplicaLoad with every lease. JSON in Redis.

Unknown fields are ignored and every field but the URL has a default, so that agents and routers of different versions
understand each other.
"""

from __future__ import annotations

import msgspec


class ReplicaMeta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What does not change during an incarnation. `rank` is the data-parallel rank, of `ranks`."""

    url: str
    model: str = ""
    engine: str = ""
    engine_version: str = ""
    block_size: int = 0
    capacity_tokens: int = 0
    rank: int = 0
    ranks: int = 1
    events: bool = True
    """False: the agent reports load only (TGI); the router models the cache itself."""


class ReplicaLoad(msgspec.Struct, frozen=True, omit_defaults=True):
    """A sample of the engine's load. `kv_use` is 0..1; `sampled` a Unix time on the agent's clock; `ready` says
    whether the engine answered; `trouble` why it did not."""

    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    kv_use: float = 0.0
    live_blocks: int = 0
    sampled: float = 0.0
    ready: bool = True
    trouble: str = ""
    events: str = ""
    """Why the cache is not followed at the moment; empty when it is."""
    stuck: str = ""
    """Why changes of the cache can't be written to Redis although leases can (Redis is full); empty when they can."""


_encoder = msgspec.json.Encoder()
_meta = msgspec.json.Decoder(ReplicaMeta)
_load = msgspec.json.Decoder(ReplicaLoad)


def encode(value: ReplicaMeta | ReplicaLoad) -> bytes:
    return _encoder.encode(value)


def decode_meta(data: bytes) -> ReplicaMeta | None:
    """None for what cannot be read."""
    try:
        return _meta.decode(data)
    except msgspec.DecodeError:
        return None


def decode_load(data: bytes) -> ReplicaLoad | None:
    """None for what cannot be read."""
    try:
        return _load.decode(data)
    except msgspec.DecodeError:
        return None
