"""One replica: where it is, what it serves, how it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from time import time

from router.engines import EngineInfo, EngineKind, EngineLoad, EventSource
from router.fleet.breaker import Breaker
from router.fleet.load import Load
from router.fleet.speed import Speed


class Health(StrEnum):
    """Whether requests are sent to a replica."""

    NEW = "new"
    """Not heard from yet."""
    UP = "up"
    DOWN = "down"
    """Failed its probes or a connection; used only when no replica is up."""
    PAUSED = "paused"
    """Answers, but its engine sleeps or is paused: requests would hang. Used before those that are down."""
    DRAINING = "draining"
    """Finishes what it has and gets nothing new."""


class Feed(StrEnum):
    """How the index learns what a replica holds."""

    NONE = "none"
    EVENTS = "events"
    """The engine's KV events: exact."""
    SHADOW = "shadow"
    """A model of its cache, kept by the router: approximate."""


@dataclass(slots=True, eq=False)
class Replica:
    """One routing target.

    `rank`: the data-parallel rank it is, where an engine's ranks are targets of their own (X-data-parallel-rank).
    `reported` is the engine's own load, read `reported_at` (seconds since the epoch).
    """

    id: str
    url: str
    kind: EngineKind | None = None
    rank: int | None = None
    events: EventSource | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    info: EngineInfo | None = None
    health: Health = Health.NEW
    reason: str = "not probed yet"
    since: float = field(default_factory=time)
    feed: Feed = Feed.NONE
    feed_reason: str = ""
    distrust: str = ""
    """Why its events can't be matched with this router's chains (other token ids); empty while nothing speaks so."""
    verified: bool = False
    """Its own token ids for the probe conversations were compared and are this router's."""
    load: Load = field(default_factory=Load)
    weight: float = 1.0
    """The share of a full load it may take, above 0: less than 1 while a new or recovered replica starts slowly."""
    breaker: Breaker = field(default_factory=Breaker)
    limit: float = math.inf
    """Sequences it should have at most, as far as is known; see fleet.room."""
    ceiling: float = math.inf
    """Part of the limit: what it had when it last said that its queue is full."""
    full_until: float = 0.0
    """It said that its queue is full; nothing is sent there before this time (monotonic) while others have room."""
    speed: Speed = field(default_factory=Speed)
    reported: EngineLoad | None = None
    reported_at: float = 0.0

    @property
    def kv_tokens(self) -> int:
        """Size of its KV cache in tokens; 0 if the engine doesn't say."""
        return (self.info.kv_tokens or 0) if self.info is not None else 0

    def serves(self, model: str) -> bool:
        """Whether it answers to this model, alias or adapter name."""
        return self.info is not None and (model in self.info.models or model in self.info.adapters)

    def mark(self, health: Health, reason: str) -> bool:
        """Set the health; True when it changed."""
        changed = health is not self.health
        if changed:
            self.since = time()
        self.health, self.reason = health, reason
        return changed
