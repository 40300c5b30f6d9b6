"""How fast a replica answers, learnt from the answers themselves: different GPUs in one fleet need no configuration.

A request that has `work` uncached prompt tokens before it (queued ones and its own) gets its first token after about

    seconds = slowness x (base + work / rate)

`base` is everything that doesn't grow with the work: network, the step under way, sampling. `base` and `rate` are the
fleet's, the least-squares line through what was observed of all replicas; `slowness` is a replica's own, the seconds
observed over the seconds the fleet's line predicts. Older observations fade. One number for each replica, and not a
line, since a replica's requests may all be of one size; and a number that is pulled towards 1 as if PRIOR further
requests had taken just as long as predicted, since a chance difference must not decide where sessions live.
"""

from __future__ import annotations

FADE = 0.98
"""Weight an observation keeps with each newer one of its replica: about the last 50 count."""
FLEET_FADE = 0.998
PRIOR = 8.0
PRIOR_RATE = 8000.0
"""Tokens a second, before anything was observed: a mid-sized model on one GPU."""
PRIOR_BASE_S = 0.02
_PRIOR_WORK = 4096.0
_OUTLIER = 8.0
"""An observation this many times slower than predicted is counted as this slow: a stall is not a speed."""


class FleetSpeed:
    """The line of the whole fleet: `base_s` in seconds, `rate` in uncached prompt tokens a second."""

    __slots__ = ("_n", "_st", "_sw", "_swt", "_sww", "base_s", "mean_s", "rate")

    def __init__(self) -> None:
        far = PRIOR_BASE_S + _PRIOR_WORK / PRIOR_RATE
        # Two imagined observations, one of them without work; they fade like any other.
        self._n, self._sw, self._st = 2.0, _PRIOR_WORK, PRIOR_BASE_S + far
        self._sww, self._swt = _PRIOR_WORK * _PRIOR_WORK, _PRIOR_WORK * far
        self.base_s, self.rate = PRIOR_BASE_S, PRIOR_RATE
        self.mean_s = self._st / self._n

    def predict(self, work: float) -> float:
        """Seconds to the first token on an average replica."""
        return self.base_s + work / self.rate

    def add(self, work: float, seconds: float) -> None:
        """One observation of any replica."""
        fade = FLEET_FADE
        self._n = self._n * fade + 1.0
        self._sw = self._sw * fade + work
        self._st = self._st * fade + seconds
        self._sww = self._sww * fade + work * work
        self._swt = self._swt * fade + work * seconds
        n, sw, st = self._n, self._sw, self._st
        self.mean_s = st / n
        spread = n * self._sww - sw * sw
        slope = (n * self._swt - sw * st) / spread if spread > 0 else 0.0
        # Work that costs nothing, or more than a second for 50 tokens, is noise.
        self.rate = 1.0 / min(max(slope, 1e-6), 0.02)
        self.base_s = max(0.0, (st - sw / self.rate) / n)


class Speed:
    """One replica's `slowness`: 1 is the fleet's average, 3 takes three times as long."""

    __slots__ = ("_predicted", "_seconds", "slowness")

    def __init__(self) -> None:
        self._seconds = 0.0
        self._predicted = 0.0
        self.slowness = 1.0

    def observe(self, fleet: FleetSpeed, work: float, seconds: float) -> None:
        """A first token came `seconds` after its request was sent, with `work` uncached tokens to compute before it."""
        predicted = fleet.predict(work)
        seconds = min(seconds, _OUTLIER * predicted)
        fleet.add(work, seconds)
        self._seconds = self._seconds * FADE + seconds
        self._predicted = self._predicted * FADE + predicted
        prior = PRIOR * fleet.mean_s
        self.slowness = (self._seconds + prior) / (self._predicted + prior)
