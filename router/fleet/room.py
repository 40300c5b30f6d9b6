"""How much more each replica can take before requests queue up inside it, where the router can't move them any more."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import monotonic, time

from router.engines import EngineLoad
from router.fleet.fleet import Fleet
from router.fleet.replica import Health, Replica

STALE_S = 5.0
"""An engine's report older than this says nothing about now."""
GROWTH_PER_S = 0.1
SMALLEST_GROWTH_PER_S = 4.0
FORGET_S = 10.0


@dataclass(frozen=True, slots=True)
class RoomPolicy:
    """max_running: sequences a replica gets at once; None: as its engine says or shows. engine_queue: so many may wait
    inside an engine that runs as many as it can."""

    max_running: int | None = None
    engine_queue: int = 32


class Room:
    """Keeps every replica's `limit` of sequences, the smallest of:

    - the configured one;
    - what the engine says it runs at most (SGLang, TGI), plus engine_queue;
    - what it runs now, plus engine_queue, if its last two reports both say that more than engine_queue wait: then it
      can't run more. Two, because a burst that the engine has just not looked at yet waits in one report, too;
    - what it had when it last answered that its queue is full. This one grows, by 10 % and at least 4 a second, and is
      forgotten after 10 s without such an answer.

    Nothing known, nothing limited: an idle fleet never makes anybody wait.
    """

    def __init__(self, fleet: Fleet, policy: RoomPolicy | None = None, clock: Callable[[], float] = monotonic) -> None:
        self._fleet = fleet
        self.policy = policy or RoomPolicy()
        self._clock = clock
        self._then = clock()
        self._reports: dict[str, tuple[EngineLoad, bool]] = {}  # the last report, and whether the one before was full

    def tick(self) -> None:
        """Every 0.1 s."""
        now = self._clock()
        passed, self._then = now - self._then, now
        bounded = False
        for replica in self._fleet:
            if replica.ceiling < math.inf:
                self._raise(replica, now, passed)
            replica.limit = self._limit(replica)
            bounded = bounded or replica.limit < math.inf or now < replica.full_until
        for gone in [replica_id for replica_id in self._reports if self._fleet.get(replica_id) is None]:
            del self._reports[gone]
        self._fleet.bounded = bounded

    @staticmethod
    def _raise(replica: Replica, now: float, passed: float) -> None:
        if now > replica.full_until + FORGET_S:
            replica.ceiling = math.inf
        elif now > replica.full_until:
            replica.ceiling += passed * max(SMALLEST_GROWTH_PER_S, GROWTH_PER_S * replica.ceiling)

    def _limit(self, replica: Replica) -> float:
        queue = self.policy.engine_queue
        limits = [replica.ceiling, self.policy.max_running or math.inf]
        report = replica.reported
        if report is not None and time() - replica.reported_at < STALE_S:
            if report.max_running is not None:
                limits.append(report.max_running + queue)
            last, full_before = self._reports.get(replica.id, (report, False))
            if last is not report:
                full_before = last.waiting > queue
                self._reports[replica.id] = (report, full_before)
            elif replica.id not in self._reports:
                self._reports[replica.id] = (report, False)
            if full_before and report.waiting > queue:
                limits.append(report.running + queue)
        return min(limits)


def slots(replicas: Iterable[Replica], now: float) -> float:
    """How many sequences more these replicas can take together; 0 for replicas that are paused or down."""
    total = 0.0
    for replica in replicas:
        total += _left(replica, now)
        if total == math.inf:
            break
    return total


def with_room(replicas: list[Replica], now: float) -> list[Replica]:
    """Those that can take one more; all of them if none can."""
    return [replica for replica in replicas if _left(replica, now) > 0] or replicas


def _left(replica: Replica, now: float) -> float:
    if replica.health is not Health.UP or now < replica.full_until:
        return 0.0
    if replica.limit == math.inf:
        return math.inf
    return max(0.0, max(1.0, replica.limit * replica.weight) - replica.load.sequences)
