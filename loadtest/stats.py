"""Distributions of a measured quantity."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Distribution:
    """Sorted values, at least one, in the unit they were measured in (seconds)."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Distribution | None:
        """None where nothing is known: an empty distribution has no median."""
        known = tuple(sorted(value for value in values if value is not None))
        return cls(known) if known else None

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)

    @property
    def std(self) -> float:
        """Of the values themselves (divided by n), as numpy's default."""
        mean = self.mean
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.values) / len(self.values))

    @property
    def p50(self) -> float:
        return self.percentile(50)

    @property
    def p90(self) -> float:
        return self.percentile(90)

    @property
    def p99(self) -> float:
        return self.percentile(99)

    def percentile(self, percent: float) -> float:
        """Linear interpolation between the closest ranks, as numpy's default.

        >>> Distribution((1.0, 2.0, 3.0, 4.0)).percentile(50)
        2.5
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"a percentile is between 0 and 100, got {percent}")
        place = (len(self.values) - 1) * percent / 100
        low = math.floor(place)
        high = min(low + 1, len(self.values) - 1)
        return self.values[low] + (self.values[high] - self.values[low]) * (place - low)
