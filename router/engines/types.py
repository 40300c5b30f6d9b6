"""What the router and the replica agent learn from an engine over HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field
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


@dataclass(slots=True, frozen=True)
class EngineInfo:
    """What an engine is; read when a replica joins and after it was away.

    `models`: ids it answers to, the base model's canonical name first, then aliases. `adapters`: LoRA ids.
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


@dataclass(slots=True, frozen=True)
class EngineLoad:
    """One reading of an engine's load, summed over its ranks. `kv_usage` is a share, 0 to 1.

    `max_running`: sequences it runs at most, None if it doesn't say. `asleep`: it says that it sleeps.
    """

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    cached_tokens: int | None = None
    prompt_tokens: int | None = None
    max_running: int | None = None
    asleep: bool = False


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
