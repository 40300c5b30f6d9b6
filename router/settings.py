"""What each part is built with, from the configuration. Used at the start and again at a reload."""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit

from router.api.sessions import Naming
from router.api.turn import Patience
from router.config.load import replica_id
from router.config.model import Config, Routing
from router.engines import EventSource
from router.fleet.discovery import Endpoint
from router.fleet.outliers import OutlierPolicy
from router.fleet.room import RoomPolicy
from router.http.limits import Limits, UpstreamLimits
from router.http.upstream import Origin
from router.proxy.budget import RetryBudget
from router.proxy.poison import PoisonGuard
from router.proxy.retry import RetryPolicy
from router.routing.cost import Weights
from router.routing.policies import POLICIES, Prefix
from router.routing.pools import Pools
from router.routing.types import Policy


def server_limits(config: Config) -> Limits:
    """What a client connection may use up."""
    limits = config.limits
    return Limits(
        max_body_bytes=limits.max_body_mb << 20,
        max_header_bytes=limits.max_header_kb << 10,
        max_connections=limits.max_connections,
        header_timeout_s=limits.header_timeout_s,
        body_timeout_s=limits.body_timeout_s,
        keepalive_s=limits.keepalive_s,
        max_buffered_bytes=limits.max_buffered_mb << 20,
        write_timeout_s=limits.write_timeout_s,
    )


def upstream_limits(config: Config) -> UpstreamLimits:
    """What replicas' connections are granted."""
    proxy = config.proxy
    return UpstreamLimits(
        connect_timeout_s=proxy.connect_timeout_s,
        first_byte_timeout_s=proxy.first_byte_timeout_s,
        idle_timeout_s=proxy.idle_timeout_s,
        keepalive_s=proxy.keepalive_s,
        max_idle_per_origin=proxy.max_idle_connections,
        max_per_origin=proxy.max_connections,
    )


def retry_policy(config: Config) -> RetryPolicy:
    """The bounds of one request's retries."""
    return RetryPolicy(max_attempts=config.proxy.max_attempts, total_s=config.proxy.total_timeout_s)


def retry_budget(config: Config) -> RetryBudget:
    """The bound of everybody's retries."""
    return RetryBudget(config.proxy.retry_budget_ratio, config.proxy.retry_budget_per_s)


def poison_guard(config: Config) -> PoisonGuard:
    """The rules against requests that break replicas."""
    return PoisonGuard(losses=config.proxy.poison_losses, refuse_s=config.proxy.poison_refuse_s)


def room_policy(config: Config) -> RoomPolicy:
    """When a replica is full."""
    return RoomPolicy(config.admission.max_running, config.admission.engine_queue)


def patience(config: Config) -> Patience:
    """How long requests wait for room."""
    return Patience(config.admission.timeout_s, config.admission.wait_for_replica_s)


def configured(config: Config) -> list[Endpoint]:
    """The replicas the configuration names."""
    return [
        Endpoint(
            replica_id(replica.id, replica.url),
            replica.url.rstrip("/"),
            kind=None if replica.engine == "auto" else replica.engine,
            events=None
            if replica.events is None
            else EventSource(
                replica.events.endpoint, replica.events.replay_endpoint, replica.events.topic, replica.events.bind
            ),
            labels=replica.labels,
        )
        for replica in config.replicas
    ]


def outlier_policy(config: Config) -> OutlierPolicy:
    """The configured rules of ejection."""
    health = config.health
    return OutlierPolicy(
        consecutive=health.eject_failures,
        error_ratio=health.eject_error_ratio,
        eject_s=health.eject_s,
        eject_max_s=health.eject_max_s,
        max_share=health.max_ejected_share,
        slow_start_s=health.slow_start_s,
    )


def make_policy(routing: Routing) -> Policy:
    """The configured policy."""
    if routing.policy == Prefix.name:
        return Prefix(Weights(routing.recompute_weight, routing.decode_cost_tokens, routing.affinity_tokens))
    return POLICIES[routing.policy]()


def naming(config: Config) -> Naming:
    """Where clients name their sessions."""
    return Naming(config.routing.session_header, config.routing.session_cookie)


def pools(config: Config) -> Pools:
    """The parts of the fleet that are kept for light and heavy requests."""
    return Pools(config.routing.light_tokens, config.routing.light_labels, config.routing.heavy_labels)


def origin(url: str, tls: ssl.SSLContext) -> Origin:
    """The address of a replica's base URL, reached with `tls` if that is https.

    Raises ValueError for a URL without a host or with an impossible port.
    """
    parts = urlsplit(url)
    if not parts.hostname:
        raise ValueError(f"{url} has no host")
    if parts.scheme != "https":
        return Origin(parts.hostname, parts.port or 80)
    return Origin(parts.hostname, parts.port or 443, tls)
