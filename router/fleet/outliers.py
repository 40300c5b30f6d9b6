"""Passive health: replicas whose requests fail get none for a while, then one, then slowly all again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, time

from router.fleet.breaker import Circuit
from router.fleet.fleet import Fleet
from router.fleet.replica import Health, Replica

log = logging.getLogger(__name__)

TICK_S = 0.1
SMALLEST_WEIGHT = 0.1
TRIAL_PATIENCE_S = 5.0
"""A half-open replica that no request was sent to for so long, but that answers its probes, is believed."""
FULL_S = 0.5
"""A replica that said its queue is full gets nothing for so long, while others have room."""
ESTABLISHED_S = 10.0
"""A replica that comes when another has been up for so long joins a fleet at work: it starts slowly."""


@dataclass(frozen=True, slots=True)
class OutlierPolicy:
    """When a replica is ejected, and how it comes back.

    consecutive: failures in a row. error_ratio: share of failures in 10 s, of at least min_requests, and 0.3 above the
    other replicas' share. eject_s: how long it is out, doubled each time up to eject_max_s. max_share: of the replicas
    of one model that are up, at most so many are out. slow_start_s: after it was out for so long or longer, a replica
    takes so long until it has its full share; after a shorter time, that time.
    """

    consecutive: int = 5
    error_ratio: float = 0.5
    min_requests: int = 20
    eject_s: float = 5.0
    eject_max_s: float = 300.0
    max_share: float = 0.5
    slow_start_s: float = 30.0


class Outliers:
    """Watches the outcomes of requests over a fleet. `clock`: monotonic seconds.

    `unreachable(replica, reason)` is called when a connection was refused, `check(replica)` when a request failed: the
    prober's business.
    """

    def __init__(
        self,
        fleet: Fleet,
        policy: OutlierPolicy | None = None,
        *,
        unreachable: Callable[[Replica, str], None] = lambda replica, reason: None,
        check: Callable[[Replica], None] = lambda replica: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._fleet = fleet
        self._unreachable = unreachable
        self._check = check
        self._clock = clock
        self._ramps: dict[str, tuple[float, float]] = {}  # replica id -> (start, length)
        self.ejections = 0
        self.configure(policy or OutlierPolicy())

    def configure(self, policy: OutlierPolicy) -> None:
        """Judge by this policy from now on."""
        self._policy = policy
        self._fleet.max_ejected_share = policy.max_share

    def sent(self, replica: Replica) -> bool:
        """A request goes there; True if it is the trial. Then `ended` is due, whatever becomes of it."""
        if replica.breaker.circuit is not Circuit.HALF_OPEN or not replica.breaker.admits:
            return False
        replica.breaker.trial(running=True)
        return True

    def succeeded(self, replica: Replica) -> None:
        """The replica answered (a refusal of the request is an answer, too)."""
        now = self._clock()
        replica.breaker.succeeded(now)
        if replica.breaker.circuit is Circuit.HALF_OPEN:
            self._close(replica, "a trial request was answered")

    def refused(self, replica: Replica, reason: str) -> None:
        """It took no connection: out at once, until a probe succeeds."""
        self._unreachable(replica, reason)
        self.failed(replica, reason)

    def full(self, replica: Replica) -> None:
        """It said that its queue is full: no fault, but no room for a moment."""
        replica.full_until = self._clock() + FULL_S
        replica.ceiling = max(1.0, replica.load.sequences)
        self._fleet.bounded = True

    def failed(self, replica: Replica, reason: str) -> None:
        """A request failed by the replica's fault."""
        self._check(replica)
        now, breaker = self._clock(), replica.breaker
        breaker.failed(now)
        if breaker.circuit is Circuit.HALF_OPEN:
            self._open(replica, f"a trial request failed: {reason}")
        elif breaker.circuit is Circuit.CLOSED and self._is_outlier(replica, now) and self._may_eject(replica):
            self._open(replica, f"{breaker.consecutive} failures in a row, the last: {reason}")

    def ended(self, replica: Replica) -> None:
        """The trial is over. If it said nothing about the replica (its client left), the next request is one."""
        replica.breaker.trial(running=False)

    def joined(self, replica: Replica) -> None:
        """The replica answers its probes for the first time, or again: told before it is marked up."""
        replica.breaker.close(self._clock())
        others = [r for r in self._alike(replica) if r is not replica and r.weight == 1.0]
        if replica.health is Health.NEW:
            if any(time() - other.since >= ESTABLISHED_S for other in others):
                self._ramp(replica, self._policy.slow_start_s)
        elif others:
            self._ramp(replica, time() - replica.since)

    def tick(self) -> None:
        """Every 0.1 s: circuits that were open for long enough are half opened, weights grow."""
        now = self._clock()
        for replica in self._fleet:
            breaker = replica.breaker
            if breaker.due(now):
                breaker.half_open(now)
            elif breaker.waiting_for_trial_s(now) > TRIAL_PATIENCE_S and replica.health is Health.UP:
                self._close(replica, "it answers its probes")
            ramp = self._ramps.get(replica.id)
            if ramp is not None:
                begun, length = ramp
                replica.weight = min(1.0, max(SMALLEST_WEIGHT, (now - begun) / length))
                if replica.weight == 1.0:
                    del self._ramps[replica.id]
        for gone in [replica_id for replica_id in self._ramps if self._fleet.get(replica_id) is None]:
            del self._ramps[gone]
        self._fleet.ramping = bool(self._ramps)

    def _alike(self, replica: Replica) -> list[Replica]:
        """The replicas of its model that are up."""
        if replica.info is None:
            return []
        model = replica.info.models[0]
        return [r for r in self._fleet if r.health is Health.UP and r.info is not None and model in r.info.models]

    def _is_outlier(self, replica: Replica, now: float) -> bool:
        policy = self._policy
        if replica.breaker.consecutive >= policy.consecutive:
            return True
        answered, failed = replica.breaker.counts(now)
        if answered + failed < policy.min_requests or failed < policy.error_ratio * (answered + failed):
            return False
        others = [r.breaker.counts(now) for r in self._alike(replica) if r is not replica]
        total = sum(ok + bad for ok, bad in others)
        rest = sum(bad for _, bad in others) / total if total else 0.0
        return failed / (answered + failed) >= rest + 0.3

    def _may_eject(self, replica: Replica) -> bool:
        alike = self._alike(replica)
        out = sum(r.breaker.circuit is not Circuit.CLOSED for r in alike)
        return out + 1 <= self._policy.max_share * len(alike)

    def _open(self, replica: Replica, reason: str) -> None:
        length = replica.breaker.open(self._clock(), self._policy.eject_s, self._policy.eject_max_s)
        self.ejections += 1
        log.warning("replica %s gets no requests for %g s: %s", replica.id, length, reason)

    def _close(self, replica: Replica, reason: str) -> None:
        now = self._clock()
        replica.breaker.close(now)
        self._ramp(replica, self._policy.eject_s)
        log.info("replica %s gets requests again: %s", replica.id, reason)

    def _ramp(self, replica: Replica, away_s: float) -> None:
        length = min(self._policy.slow_start_s, away_s)
        if length > TICK_S:
            self._ramps[replica.id] = (self._clock(), length)
            replica.weight = SMALLEST_WEIGHT
            self._fleet.ramping = True
