"""The work this router has given a replica: what is unfinished, and what it was lately.

The second outlives requests. Agents that take turns leave nothing in flight at any decision; what their replica did in
the last half minute still says how likely the next step is to meet another one there.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush

RECENT_S = 30.0
"""Time constant over which past work fades."""
_EPOCH_S = 600.0


def epoch(now: float) -> tuple[float, float]:
    """(start of the epoch of `now`, how much is left at `now` of what happened at its start).

    Past work is kept as it would have weighed at the start of an epoch: all replicas of a fleet fade by one factor,
    which a decision computes once. Epochs are short enough for the numbers to stay exact.
    """
    start = now // _EPOCH_S * _EPOCH_S
    return start, math.exp((start - now) / RECENT_S)


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
    `prefilled`, `absent`: past work as of `start` (see epoch); `at` brings them up to an epoch.
    """

    __slots__ = (
        "absent",
        "area",
        "area_at",
        "computed",
        "context",
        "due",
        "head",
        "other_prefill",
        "other_recent",
        "other_running",
        "pending_prefill",
        "prefilled",
        "running",
        "since",
        "start",
        "turn",
        "waiting",
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
        self.due: list[tuple[float, int, Ticket]] = []
        """Answers in one piece: (when the prompt should be computed, a tie-break, the dispatch), a heap."""
        self.waiting: dict[Ticket, None] = {}
        """Dispatches whose prompts are not computed yet, in the order of sending."""
        self.head: Ticket | None = None
        """The first of them: what the replica is taken to compute, since `since`."""
        self.since = 0.0
        self.context = 0
        """Prompt tokens of what was sent and has not ended."""
        self.area = self.area_at = 0.0
        """The integral of `context` until `area_at`, token seconds."""
        self.computed = 0
        """Prefill work done so far, ever."""
        self.start = 0.0
        self.prefilled = 0.0
        self.absent = 0.0
        """Of the running sequences, those that were not there lately: their mean number is running - absent."""

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
        while self.due and self.due[0][0] <= now:
            heappop(self.due)[2].first_byte(now)

    def at(self, start: float) -> None:
        """Tell past work as of the epoch that begins at `start`, if it is a later one."""
        if start > self.start:
            fade = math.exp((self.start - start) / RECENT_S)
            self.prefilled *= fade
            self.absent *= fade
            self.start = start

    def recent(self, now: float) -> tuple[float, float]:
        """(prefill work a second, mean number of sequences) lately; `now` in seconds, any steady clock."""
        start, fade = epoch(now)
        self.at(start)
        usual = self.running + self.other_running - self.absent * fade
        return (self.prefilled * fade + self.other_recent) / RECENT_S, usual

    def own_recent(self, now: float) -> float:
        """The prefill work of the last half minute that this worker sent, the older the less."""
        start, fade = epoch(now)
        self.at(start)
        return self.prefilled * fade

    def changed(self, work: int, sequences: int, now: float) -> None:
        """`work` was sent and `sequences` began (or ended, below 0) at `now`."""
        self.at(epoch(now)[0])
        weight = math.exp(max(0.0, now - self.start) / RECENT_S)
        self.prefilled += work * weight
        self.absent += sequences * weight
        self.running += sequences

    def decoded(self, context: int, now: float) -> float:
        """Prompts of `context` tokens came (or went, below 0) at `now`; returns the integral until then."""
        self.area += self.context * (now - self.area_at)
        self.area_at = now
        self.context += context
        return self.area

    def left(self, now: float, rate: float) -> int:
        """Prefill work that waits there, less what is done of the first prompt at `rate` tokens a second.

        At most half of it is taken as done: an answer that has not begun says no more than that it is not all.
        """
        head = self.head
        done = 0 if head is None else min(head.prefill // 2, int((now - self.since) * rate))
        return self.queued_tokens - done

    def begin(
        self,
        work: int,
        sequences: int = 1,
        now: float = 0.0,
        *,
        context: int = 0,
        ahead: int = 0,
        due: float = math.inf,
        told: bool = True,
    ) -> Ticket:
        """Count a dispatch at once, before the bytes are sent.

        `context`: the prompts' tokens. `ahead`: prefill work until its first token, its own included; `due`: when that
        is expected. `told`: its first
        byte tells when its prompt is computed; otherwise that counts as computed when it is due.
        """
        self.changed(work, sequences, now)
        ticket = Ticket(self, work, sequences, now, context, ahead, due)
        if not told:
            heappush(self.due, (due, id(ticket), ticket))
        return ticket


class Ticket:
    """One dispatch. Whatever happens to the request, `end` is called once or more; only the first call counts."""

    __slots__ = ("_area", "_computed", "_load", "_sequences", "ahead", "among", "at", "context", "due", "prefill")

    def __init__(self, load: Load, work: int, sequences: int, at: float, context: int, ahead: int, due: float) -> None:
        self._load = load
        self._area = 0.0
        self._computed = 0
        self.context = context
        self.among = load.context
        """Context of what was there when it was sent."""
        load.decoded(context, at)
        self._sequences = sequences
        self.prefill = work
        self.at = at
        self.ahead = ahead
        self.due = due
        load.pending_prefill += work
        load.waiting[self] = None
        if load.head is None:
            load.head = self
            load.since = at

    def first_byte(self, now: float = 0.0) -> None:
        """The prompt is prefilled: its tokens are no longer queued work."""
        load = self._load
        if self in load.waiting:
            del load.waiting[self]
            load.pending_prefill -= self.prefill
            load.computed += self.prefill
            self._computed = load.computed
            self._area = load.decoded(0, now)
            load.head = next(iter(load.waiting), None)
            load.since = now

    def beside(self, now: float) -> tuple[float, int]:
        """Since its first byte: (the integral of the context there, prefill work computed)."""
        load = self._load
        return load.decoded(0, now) - self._area, load.computed - self._computed

    def end(self, now: float = 0.0) -> None:
        """The request is over, well or badly."""
        self.first_byte(now)
        if self._sequences:
            self._load.decoded(-self.context, now)
            self._load.changed(0, -self._sequences, now)
            self._sequences = 0
