"""What a discovery source reports, and the shape of a source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from router.engines import EngineKind, EventSource

Scheme = Literal["http", "https"]


@dataclass(slots=True, frozen=True)
class Endpoint:
    """One engine endpoint.

    `id`: the replica's name, the same as long as it is the same engine (in Kubernetes the pod's name, which is also
    what its agent publishes under). `ready`: whether its platform wants it to get new requests. `terminating`: it is
    going away; it finishes what it has. Never both. `events`: where it publishes KV events, when the source knows.
    `rank`: the data-parallel rank it is, where ranks are endpoints of their own.
    """

    id: str
    url: str
    ready: bool = True
    terminating: bool = False
    kind: EngineKind | None = None
    events: EventSource | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    rank: int | None = None


Update = Callable[[list[Endpoint]], None]
"""Called with everything a source knows, sorted by id: first when it is known, then after every change."""


class Source(Protocol):
    """One place to learn endpoints from.

    A source that can't be read keeps what it reported last: losing the directory must not lose the fleet.
    """

    name: str
    """Names the source in logs and in /ready."""
    problem: str
    """Why what it reported may be out of date; empty when all is well."""

    async def run(self, update: Update) -> None:
        """Report until cancelled. Whatever goes wrong outside is retried, and told in `problem`."""
        ...


@dataclass(slots=True, frozen=True)
class EventPorts:
    """The KV event ports of engines that don't tell them (vLLM < 0.31), the same on every endpoint."""

    port: int
    replay_port: int | None = None
    topic: str = ""

    def at(self, host: str) -> EventSource:
        """The event source of the endpoint at `host` (an IPv6 address in brackets)."""
        replay = f"tcp://{host}:{self.replay_port}" if self.replay_port else None
        return EventSource(endpoint=f"tcp://{host}:{self.port}", replay_endpoint=replay, topic=self.topic)


def bracketed(address: str) -> str:
    """The address as it stands in a URL: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address
