"""The work this router has given a replica: what is unfinished, and what it was lately.

The second outlives requests. Agents that take turns leave nothing in flight at any decision; what their replica did in
the last half minute still says how likely the next step is to meet another one there.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush

RECENT_S = 30.0
"""Time constant over which past work fades."""


class Load:
    """Counters of one replica's work; those of unfinished work are zero when nothing is under way.

    Prefill work is in tokens of an empty context (fleet.speed.effort): a long prompt counts as more than its tokens.

    `pending_prefill`: prefill work sent whose first answer byte has not come.
    `running`: sequences sent and not ended.
    `other_prefill`, `other_running`: the same of this router's other workers, and of the other routers where an index
    is shared (else 0). `other_recent`: what the other workers had prefilled lately.
    `turn`: a number that grows with every dispatch over the whole fleet; the least recently chosen replica has the
    smallest.
    `warm_tokens`: tokens that sessions living there are expected to come back for (see routing.lineage).
    """

    __slots__ = (
        "_at",
        "_due",
        "_prefilled",
        "_sequence_s",
        "other_prefill",
        "other_recent",
        "other_running",
        "pending_prefill",
        "running",
        "turn",
        "warm_tokens",
    )

    def __init__(self) -> None:
        self.pending_prefill = 0
        self.running = 0
        self.other_prefill = 0
        self.other_running = 0
        self.other_recent = 0.0
        self.turn = 0
        self.warm_tokens = 0.0
        self._at = 0.0
        self._due: list[tuple[float, int, Ticket]] = []
        self._prefilled = 0.0
        self._sequence_s = 0.0

    @property
    def queued_tokens(self) -> int:
        """Prefill work waiting there, of all workers and routers."""
        return self.pending_prefill + self.other_prefill

    @property
    def sequences(self) -> int:
        """Sequences sent there and not ended, of all workers and routers."""
        return self.running + self.other_running

    def settle(self, now: float) -> None:
        """Take prompts off the queue that should be prefilled by now, of answers that come in one piece."""
        while self._due and self._due[0][0] <= now:
            heappop(self._due)[2].first_byte()

    def recent(self, now: float) -> tuple[float, float]:
        """(prefill work a second, mean number of sequences) lately; `now` in seconds, any steady clock."""
        self._fade(now)
        return (self._prefilled + self.other_recent) / RECENT_S, self._sequence_s / RECENT_S

    def own_recent(self, now: float) -> float:
        """The prefill work of the last half minute that this worker sent, the older the less."""
        self._fade(now)
        return self._prefilled

    def begin(self, work: int, sequences: int = 1, now: float = 0.0, prefilled_at: float | None = None) -> Ticket:
        """Count a dispatch at once, before the bytes are sent.

        `prefilled_at`: when its prompt is expected to be prefilled, where no first byte will tell.
        """
        self._fade(now)
        self._prefilled += work
        ticket = Ticket(self, work, sequences)
        if prefilled_at is not None:
            heappush(self._due, (prefilled_at, id(ticket), ticket))
        return ticket

    def _fade(self, now: float) -> None:
        passed = now - self._at
        if passed > 0:
            keep = math.exp(-passed / RECENT_S)
            self._prefilled *= keep
            self._sequence_s = self._sequence_s * keep + (self.running + self.other_running) * RECENT_S * (1 - keep)
            self._at = now


class Ticket:
    """One dispatch. Whatever happens to the request, `end` is called once or more; only the first call counts."""

    __slots__ = ("_load", "_prefill", "_sequences")

    def __init__(self, load: Load, work: int, sequences: int) -> None:
        self._load = load
        self._prefill = work
        self._sequences = sequences
        load.pending_prefill += work
        load.running += sequences

    def first_byte(self) -> None:
        """The prompt is prefilled: its tokens are no longer queued work."""
        self._load.pending_prefill -= self._prefill
        self._prefill = 0

    def end(self, now: float = 0.0) -> None:
        """The request is over, well or badly."""
        self.first_byte()
        if self._sequences:
            self._load._fade(now)
            self._load.running -= self._sequences
            self._sequences = 0
