"""Handles for tests, the demo and the load test: one simulated replica, or many in one event loop.

Example:
    >>> async with SimulatedFleet(4, kv_blocks=512, timing=time_model("instant")) as fleet:
    ...     urls = [replica.url for replica in fleet]
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from .config import ReplicaConfig
from .http import Request
from .records import Live, own_hashes
from .scheduler import Counters
from .server import SimulatedServer


class SimulatedReplica:
    """One replica on loopback. Addresses are known after `start` and stay the same over `restart`."""

    def __init__(self, config: ReplicaConfig | None = None) -> None:
        self.config = config or ReplicaConfig()
        self._server = SimulatedServer(self.config)

    async def start(self) -> None:
        """Raises OSError when a port is taken."""
        await self._server.start()

    async def stop(self) -> None:
        """Close everything; safe to call twice."""
        await self._server.stop()

    async def kill(self) -> None:
        """Die like a killed process (connections reset). `start` or `restart` brings a new one up."""
        await self._server.kill()

    async def restart(self) -> None:
        """Kill, then a new process at the same addresses: empty cache, seq from 0, new hash seed, no faults."""
        await self._server.restart()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def events_endpoint(self) -> str | None:
        """Where to SUB; None when the replica publishes nothing."""
        publisher = self._server.engine.publisher
        return publisher.endpoint if publisher else None

    @property
    def replay_endpoint(self) -> str | None:
        publisher = self._server.engine.publisher
        return publisher.replay_endpoint if publisher else None

    @property
    def next_seq(self) -> int:
        """Sequence number of the next event batch: a subscriber that applied `next_seq - 1` is up to date."""
        publisher = self._server.engine.publisher
        return publisher.seq if publisher else 0

    @property
    def counters(self) -> Counters:
        return self._server.engine.scheduler.counters

    @property
    def in_flight(self) -> int:
        """Sequences running or waiting."""
        return self._server.engine.in_flight

    @property
    def used_blocks(self) -> int:
        """Blocks held by running sequences."""
        return self._server.engine.scheduler.cache.used

    @property
    def requests(self) -> list[Request]:
        """The last `record_requests` requests received, oldest first."""
        return list(self._server.requests)

    def live(self) -> list[Live]:
        """Every block that can be hit now."""
        return list(self._server.engine.scheduler.cache.live())

    def truth(self) -> dict[str, Any]:
        """The same as GET /sim/truth."""
        return self._server.engine.truth()

    def own_hashes(self, model: str | None = None) -> dict[int, int]:
        """The router's chain hash of every live block -> physical copies (roots: the model's or the LoRA's name)."""
        return own_hashes(self.live(), model or self.config.model)

    def fault(self, **values: Any) -> None:
        """Set fault switches, fields of `Faults`. Raises ValueError that names the field."""
        self._server.fault(**values)

    def clear_faults(self) -> None:
        self._server.clear_faults()

    def reset_cache(self) -> bool:
        """As POST /reset_prefix_cache or /flush_cache."""
        return self._server.engine.reset_cache()


class SimulatedFleet:
    """`count` replicas with one configuration; `options` are ReplicaConfig fields. Ports count up from `port`."""

    def __init__(self, count: int, config: ReplicaConfig | None = None, **options: Any) -> None:
        if count < 1:
            raise ValueError(f"a fleet needs at least one replica, got {count}")
        base = config or ReplicaConfig(**options)
        self.replicas = [SimulatedReplica(base.with_ports(index)) for index in range(count)]

    async def start(self) -> None:
        """Raises OSError when a port is taken; what was started is stopped again."""
        try:
            for replica in self.replicas:
                await replica.start()
        except OSError:
            await self.stop()
            raise

    async def stop(self) -> None:
        for replica in self.replicas:
            await replica.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    def __iter__(self) -> Iterator[SimulatedReplica]:
        return iter(self.replicas)

    def __len__(self) -> int:
        return len(self.replicas)

    def __getitem__(self, index: int) -> SimulatedReplica:
        return self.replicas[index]

    @property
    def urls(self) -> list[str]:
        return [replica.url for replica in self.replicas]

    def total(self) -> Counters:
        """The sum of all replicas' counters."""
        total = Counters()
        for replica in self.replicas:
            for name in Counters.__slots__:
                setattr(total, name, getattr(total, name) + getattr(replica.counters, name))
        return total
