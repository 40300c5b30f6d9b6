"""How fast a replica answers, learnt from the answers themselves: different GPUs in one fleet need no configuration.

A request that has `work` before it (queued prompts and its own) gets its first token after about

    seconds = slowness x (base + work / rate)

`work` is in tokens of an empty context: a token that attends to many others takes longer (see `effort`), and a line
through plain tokens would take replicas that happen to get long prompts for slow ones and the others for fast ones.

`base` is everything that doesn't grow with the work: network, the step under way, sampling. `base` and `rate` are the
fleet's, the line through what was observed of all replicas that is least wrong in proportion (a plain least-squares
line is made by the longest waits alone, and wrong by a multiple for short ones). `slowness` is a replica's own: what
was observed over what the line predicts, its mean in logarithms, so that half as fast and twice as fast weigh the same.
One number for each replica, and not a line, since a replica's requests may all be of one size.

A chance difference must not decide where sessions live: the least of equals would get every long prompt, and lose the
sessions that it holds. So a difference from the others counts as none up to NOISE standard errors, and in full far
beyond them: where requests are alike, one or two answers show a replica four times as slow. An answer that is overdue
shows it before it comes, since it will have taken longer than it has until now. What a replica known to be slow is
observed to take goes into the fleet's line as what another one would have taken.

Older observations fade with each newer one, and with time: who gets nothing because it was slow is tried again.
"""

from __future__ import annotations

import math

FADE = 0.9
"""Weight an observation keeps with each newer one of its replica: about the last 10 count."""
AGE_S = 60.0
"""Time constant over which what is known of a replica fades."""
FLEET_FADE = 0.998
PRIOR_VARIANCE = 0.09
PRIOR_SEEN = 8.0
"""The prior variance counts like that of so many observations."""
PRIOR_RATE = 8000.0
"""Tokens a second, before anything was observed: a mid-sized model on one GPU."""
PRIOR_BASE_S = 0.02
_PRIOR_WORK = 4096.0
_SHORTEST_S = 0.002
"""Shorter predictions are taken as this long: a millisecond more or less says nothing of a replica."""
NOISE = 3.0
USUAL = 1.5
"""An observation moves what is usual by at most so many standard deviations: one slow replica is not the fleet."""
ATTENTION_TOKENS = 30_000
"""Context at which attention costs as much as the rest of the model for one token: 8k to 53k for common models."""
_NOBODY = 0.1
"""Observations of others when there are none: the first answer of a fleet says nothing of its replica."""
_OUTLIER = 4.0
"""An observation more than this many times slower than predicted counts as this slow: a stall is not a speed."""


def effort(uncached: float, cached: float) -> float:
    """Work of computing `uncached` tokens behind `cached` ones, in tokens of an empty context."""
    return uncached * (1.0 + (cached + uncached / 2) / ATTENTION_TOKENS)


class FleetSpeed:
    """The line of the whole fleet: `base_s` in seconds, `rate` in tokens of an empty context a second."""

    __slots__ = ("_level", "_n", "_seen", "_st", "_sw", "_swt", "_sww", "_variance", "base_s", "rate")

    def __init__(self) -> None:
        self._n = self._sw = self._st = self._sww = self._swt = 0.0
        self._seen = PRIOR_SEEN
        self._level = 0.0
        """Logarithm of observed over predicted, usually: what keeps a fleet that slows down altogether from being a
        fleet of slow replicas."""
        self._variance = PRIOR_VARIANCE
        """Of that logarithm, from one request of a replica to the next."""
        self.base_s, self.rate = PRIOR_BASE_S, PRIOR_RATE
        # Two imagined observations, one of them without work; they fade like any other.
        self._note(0.0, PRIOR_BASE_S)
        self._note(_PRIOR_WORK, PRIOR_BASE_S + _PRIOR_WORK / PRIOR_RATE)

    def predict(self, work: float) -> float:
        """Seconds to the first token on an average replica."""
        return self.base_s + work / self.rate

    def compare(self, work: float, seconds: float) -> float:
        """Logarithm of `seconds` over what is usual for `work`, within bounds."""
        ratio = seconds / max(_SHORTEST_S, self.predict(work))
        return math.log(min(max(ratio, 1.0 / _OUTLIER), _OUTLIER)) - self._level

    def differs(self, square: float) -> None:
        """The square of one request's difference from what is usual for its replica."""
        self._variance += (square - self._variance) / self._seen

    def add(self, work: float, found: float, slowness: float) -> None:
        """One observation of any replica, as it compares; `slowness`: of that replica, this one included."""
        self._seen = self._seen * FLEET_FADE + 1.0
        usual = math.exp(self._level + found) / slowness
        self._note(work, usual * max(_SHORTEST_S, self.predict(work)))
        limit = USUAL * math.sqrt(self._variance)
        self._level += min(max(found, -limit), limit) / self._seen
        n, sw, st = self._n, self._sw, self._st
        spread = n * self._sww - sw * sw
        slope = (n * self._swt - sw * st) / spread if spread > 0 else 0.0
        # Work that costs nothing, or more than a second for 50 tokens, is noise.
        self.rate = 1.0 / min(max(slope, 1e-6), 0.02)
        self.base_s = max(0.0, (st - sw / self.rate) / n)

    def slowness(self, found: float, count: float) -> float:
        """Of a replica with `count` observations whose comparisons add up to `found`; 1 where that may be chance."""
        difference = found / count
        others = max(_NOBODY, self._seen - PRIOR_SEEN - count)
        square, chance = difference * difference, NOISE * NOISE * self._variance * (1.0 / count + 1.0 / others)
        return math.exp(difference * (1.0 - chance / square)) if square > chance else 1.0

    def _note(self, work: float, seconds: float) -> None:
        weight = 1.0 / max(_SHORTEST_S, self.predict(work)) ** 2
        self._n = self._n * FLEET_FADE + weight
        self._sw = self._sw * FLEET_FADE + weight * work
        self._st = self._st * FLEET_FADE + weight * seconds
        self._sww = self._sww * FLEET_FADE + weight * work * work
        self._swt = self._swt * FLEET_FADE + weight * work * seconds


class Speed:
    """One replica's `slowness`: 1 is the fleet's average, 3 takes three times as long. `now`: seconds, steady."""

    __slots__ = ("_at", "_count", "_found", "slowness")

    def __init__(self) -> None:
        self._at = 0.0
        self._count = 0.0
        self._found = 0.0
        self.slowness = 1.0

    def observe(self, fleet: FleetSpeed, work: float, seconds: float, now: float) -> None:
        """A first token came `seconds` after its request was sent, with `work` to compute before it."""
        found = fleet.compare(work, seconds)
        count, total = self._faded(now)
        if count:
            fleet.differs((found - total / count) ** 2 * count / (count + 1.0))
        self._at, self._count, self._found = now, count * FADE + 1.0, total * FADE + found
        self.slowness = fleet.slowness(self._found, self._count)
        fleet.add(work, found, self.slowness)

    def look(self, fleet: FleetSpeed, now: float, work: float = 0.0, waited: float = 0.0) -> None:
        """Bring `slowness` up to now. `waited`: seconds for which an overdue answer has not begun, with `work` before
        it: what is known of the replica can only get worse by that."""
        count, found = self._faded(now)
        self.slowness = fleet.slowness(found, count) if count else 1.0
        if waited:
            overdue = fleet.slowness(found + fleet.compare(work, waited), count + 1.0)
            self.slowness = max(self.slowness, overdue)

    def _faded(self, now: float) -> tuple[float, float]:
        fade = math.exp((self._at - now) / AGE_S)
        return self._count * fade, self._found * fade
