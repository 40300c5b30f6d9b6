"""Requests that may have killed an engine are kept from the others. No I/O, no clock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import xxhash

TOGETHER_S = 1.0
"""Requests lost on one replica within this time went down together: one of them may be the cause, the rest are not."""
DEATH_S = 10.0
"""A replica that goes down so soon after it failed over a request may have died of it."""


@dataclass(slots=True)
class _Suspect:
    losses: int = 0
    replica: str = ""
    at: float = 0.0


class PoisonGuard:
    """Remembers the fingerprints of requests whose connection was lost, and refuses those that lost it repeatedly.

    One loss says little: a replica that dies takes all its requests with it. A request that was there `losses` times
    within `memory_s` is refused for `refuse_s`; where several came to that count by one and the same death, innocent
    ones moved together with the guilty one, so each needs one loss more. After that time one more loss is enough. An
    answer clears the request. At most `size` fingerprints are kept, the newest.
    """

    def __init__(self, *, losses: int = 2, refuse_s: float = 60.0, memory_s: float = 600.0, size: int = 4096) -> None:
        self._losses = losses
        self._refuse_s = refuse_s
        self._memory_s = memory_s
        self._size = size
        self._suspects: OrderedDict[int, _Suspect] = OrderedDict()
        self._failed: OrderedDict[int, tuple[str, float]] = OrderedDict()
        self.tell: Callable[[int, str | None, float], None] | None = None
        """Other workers' guards hear of losses and answers."""

    @property
    def watching(self) -> bool:
        """There are suspects: requests have to be looked up. False nearly always, so that nobody hashes bodies."""
        return bool(self._suspects)

    @staticmethod
    def fingerprint(path: str, body: bytes) -> int:
        """Of one request, whoever sends it."""
        return xxhash.xxh3_64_intdigest(body, xxhash.xxh3_64_intdigest(path.encode()))

    def lost(self, fingerprint: int, replica: str, now: float) -> None:
        """The request's connection to the replica broke. Times are monotonic seconds, one clock for all processes."""
        self.heard(fingerprint, replica, now)
        if self.tell is not None:
            self.tell(fingerprint, replica, now)

    def heard(self, fingerprint: int, replica: str | None, now: float) -> None:
        """Another worker lost the request on a replica, or (None) had it answered."""
        if replica is None:
            self._suspects.pop(fingerprint, None)
            return
        suspect = self._suspects.pop(fingerprint, None)
        if suspect is None or now - suspect.at > self._memory_s:
            suspect = _Suspect()
        suspect.losses += 1
        suspect.replica, suspect.at = replica, now
        self._suspects[fingerprint] = suspect
        while len(self._suspects) > self._size:
            self._suspects.popitem(last=False)

    def failed(self, fingerprint: int, replica: str, now: float) -> None:
        """The replica answered with a failure of its own (500): a loss, if it turns out to be its last word."""
        self._failed.pop(fingerprint, None)
        self._failed[fingerprint] = (replica, now)
        while len(self._failed) > self._size:
            self._failed.popitem(last=False)

    def died(self, replica: str, now: float) -> None:
        """The replica is down: what it failed over just before counts as lost."""
        for fingerprint, (where, when) in list(self._failed.items()):
            if now - when > DEATH_S or where == replica:
                del self._failed[fingerprint]
            if now - when <= DEATH_S and where == replica:
                self.lost(fingerprint, replica, when)

    def answered(self, fingerprint: int) -> None:
        """The request was answered in full: it kills nobody."""
        if self._suspects.pop(fingerprint, None) is not None and self.tell is not None:
            self.tell(fingerprint, None, 0.0)
        self._failed.pop(fingerprint, None)

    def refused_for(self, fingerprint: int, now: float) -> float:
        """Seconds the request is still refused; 0 if it may go."""
        suspect = self._suspects.get(fingerprint)
        if suspect is None:
            return 0.0
        if now - suspect.at > self._memory_s:
            del self._suspects[fingerprint]
            return 0.0
        if suspect.losses < self._losses + self._in_company(suspect):
            return 0.0
        left = suspect.at + self._refuse_s - now
        if left > 0:
            return left
        suspect.losses = self._losses - 1
        return 0.0

    def _in_company(self, suspect: _Suspect) -> bool:
        return any(
            other is not suspect
            and other.losses >= self._losses
            and other.replica == suspect.replica
            and abs(other.at - suspect.at) <= TOGETHER_S
            for other in self._suspects.values()
        )
