"""How each engine is asked over HTTP for what it serves, its health, its load and its event sources."""

from __future__ import annotations

import aiohttp

from router.engines.sglang import Sglang
from router.engines.tgi import Tgi
from router.engines.types import Engine, EngineError, EngineInfo, EngineKind, EngineLoad, EventSource
from router.engines.vllm import Vllm

ENGINES: dict[EngineKind, Engine] = {"vllm": Vllm(), "sglang": Sglang(), "tgi": Tgi()}


OVERLOAD: dict[EngineKind, int] = {"vllm": 503, "sglang": 503, "tgi": 429}
"""The status by which each says that its queue is full: another replica may have room."""


async def recognise(session: aiohttp.ClientSession, url: str) -> Engine:
    """The kind of engine at `url`. Raises EngineError when it doesn't answer or is none of the known kinds."""
    for engine in ENGINES.values():
        if await engine.recognises(session, url):
            return engine
    raise EngineError(f"{url} is none of {', '.join(ENGINES)}; set `engine` for this replica")


__all__ = [
    "ENGINES",
    "OVERLOAD",
    "Engine",
    "EngineError",
    "EngineInfo",
    "EngineKind",
    "EngineLoad",
    "EventSource",
    "recognise",
]
