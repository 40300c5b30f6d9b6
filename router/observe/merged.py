"""The metrics of several workers as one page.

Counters and histograms are added up, those of workers that are gone as they were last read: a sum never goes back.
Gauges that count something are added up; of those that tell a state, the worst worker's value is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from router.observe.metrics import Family

_SUMS = frozenset(
    f"prefix_router_{name}"
    for name in (
        *("replica_running", "replica_pending_prefill_tokens", "client_connections", "request_bytes_held"),
        *("upstream_connections", "queue_requests", "key_running"),
    )
)
_LOWEST = frozenset(
    f"prefix_router_{name}"
    for name in ("replica_up", "replica_weight", "replica_limit", "replica_exact", "replica_verified", "redis_up")
)
_Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Merged:
    """`retire` what a worker that is gone had counted; `page` the others with it."""

    def __init__(self) -> None:
        self._gone: dict[str, tuple[str, str, _Samples]] = {}

    def retire(self, families: Iterable[Family]) -> None:
        """Keep the counts of a worker that is gone."""
        _add(self._gone, (family for family in families if family[1] != "gauge"))

    def page(self, workers: Iterable[Iterable[Family]]) -> bytes:
        """The /metrics page."""
        found = {name: (kind, text, dict(samples)) for name, (kind, text, samples) in self._gone.items()}
        for families in workers:
            _add(found, families)
        registry = CollectorRegistry()
        registry.register(_Page(list(_metrics(found))))
        return generate_latest(registry)


def _add(found: dict[str, tuple[str, str, _Samples]], families: Iterable[Family]) -> None:
    for name, kind, text, samples in families:
        sums = found.setdefault(name, (kind, text, {}))[2]
        for sample, labels, value in samples:
            key = sample, tuple((label, of) for label, of in labels)
            if key not in sums:
                sums[key] = value
            elif sample.endswith("_created") or (kind == "gauge" and name in _LOWEST):
                sums[key] = min(sums[key], value)
            elif kind == "gauge" and name not in _SUMS:
                sums[key] = max(sums[key], value)
            else:
                sums[key] += value


def _metrics(found: dict[str, tuple[str, str, _Samples]]) -> Iterator[Metric]:
    for name, (kind, text, samples) in found.items():
        metric = Metric(name, text, kind)
        for (sample, labels), value in samples.items():
            metric.add_sample(sample, dict(labels), value)
        yield metric


class _Page(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics

    def describe(self) -> list[Metric]:
        return []
