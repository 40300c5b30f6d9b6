"""The discovery sources the configuration names."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import msgspec

from router.config import model
from router.engines import EngineKind
from router.fleet.discovery import DnsSource, EventPorts, FileSource, KubernetesSource, Source
from router.fleet.discovery.slices import Shape


def make_sources(discovery: model.Discovery) -> dict[Hashable, Source]:
    """One source for each entry, in the configuration's order (files, DNS names, Kubernetes), under its settings."""
    sources: list[tuple[msgspec.Struct, Source]] = [
        *((each, FileSource(Path(each.path), interval_s=each.interval_s)) for each in discovery.files),
        *((each, _dns(each)) for each in discovery.dns),
        *((each, _kubernetes(each)) for each in discovery.kubernetes),
    ]
    return {(type(each).__name__, msgspec.json.encode(each)): source for each, source in sources}


def _dns(name: model.DnsDiscovery) -> DnsSource:
    return DnsSource(
        name.host,
        name.port,
        scheme=name.scheme,
        interval_s=name.interval_s,
        kind=_kind(name.engine),
        events=_ports(name.events),
        labels=name.labels,
    )


def _kubernetes(pods: model.KubernetesDiscovery) -> KubernetesSource:
    shape = Shape(pods.port, pods.scheme, _kind(pods.engine), _ports(pods.events), pods.labels)
    return KubernetesSource(service=pods.service, selector=pods.selector, namespace=pods.namespace, shape=shape)


def _kind(engine: str) -> EngineKind | None:
    return None if engine == "auto" else engine  # type: ignore[return-value]  # the configuration allows only these


def _ports(events: model.EventPorts | None) -> EventPorts | None:
    return None if events is None else EventPorts(events.port, events.replay_port, events.topic)
