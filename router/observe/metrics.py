"""Prometheus metrics. Label values are replica ids, endpoints and fixed slugs: bounded, and never a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from router.observe.attribution import Cause
from router.observe.breaks import BreakClass
from router.observe.scraped import SCRAPED, Sample
from router.observe.tally import Counter, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
STAGES = ("parse", "render", "tokenize", "hash", "lookup", "queue", "decide", "observe", "connect")
"""Of a request before it is with a replica; `queue`: waiting for room."""
STAGE_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1)

Family = tuple[str, str, str, list[tuple[str, list[tuple[str, str]], float]]]
"""(name, type, help, samples: (name, labels, value))."""


class Metrics:
    """All of the router's metrics, in a registry of their own.

    `read` gives the samples that are read at scrape time (fleet, index, event feeds) instead of being kept up to
    date on the request path.
    """

    def __init__(self, read: Callable[[], Iterator[Sample]]) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.kept: list[Counter | Histogram] = []
        """Those that are counted on the request path."""

        def counter(name: str, text: str, *labels: str) -> Counter:
            made = Counter(f"prefix_router_{name}", text, labels)
            registry.register(made)
            self.kept.append(made)
            return made

        def histogram(name: str, text: str, label: str, buckets: Sequence[float]) -> Histogram:
            made = Histogram(f"prefix_router_{name}", text, (label,), buckets)
            registry.register(made)
            self.kept.append(made)
            return made

        self.requests = counter("requests", "Requests answered.", "endpoint", "code")
        self.decisions = counter(
            "decisions",
            "Requests sent, by reason: prefix, shared, cold, spilled, only, sticky, retry, or the policy's name.",
            "replica",
            "reason",
        )
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens routed, as counted by the router.", "replica")
        self.matched_tokens = counter(
            "matched_tokens", "Prompt tokens the chosen replica was expected to hold.", "replica"
        )
        self.engine_prompt_tokens = counter(
            "engine_prompt_tokens", "Prompt tokens in answers that also said how many were cached.", "replica"
        )
        self.engine_cached_tokens = counter(
            "engine_cached_tokens", "Prompt tokens the engine said it had cached.", "replica"
        )
        self.reused_tokens = counter("reused_tokens", "Prompt tokens that did not have to be computed.").labels()
        self.computed_tokens = counter(
            "computed_tokens",
            "Prompt tokens computed, by cause: " + ", ".join(Cause) + ".",
            "cause",
        )
        self.causes = counter("request_causes", "Answered requests by the main cause of computed tokens.", "cause")
        self.breaks = counter(
            "prefix_breaks",
            "Steps that do not extend their session's last one, by class: " + ", ".join(BreakClass) + ".",
            "class",
        )
        self.break_tokens = counter("prefix_break_tokens", "Prompt tokens lost to prefix breaks, by class.", "class")
        self.approximate = counter("approximate_prompts", "Prompts matched by approximate keys.", "reason")
        self.retries = counter("retries", "Requests tried again on another replica.", "reason")
        self.disconnects = counter("client_disconnects", "Clients that left before their answer was complete.").labels()
        self.broken_streams = counter("broken_streams", "Answers that failed after their first byte.", "replica")
        self.ttft = histogram(
            "time_to_first_token_seconds",
            "From the request's arrival to the first body byte of the answer.",
            "replica",
            SECONDS,
        )
        self.duration = histogram(
            "request_seconds",
            "From the request's arrival to the end of the answer.",
            "replica",
            SECONDS,
        )
        self.stage = histogram(
            "stage_seconds",
            "Time before the request was with a replica, by stage: " + ", ".join(STAGES) + ".",
            "stage",
            STAGE_SECONDS,
        )
        registry.register(ReadWhenScraped(read))

    def page(self) -> bytes:
        """The /metrics page in Prometheus' text format."""
        return generate_latest(self.registry)

    def families(self) -> list[Family]:
        """The same as data, for a supervisor of several workers (observe.merged)."""
        return as_data(self.registry.collect())


def as_data(families: Iterable[Metric]) -> list[Family]:
    """What a collector gives, to be sent elsewhere."""
    return [
        (
            family.name,
            family.type,
            family.documentation,
            [(sample.name, list(sample.labels.items()), sample.value) for sample in family.samples],
        )
        for family in families
    ]


class ReadWhenScraped(Collector):
    """Samples of what is declared in observe.scraped."""

    def __init__(self, read: Callable[[], Iterator[Sample]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for name, label_values, value in self._read():
            family = families.get(name)
            if family is None:
                told = SCRAPED[name]
                make = GaugeMetricFamily if told.kind == "gauge" else CounterMetricFamily
                family = families[name] = make(f"prefix_router_{name}", told.text, labels=told.labels)
            family.add_metric(label_values, value)
        yield from families.values()

    def describe(self) -> list[Metric]:
        return []
