"""What the router and the replica agent learn from an engine over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import aiohttp

EngineKind = Literal["vllm", "sglang", "tgi"]


class EngineError(Exception):
    """The engine did not answer, or answered something that can't be used; the message names URL and reason."""


@dataclass(slots=True, frozen=True)
class EventSource:
    """One publisher of KV events: a data-parallel rank of an engine."""

    endpoint: str
    replay_endpoint: str | None = None
    topic: str = ""
    bind: bool = False
    rank: int = 0

    def of_rank(self, rank: int) -> EventSource:
        """Where rank `rank` publishes when this is rank 0's: its TCP ports are that much higher (`ipc://` has none)."""
        replay = None if self.replay_endpoint is None else _offset(self.replay_endpoint, rank)
        return replace(self, endpoint=_offset(self.endpoint, rank), replay_endpoint=replay, rank=rank)


def _offset(endpoint: str, rank: int) -> str:
    head, colon, port = endpoint.rpartition(":")
    if endpoint.startswith("tcp://") and colon and port.isdecimal() and port != "0":
        return f"{head}:{int(port) + rank}"
    return endpoint


@dataclass(slots=True, frozen=True)
class EngineInfo:
    """What an engine is; read when a replica joins and after it was away.

    `models`: ids it answers to, the base model's canonical name first, then aliases. `adapters`: ids
    of LoRA adapters, as requests name them (SGLang: `base:adapter`).
    `block_size` and `kv_tokens` (size of the KV cache, per rank) are None when the engine doesn't say.
    `rest_paths`: those of its endpoints that tell whether it sleeps or is paused.
    """

    kind: EngineKind
    models: tuple[str, ...]
    adapters: tuple[str, ...] = ()
    version: str = ""
    block_size: int | None = None
    kv_tokens: int | None = None
    max_model_len: int | None = None
    events: tuple[EventSource, ...] = field(default=())
    model_entries: tuple[dict[str, object], ...] = field(default=())
    rest_paths: tuple[str, ...] = ()
    ranks: tuple[int, ...] = (0,)
    """Its data-parallel ranks, each with a cache of its own."""

    def source(self, rank: int | None) -> EventSource | None:
        """Where a rank (None: the only one that is followed) publishes; None when the engine doesn't say."""
        return next((source for source in self.events if rank is None or source.rank == rank), None)


@dataclass(slots=True, frozen=True)
class EngineLoad:
    """One reading of an engine's load, summed over its ranks. `kv_usage` is a share, 0 to 1 (of the fullest rank).

    `max_running`: sequences it runs at most, None if it doesn't say. `asleep`: it says that it sleeps.
    `waiting_tokens`: uncached prompt tokens of the waiting requests, where the engine says.
    """

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    cached_tokens: int | None = None
    prompt_tokens: int | None = None
    max_running: int | None = None
    asleep: bool = False
    waiting_tokens: int | None = None
    ranks: Mapping[int, EngineLoad] = field(default_factory=dict)
    """The same for each rank, where the engine tells them apart."""

    def of(self, rank: int | None) -> EngineLoad:
        """One rank's part; the whole for None, and where ranks are not told apart."""
        return self if rank is None else self.ranks.get(rank, self)

    @staticmethod
    def total(ranks: Mapping[int, EngineLoad]) -> EngineLoad:
        """The whole engine's load from each rank's."""

        def added(name: str) -> int | None:
            values = [value for load in ranks.values() if (value := getattr(load, name)) is not None]
            return sum(values) if values else None

        return EngineLoad(
            running=sum(load.running for load in ranks.values()),
            waiting=sum(load.waiting for load in ranks.values()),
            kv_usage=max((load.kv_usage for load in ranks.values()), default=0.0),
            cached_tokens=added("cached_tokens"),
            prompt_tokens=added("prompt_tokens"),
            max_running=added("max_running"),
            asleep=any(load.asleep for load in ranks.values()),
            waiting_tokens=added("waiting_tokens"),
            ranks=ranks,
        )


class Engine(Protocol):
    """How one kind of engine is asked."""

    kind: EngineKind
    health_path: str

    async def recognises(self, session: aiohttp.ClientSession, url: str) -> bool:
        """Whether the server at `url` is of this kind."""
        ...

    async def inspect(self, session: aiohttp.ClientSession, url: str) -> EngineInfo:
        """What it serves. Raises EngineError."""
        ...

    async def load(self, session: aiohttp.ClientSession, url: str) -> EngineLoad | None:
        """Its load now, or None if it doesn't say. Raises EngineError when it doesn't answer."""
        ...
