"""What /health, /ready and /replicas say: whether requests can be routed, and everything that is degraded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import time
from typing import Any

from router.fleet.breaker import Circuit
from router.fleet.fleet import Fleet
from router.fleet.replica import Feed, Health


@dataclass(slots=True)
class Reloads:
    """What became of a configuration that was read again. `problem`: why the files as they are now are refused;
    `waiting`: changed settings that only a restart can take up.
    """

    taken: int = 0
    refused: int = 0
    problem: str = ""
    waiting: tuple[str, ...] = ()

    def troubles(self) -> list[str]:
        """For /ready."""
        found = []
        if self.problem:
            found.append(f"configuration: the older one is in force: {self.problem}")
        if self.waiting:
            found.append(f"configuration: needs a restart: {', '.join(self.waiting)}")
        return found


_NOT_USED = (Health.NEW, Health.DOWN, Health.PAUSED)


def ready(
    fleet: Fleet, approximate_models: Mapping[str, str], troubles: Sequence[str], draining: bool
) -> tuple[bool, dict[str, Any]]:
    """(whether requests can be routed, what /ready answers).

    `approximate_models`: model name -> why its prompts are matched by approximate keys. `troubles`: what is
    wrong with discovery and the shared index.
    """
    usable = fleet.candidates()
    degraded = [
        *troubles,
        *(f"replica {r.id} is {r.health}: {r.reason}" for r in fleet if r.health in _NOT_USED),
        *(f"replica {r.id} is ejected: its requests failed" for r in fleet if r.breaker.circuit is Circuit.OPEN),
        *(
            f"replica {r.id}: its cache is modelled, not followed: {r.feed_reason}"
            for r in fleet
            if r.info is not None and r.feed is not Feed.EVENTS
        ),
        *(f"replica {r.id} is quarantined: {r.distrust}" for r in fleet if r.distrust),
        *(f"model {name}: prompts are matched by approximate keys: {why}" for name, why in approximate_models.items()),
    ]
    if usable and not any(r.health is Health.UP for r in usable):
        degraded.append("no replica is up: requests are tried on those that are down")
    able = bool(usable) and not draining
    state = "draining" if draining else "unavailable" if not usable else "degraded" if degraded else "ready"
    up = sum(r.health is Health.UP for r in fleet)
    return able, {"status": state, "replicas": len(fleet), "replicas_up": up, "degraded": degraded}


def replicas(
    fleet: Fleet, feeds: Mapping[str, Mapping[str, Any]], sources: Callable[[str], list[str]]
) -> list[dict[str, Any]]:
    """What /replicas answers: everything known of each replica.

    `feeds`: replica id -> state of its event feed. `sources`: who names a replica.
    """
    now = time()
    return [
        {
            "id": r.id,
            "url": r.url,
            "sources": sources(r.id),
            "labels": dict(r.labels),
            "engine": r.info.kind if r.info else r.kind,
            "version": r.info.version if r.info else None,
            "models": list(r.info.models) if r.info else [],
            "adapters": list(r.info.adapters) if r.info else [],
            "block_size": r.info.block_size if r.info else None,
            "kv_tokens": r.info.kv_tokens if r.info else None,
            "health": r.health,
            "reason": r.reason,
            "since_s": round(now - r.since, 1),
            "circuit": r.breaker.circuit,
            "weight": round(r.weight, 2),
            "slowness": round(r.speed.slowness, 2),
            "warm_tokens": round(r.load.warm_tokens),
            "running": r.load.running,
            "pending_prefill_tokens": r.load.pending_prefill,
            "reported": None
            if r.reported is None
            else {
                "running": r.reported.running,
                "waiting": r.reported.waiting,
                "kv_usage": r.reported.kv_usage,
                "age_s": round(now - r.reported_at, 1),
            },
            "quarantined": r.distrust or None,
            "feed": {"kind": r.feed, "reason": r.feed_reason, **feeds.get(r.id, {})},
        }
        for r in fleet
    ]
