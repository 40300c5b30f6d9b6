"""What /metrics reads when it is asked for: the fleet, the index and its feeds, queues, keys, configuration.

What each name means, its kind and its labels are declared in observe.scraped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from router.fleet.breaker import Circuit
from router.fleet.replica import Feed, Health, Replica
from router.observe.scraped import Sample

if TYPE_CHECKING:
    from router.app import App


def samples(app: App) -> Iterator[Sample]:
    """All of them, now."""
    app.placement.refresh(app.fleet)
    feeds = app.feeds.status()
    for replica in app.fleet:
        yield from _replica(replica, feeds.get(replica.id, {}))
    yield from app.trust.samples()
    yield from app.warmup.samples()
    yield from _shared(app)
    yield from _traffic(app)
    yield "index_blocks", (), app.index.blocks
    yield "index_blocks_refused", (), app.index.blocks_refused
    yield "sessions", (), len(app.observer.sessions)
    yield "session_bytes", (), app.observer.sessions.bytes
    yield "sessions_forgotten", (), app.observer.sessions.forgotten
    yield "config_reloads", ("taken",), app.reloads.taken
    yield "config_reloads", ("refused",), app.reloads.refused
    yield "config_refused", (), float(bool(app.reloads.problem))
    yield "models_approximate", (), len(app.catalog.approximate)


def _replica(replica: Replica, feed: Mapping[str, Any]) -> Iterator[Sample]:
    at = (replica.id,)
    yield "replica_up", at, float(replica.health is Health.UP)
    yield "replica_ejected", at, float(replica.breaker.circuit is Circuit.OPEN)
    yield "replica_weight", at, replica.weight
    if replica.limit < math.inf:
        yield "replica_limit", at, replica.limit
    yield "replica_warm_tokens", at, replica.load.warm_tokens
    yield "replica_slowness", at, replica.speed.slowness
    yield "replica_running", at, replica.load.running
    yield "replica_pending_prefill_tokens", at, replica.load.pending_prefill
    if replica.reported is not None:
        yield "replica_kv_usage", at, replica.reported.kv_usage
        yield "replica_waiting", at, replica.reported.waiting
    yield "replica_exact", at, float(replica.feed is Feed.EVENTS)
    yield "replica_quarantined", at, float(bool(replica.distrust))
    yield "replica_index_blocks", at, feed.get("blocks", 0)
    for key in ("gaps", "replays", "clears", "malformed", "orphans"):
        yield f"event_{key}", at, feed.get(key, 0)
    yield "event_lag_seconds", at, feed.get("lag_s", 0.0)


def _shared(app: App) -> Iterator[Sample]:
    shared = app.feeds.shared
    if shared is None:
        return
    yield "redis_up", (), float(shared.registry.health.trouble is None)
    yield "redis_routers", (), shared.share.routers
    yield "redis_stuck_replicas", (), len(shared.stuck())
    if shared.mirror is not None:
        yield "mirror_bootstraps", (), shared.mirror.bootstraps
        yield "mirror_gaps", (), shared.mirror.gaps


def _traffic(app: App) -> Iterator[Sample]:
    yield "client_connections", (), len(app.server.connections)
    yield "request_bytes_held", (), app.server.held_bytes
    yield "upstream_connections", (), sum(app.pool.open.values())
    yield "queue_requests", (), len(app.admission.queue)
    yield "queue_turns", (), app.admission.waited
    for reason, count in app.admission.refused.items():
        yield "queue_refusals", (reason,), count
    yield "ejections", (), app.outliers.ejections
    yield "retry_budget_spent", (), float(app.forwarder.budget.spent(time.monotonic()))
    for key in app.gate:
        at, usage = (key.entry.name,), key.usage
        yield "key_requests", at, usage.requests
        yield "key_tokens", at, usage.tokens
        yield "key_running", at, usage.running
        for why, count in usage.refused.items():
            yield "key_refused", (*at, why), count
    if app.gate.closed:
        yield "unauthenticated", (), app.gate.refused
