"""EndpointSlices to endpoints. No I/O.

What is read of a slice (discovery.k8s.io/v1):

    metadata.name, metadata.labels["kubernetes.io/service-name"]
    addressType             IPv4 | IPv6 (FQDN: deprecated, skipped)
    ports[].name, .port     null ports: every port
    endpoints[].addresses   interchangeable: the first is used
    endpoints[].conditions  ready (absent: true), serving (absent: as ready), terminating (absent: false)
    endpoints[].targetRef   kind, name, uid of the pod
    endpoints[].nodeName, .zone
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from router.engines import EngineKind
from router.fleet.discovery.endpoint import Endpoint, EventPorts, Scheme, bracketed

SERVICE_LABEL = "kubernetes.io/service-name"


@dataclass(slots=True, frozen=True)
class Seen:
    """One address of one pod in one slice. `pod`: what it is the same pod by; `name`: the pod's name or ""."""

    pod: str
    name: str
    address: str
    port: int
    ready: bool
    terminating: bool
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class Shape:
    """How a pod's address becomes an endpoint. `port`: a port's name or number; None: the slice's only port."""

    port: str | int | None = None
    scheme: Scheme = "http"
    kind: EngineKind | None = None
    events: EventPorts | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


def read_slice(item: Mapping[str, Any], port: str | int | None) -> list[Seen]:
    """The pods of one EndpointSlice. Raises ValueError when the wanted port is not in a slice that has endpoints."""
    kind = item.get("addressType")
    endpoints = item.get("endpoints") or []
    if kind not in ("IPv4", "IPv6") or not endpoints:
        return []
    meta = item.get("metadata") or {}
    number = _port(item.get("ports"), port, str(meta.get("name")))
    service = (meta.get("labels") or {}).get(SERVICE_LABEL)
    found = []
    for endpoint in endpoints:
        addresses = endpoint.get("addresses") or []
        if not addresses:
            continue
        conditions = endpoint.get("conditions") or {}
        ready = conditions.get("ready") is not False
        # A pod that is terminating may still be serving; it finishes what it has either way.
        terminating = conditions.get("terminating") is True
        target = endpoint.get("targetRef") or {}
        name = str(target.get("name") or "") if target.get("kind") == "Pod" else ""
        labels = {"service": service, "node": endpoint.get("nodeName"), "zone": endpoint.get("zone")}
        found.append(
            Seen(
                pod=str(target.get("uid") or "") or name or str(addresses[0]),
                name=name,
                address=str(addresses[0]),
                port=number,
                ready=ready and conditions.get("serving") is not False and not terminating,
                terminating=terminating,
                labels={key: str(value) for key, value in labels.items() if value},
            )
        )
    return found


def merge(slices: Iterable[Iterable[Seen]], shape: Shape) -> list[Endpoint]:
    """The endpoints of all slices, sorted by id.

    A pod can be in several slices: one per address family, and for a moment in two of the same family while the
    control plane moves it. It is one endpoint, at its IPv4 address if it has one; it is terminating as soon as one
    slice says so, since no pod comes back from that.
    """
    pods: dict[str, Seen] = {}
    for seen in (seen for part in slices for seen in part):
        other = pods.get(seen.pod)
        if other is not None:
            terminating = seen.terminating or other.terminating
            best = min(seen, other, key=lambda one: (":" in one.address, one.address))
            seen = replace(best, terminating=terminating, ready=(seen.ready or other.ready) and not terminating)
        pods[seen.pod] = seen
    found: dict[str, Endpoint] = {}
    # A StatefulSet's pod and its successor share a name for a moment: the one that stays has it.
    for seen in sorted(pods.values(), key=lambda one: (one.terminating, not one.ready, one.pod)):
        host = bracketed(seen.address)
        name = seen.name or f"{host}:{seen.port}"
        if name in found:
            name = f"{name}@{host}:{seen.port}"
        found[name] = Endpoint(
            id=name,
            url=f"{shape.scheme}://{host}:{seen.port}",
            ready=seen.ready,
            terminating=seen.terminating,
            kind=shape.kind,
            events=shape.events.at(host) if shape.events else None,
            labels={**shape.labels, **seen.labels},
        )
    return [found[name] for name in sorted(found)]


def _port(listed: Any, wanted: str | int | None, where: str) -> int:
    # A number is taken as it is: pods answer on ports that their service doesn't list.
    if isinstance(wanted, int):
        return wanted
    ports = {str(entry.get("name") or ""): entry["port"] for entry in listed or [] if entry.get("port")}
    if wanted is None and len(ports) == 1:
        return int(next(iter(ports.values())))
    if wanted is not None and wanted in ports:
        return int(ports[wanted])
    have = ", ".join(f"{name or '(unnamed)'} {number}" for name, number in ports.items()) or "none"
    fix = f"no port named `{wanted}`" if wanted is not None else "which port is not clear; set `port`"
    raise ValueError(f"EndpointSlice {where}: {fix} (its ports: {have})")
