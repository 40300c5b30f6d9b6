"""A router over four replicas, every one a process of its own, known by a DNS name, with Redis beside them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import yaml
from faults.chaos import PRELOAD, Chaos
from support.ports import free_port
from support.process import ReplicaProcess, RouterProcess
from support.redis_server import BINARIES, Server

from replica.simulator.config import MODEL_DIR

ZERO = (
    "replica_running",
    "replica_pending_prefill_tokens",
    "queue_requests",
    "request_bytes_held",
    "client_connections",
)
SETTINGS = {
    "proxy": {"first_byte_timeout_s": 2.5, "idle_timeout_s": 5.0, "connect_timeout_s": 0.5},
    "health": {"interval_s": 0.2, "timeout_s": 0.5, "load_interval_s": 0.2, "eject_s": 0.5, "eject_max_s": 4.0},
    "index": {"max_blocks": 50_000},
    # Small, so that a soak fills them in its first quarter: what grows after that is a leak.
    "routing": {"max_sessions": 2_000},
    "prompt": {"segment_cache_mb": 8, "chain_cache_mb": 8, "message_cache_mb": 8, "render_cache_mb": 4},
    "observe": {"sessions_mb": 8, "causes_mb": 8},
}


class System:
    """What a test or a soak works on."""

    def __init__(
        self, router: RouterProcess, replicas: list[ReplicaProcess], hosts: Path, redis: Server | None
    ) -> None:
        self.router, self.replicas, self.hosts, self.redis = router, replicas, hosts, redis

    def chaos(self, seed: int) -> Chaos:
        return Chaos(self.router, self.replicas, self.hosts, self.redis, seed)

    async def metrics(self) -> str:
        async with aiohttp.ClientSession() as session, session.get(self.router.admin_url + "/metrics") as answer:
            return await answer.text()

    async def up(self, count: int, seconds: float = 60) -> None:
        """So many replicas are used."""
        async with asyncio.timeout(seconds):
            while (
                len(re.findall(r"^prefix_router_replica_up\{.*\} 1\.0$", await self.metrics(), re.MULTILINE)) != count
            ):
                await asyncio.sleep(0.1)

    async def left_over(self, seconds: float = 15) -> list[str]:
        """Counters that do not return to zero."""
        pattern = rf"^(prefix_router_(?:{'|'.join(ZERO)})(?:{{[^}}]*}})? (?!0\.0$).*)$"
        left: list[str] = []
        for _ in range(int(seconds * 10)):
            left = re.findall(pattern, await self.metrics(), re.MULTILINE)
            if not left:
                break
            await asyncio.sleep(0.1)
        return left

    def troubles(self) -> list[str]:
        """Errors in the router's log."""
        return [line for line in self.router.lines if " ERROR " in line or "Traceback" in line]


@asynccontextmanager
async def system(folder: Path, replicas: int = 4) -> AsyncIterator[System]:
    """Starts it, waits until every replica is used, stops it."""
    port = free_port()
    fleet = [
        ReplicaProcess("--time-scale", "0.2", "--kv-blocks", "4096", port=port, host=f"127.0.0.{2 + number}")
        for number in range(replicas)
    ]
    hosts = folder / "hosts"
    hosts.write_text("\n".join(f"127.0.0.{2 + number}" for number in range(replicas)))
    binary = BINARIES["valkey"] or BINARIES["redis7"]
    redis = Server(binary, folder) if binary else None
    config = {**SETTINGS, "discovery": {"dns": [{"host": "fleet.test", "port": port, "interval_s": 0.1}]}}
    if redis is not None:
        redis.start()
        config["index"] = {**SETTINGS["index"], "backend": "redis"}
        config["redis"] = {"url": redis.url, "discover": False}
    (folder / "router.yaml").write_text(yaml.safe_dump(config))
    router = RouterProcess(
        "--config",
        str(folder / "router.yaml"),
        "--model-files",
        str(MODEL_DIR),
        preload=PRELOAD.format(hosts=str(hosts)),
    )
    try:
        await asyncio.gather(*(replica.start() for replica in fleet))
        await router.start()
        found = System(router, fleet, hosts, redis)
        await found.up(replicas)
        yield found
    finally:
        await router.stop()
        for replica in fleet:
            await replica.stop()
        if redis is not None:
            redis.stop()
