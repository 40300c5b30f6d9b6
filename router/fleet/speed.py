"""How fast a replica answers, learnt from the answers themselves: different GPUs in one fleet need no configuration.

A request that has `work` before it (queued prompts and its own) gets its first token after about

    seconds = slowness x (base + work / rate)

`work` is in tokens of an empty context: a token that attends to many others takes longer (see `effort`), and a line
through plain tokens would take replicas that happen to get long prompts for slow ones and the others for fast ones.

`base` is everything that doesn't grow with the work: network, the step under way, sampling. `base` and `rate` are the
fleet's, the line through what was observed of all replicas that is least wrong in proportion (a plain least-squares
line is made by the longest waits alone, and wrong by a multiple for short ones); `slowness` is a replica's own, the
mean of the seconds observed over those that the fleet's line predicts. Older observations fade. One number for each
replica, and not a line, since a replica's requests may all be of one size; and a number that is pulled towards 1 as if
PRIOR further requests had taken just as long as predicted, and by NOISE standard errors more, since a chance difference
must not decide where sessions live.
"""

from __future__ import annotations

import math

FADE = 0.98
"""Weight an observation keeps with each newer one of its replica: about the last 50 count."""
FLEET_FADE = 0.998
PRIOR = 8.0
PRIOR_VARIANCE = 0.25
PRIOR_RATE = 8000.0
"""Tokens a second, before anything was observed: a mid-sized model on one GPU."""
PRIOR_BASE_S = 0.02
_PRIOR_WORK = 4096.0
_SHORTEST_S = 0.002
"""Shorter predictions are taken as this long: a millisecond more or less says nothing of a replica."""
NOISE = 2.0
"""A difference of so many standard errors may be chance. The least of equals would get every long prompt, and lose the
sessions that it holds."""
ATTENTION_TOKENS = 30_000
"""Context at which attention costs as much as the rest of the model for one token: 8k to 53k for common models."""
_OUTLIER = 8.0
"""An observation this many times slower than predicted is counted as this slow: a stall is not a speed."""


def effort(uncached: float, cached: float) -> float:
    """Work of computing `uncached` tokens behind `cached` ones, in tokens of an empty context."""
    return uncached * (1.0 + (cached + uncached / 2) / ATTENTION_TOKENS)


class FleetSpeed:
    """The line of the whole fleet: `base_s` in seconds, `rate` in tokens of an empty context a second."""

    __slots__ = ("_n", "_st", "_sw", "_swt", "_sww", "_variance", "base_s", "rate", "ratio")

    def __init__(self) -> None:
        self._n = self._sw = self._st = self._sww = self._swt = 0.0
        self.ratio = 1.0
        """What was observed over what was predicted, usually."""
        self._variance = PRIOR_VARIANCE
        self.base_s, self.rate = PRIOR_BASE_S, PRIOR_RATE
        # Two imagined observations, one of them without work; they fade like any other.
        self._note(0.0, PRIOR_BASE_S)
        self._note(_PRIOR_WORK, PRIOR_BASE_S + _PRIOR_WORK / PRIOR_RATE)

    def predict(self, work: float) -> float:
        """Seconds to the first token on an average replica."""
        return self.base_s + work / self.rate

    @property
    def deviation(self) -> float:
        """By how much one request of a replica differs from the next, as a share of what is predicted."""
        return math.sqrt(self._variance)

    def differs(self, by: float) -> None:
        """A request's share of the predicted differed by this much from what is usual for its replica."""
        self._variance += (1.0 - FLEET_FADE) * (by * by - self._variance)

    def add(self, work: float, seconds: float) -> float:
        """One observation of any replica; returns it over what was predicted."""
        predicted = max(_SHORTEST_S, self.predict(work))
        ratio = min(seconds / predicted, _OUTLIER)
        self.ratio += (1.0 - FLEET_FADE) * (ratio - self.ratio)
        self._note(work, ratio * predicted)
        n, sw, st = self._n, self._sw, self._st
        spread = n * self._sww - sw * sw
        slope = (n * self._swt - sw * st) / spread if spread > 0 else 0.0
        # Work that costs nothing, or more than a second for 50 tokens, is noise.
        self.rate = 1.0 / min(max(slope, 1e-6), 0.02)
        self.base_s = max(0.0, (st - sw / self.rate) / n)
        return ratio

    def _note(self, work: float, seconds: float) -> None:
        weight = 1.0 / max(_SHORTEST_S, self.predict(work)) ** 2
        self._n = self._n * FLEET_FADE + weight
        self._sw = self._sw * FLEET_FADE + weight * work
        self._st = self._st * FLEET_FADE + weight * seconds
        self._sww = self._sww * FLEET_FADE + weight * work * work
        self._swt = self._swt * FLEET_FADE + weight * work * seconds


class Speed:
    """One replica's `slowness`: 1 is the fleet's average, 3 takes three times as long."""

    __slots__ = ("_count", "_ratios", "slowness")

    def __init__(self) -> None:
        self._count = 0.0
        self._ratios = 0.0
        self.slowness = 1.0

    def observe(self, fleet: FleetSpeed, work: float, seconds: float) -> None:
        """A first token came `seconds` after its request was sent, with `work` to compute before it."""
        ratio = fleet.add(work, seconds)
        if self._count:
            fleet.differs(ratio - self._ratios / self._count)
        self._ratios = self._ratios * FADE + ratio
        self._count = count = self._count * FADE + 1.0
        difference = (self._ratios / fleet.ratio - count) / (count + PRIOR)
        chance = NOISE * fleet.deviation / fleet.ratio * math.sqrt(count) / (count + PRIOR)
        self.slowness = 1.0 + math.copysign(max(0.0, abs(difference) - chance), difference)
