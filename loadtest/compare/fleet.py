"""The replicas behind the routers: simulated ones in a process of their own, new for every run, or given ones."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

from loadtest.client import served_models
from loadtest.processes import Child
from loadtest.types import WorkloadError
from replica.simulator.config import MODEL_DIR

REPLICA_HEADER = "x-simulated-replica"
BLOCK = 16
FLUSH = ("/reset_prefix_cache", "/flush_cache")
"""vLLM (with VLLM_SERVER_DEV_MODE=1) and SGLang."""
TIMEOUT = aiohttp.ClientTimeout(total=30)


@dataclass(frozen=True, slots=True)
class Fleet:
    """What a router is told about its replicas, and a report about them. pid: of the simulated ones' process."""

    urls: Sequence[str]
    model: str
    model_files: str | None
    replica_header: str | None
    pid: int | None = None
    events: Mapping[str, str] = field(default_factory=dict)
    """URL -> ZMQ address of its KV events, where known."""
    replays: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hardware:
    """Simulated replicas: how many, how fast. time_scale 2: every engine step takes twice as long."""

    replicas: int = 4
    time_model: str = "70b-4xh100"
    time_scale: float = 1.0


@contextlib.asynccontextmanager
async def simulated(hardware: Hardware, kv_blocks: int, slow: Mapping[int, float]) -> AsyncIterator[Fleet]:
    """Fresh replicas with empty caches. slow: replica number -> its steps take this many times as long."""
    argv = [
        sys.executable, "-m", "router.cli", "simulate", "--port=0", f"--replicas={hardware.replicas}",
        f"--kv-blocks={kv_blocks}", f"--block-size={BLOCK}", f"--time-model={hardware.time_model}",
        f"--time-scale={hardware.time_scale}", f"--replica-header={REPLICA_HEADER}",
    ]  # fmt: skip
    async with Child("the simulated fleet", argv) as child:
        urls = await child.printed(r"^  - url: (\S+)", hardware.replicas)
        events = await child.printed(r"endpoint: \"(\S+)\", replay", hardware.replicas)
        replays = await child.printed(r"replay_endpoint: \"([^\"]+)\"", hardware.replicas)
        for place, factor in slow.items():
            await _post(f"{urls[place]}/sim/faults", {"slow": factor})
        yield Fleet(
            urls,
            "sim",
            str(MODEL_DIR),
            REPLICA_HEADER,
            child.pid,
            dict(zip(urls, events, strict=True)),
            dict(zip(urls, replays, strict=True)),
        )


@contextlib.asynccontextmanager
async def given(urls: Sequence[str], model_files: str | None, replica_header: str | None) -> AsyncIterator[Fleet]:
    """Running engines, their caches emptied. Raises WorkloadError if one cannot be emptied or they differ."""
    models = {name for url in urls for name in (await served_models(url))[:1]}
    if len(models) != 1:
        raise WorkloadError(f"--replica: all must serve the same model, found {', '.join(sorted(models)) or 'none'}")
    for url in urls:
        await _flush(url)
    yield Fleet(urls, models.pop(), model_files, replica_header)


async def _flush(url: str) -> None:
    for path in FLUSH:
        if await _post(url + path, None) == 200:
            return
    raise WorkloadError(
        f"--replica {url}: its prefix cache cannot be emptied between the runs: neither {' nor '.join(FLUSH)} answered "
        "200 (vLLM serves it with VLLM_SERVER_DEV_MODE=1)"
    )


async def _post(url: str, data: object) -> int:
    body = b"" if data is None else json.dumps(data).encode()
    try:
        async with aiohttp.ClientSession(timeout=TIMEOUT) as http, http.post(url, data=body) as response:
            return response.status
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ConnectionError(f"no answer from {url}: {error or type(error).__name__}") from None
