"""Counters and histograms that cost next to nothing to count in: a plain number, or a bisection and two additions.

The library's own take locks and walk a histogram's buckets one by one: 2 us a value, eleven values a request. These are
for one thread, the event loop's, which also answers scrapes; all else is made when somebody scrapes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Count:
    """A counter's value for one set of labels."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, by: float = 1.0) -> None:
        """Add; `by` is not negative."""
        self.value += by


class Spread:
    """A histogram's values for one set of labels: how many lay up to each bound, and beyond the last; their sum."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Another value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Counter(Collector):
    """Without labels it is told from the start, with labels each value once it is counted."""

    kind = "counter"

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self.name, self.text, self.label_names = name, text, tuple(labels)
        self._children: dict[tuple[str, ...], Count] = {} if labels else {(): Count()}

    def labels(self, *values: str) -> Count:
        """The count for these label values, given as strings, in order."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = Count()
        return child

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self.name, self.text, labels=self.label_names)
        for values, count in self._children.items():
            family.add_metric(values, count.value)
        yield family

    def describe(self) -> list[Metric]:
        return [CounterMetricFamily(self.name, self.text, labels=self.label_names)]


class Histogram(Collector):
    """`bounds`: of its buckets, ascending."""

    kind = "histogram"

    def __init__(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self.name, self.text, self.label_names = name, text, tuple(labels)
        self._bounds = tuple(bounds)
        self._shown = (*(str(float(bound)) for bound in bounds), "+Inf")
        self._children: dict[tuple[str, ...], Spread] = {}

    def labels(self, *values: str) -> Spread:
        """The values under these labels, given as strings, in order."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = Spread(self._bounds)
        return child

    def observe(self, values: Mapping[str, float]) -> None:
        """A value each for some labels, of a histogram that has one label."""
        children, bounds = self._children, self._bounds
        for label, value in values.items():
            spread = children.get((label,)) or self.labels(label)
            spread.counts[bisect_left(bounds, value)] += 1
            spread.total += value

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self.name, self.text, labels=self.label_names)
        for values, spread in self._children.items():
            family.add_metric(values, list(zip(self._shown, accumulate(spread.counts), strict=True)), spread.total)
        yield family

    def describe(self) -> list[Metric]:
        return [HistogramMetricFamily(self.name, self.text, labels=self.label_names)]
