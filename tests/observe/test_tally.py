"""The cheap counters and histograms tell what the library's would."""

from __future__ import annotations

import random

import prometheus_client
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from router.observe.metrics import SECONDS
from router.observe.tally import Counter, Histogram


def page(registry: CollectorRegistry) -> set[str]:
    lines = generate_latest(registry).decode().splitlines()
    return {line for line in lines if "_created" not in line}


def test_the_page_is_the_librarys() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    plain, counted, spread = (
        Counter("a", "A.", ()),
        Counter("b", "B.", ("x", "y")),
        Histogram("c", "C.", ("x",), SECONDS),
    )
    for collector in (plain, counted, spread):
        ours.register(collector)
    their_plain = prometheus_client.Counter("a", "A.", registry=theirs)
    their_counted = prometheus_client.Counter("b", "B.", ("x", "y"), registry=theirs)
    their_spread = prometheus_client.Histogram("c", "C.", ("x",), buckets=SECONDS, registry=theirs)
    assert page(ours) == page(theirs)
    rng = random.Random(1)
    for value in [*SECONDS, 0, 1e9, *(rng.expovariate(1) for _ in range(500))]:
        spread.labels('r"1\n').observe(value)
        their_spread.labels('r"1\n').observe(value)
        plain.labels().inc()
        their_plain.inc()
        counted.labels("1", "2").inc(value)
        their_counted.labels("1", "2").inc(value)
    assert page(ours) == page(theirs)
