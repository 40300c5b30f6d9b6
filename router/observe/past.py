"""What was computed before and where, and what became of it: the memory behind miss attribution.

* *sent*: blocks of prompts this router sent, with the last sending of each to up to 4 replicas: how that replica's
  cache stood then. Of a chain's blocks beyond the first 64 every 8th is kept, and the last. A sending noted at a
  chain's deepest block speaks for those before it.
* *dropped*: blocks that a replica evicted, and when.
* *clears*: the last times that all that was known of a replica was forgotten, and why.

All are bounded, the first two in bytes: each by two generations, of which the older is thrown away when the younger is
full.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Generic, NamedTuple, TypeVar

from router.observe.attribution import Cause

DENSE, STRIDE = 64, 8
MAX_BYTES = 64 << 20
ENTRY_BYTES = 128
"""A key, its place, and its share of what is known of it; measured."""
HOLDERS = 4
"""Replicas remembered a block."""
MAX_CLEARS = 16
"""Remembered a replica."""
PLACES = 8
"""Blocks of a missing part that are looked at, at most."""
_MAX_REPLICAS = 1000
_Value = TypeVar("_Value")


class Standing(NamedTuple):
    """How a replica's cache is known now. `gone`: it takes no requests; `distrusted`: other token ids.

    `clears`: times all that was known of it was forgotten; of them `restarts` because the engine restarted, `losses`
    because events were lost, the others because the engine was told
    to. `tokens`: its size, 0 if unknown. `heard`: when its last events were applied, by Past's clock.
    """

    gone: bool = False
    distrusted: bool = False
    clears: int = 0
    restarts: int = 0
    losses: int = 0
    tokens: int = 0
    heard: float = 0.0


GONE = Standing(gone=True)


class Sending(NamedTuple):
    """One prompt sent. `at`: by the clock; `computed`: tokens computed on that replica by then, its own included."""

    replica_id: str
    standing: Standing
    at: float
    computed: int


_when = itemgetter(0)
_Holders = tuple[Sending, ...]
"""The last sending to each replica, the newest first."""


class Lost(NamedTuple):
    """Why the blocks up to `until`, which were computed once, are held by nobody now."""

    until: int
    cause: Cause


class Dropped(NamedTuple):
    """A block was evicted `at`, which was `told` then or later."""

    at: float
    told: float


class Clear(NamedTuple):
    """All that was known of a replica was forgotten. `cause`: GONE if it restarted, STALE if events were lost (it
    may still hold everything), EVICTED if it was told to. `computed`: tokens computed there by then.
    `unheard`: it had been sent prompts of which no event came.
    """

    at: float
    cause: Cause
    computed: int
    unheard: bool


class _Generations(Generic[_Value]):
    """A bounded dict: at most `bound` entries, and what one update adds, in each of two generations."""

    __slots__ = ("bound", "old", "young")

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.young: dict[int, _Value] = {}
        self.old: dict[int, _Value] = {}

    def __len__(self) -> int:
        return len(self.young) + len(self.old)

    def put(self, keys: Sequence[int], value: _Value) -> None:
        self.room().update(dict.fromkeys(keys, value))

    def room(self) -> dict[int, _Value]:
        """Where to put the next entries."""
        if len(self.young) >= self.bound:
            self.old, self.young = self.young, {}
        return self.young

    def get(self, key: int) -> _Value | None:
        found = self.young.get(key)
        return found if found is not None else self.old.get(key)


class Past:
    """For one thread. `standing`: how a replica is now, by its id (its entry in the index).

    `max_bytes`: half of it for what was sent, half for what was dropped, in which replicas have equal shares.
    """

    def __init__(
        self,
        standing: Callable[[str], Standing],
        *,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.standing = standing
        self.clock = clock
        self.told_late = False
        """Blocks turned out to have been evicted some time ago; set back by those who draw conclusions from it."""
        self._generation = max(1, max_bytes // ENTRY_BYTES // 4)
        self._sent: _Generations[_Holders] = _Generations(self._generation)
        self._dropped: dict[str, _Generations[Dropped]] = {}
        self._clears: dict[str, tuple[Standing, deque[Clear]]] = {}
        self._unheard: dict[str, float] = {}
        """The first sending to each replica since it was last heard of."""
        self._computed: dict[str, int] = {}
        self._asked: tuple[Sequence[int], Sequence[int], int] | None = None

    def sent(self, replica_id: str, chain: Sequence[int], tokens: int = 0) -> Sending:
        """A prompt with this chain was sent there; `tokens` of it are likely to be computed."""
        done = self._computed.get(replica_id, 0) + tokens
        sending = Sending(replica_id, self.standing(replica_id), self.clock(), done)
        if self._unheard.get(replica_id, -1.0) <= sending.standing.heard:
            if len(self._unheard) >= _MAX_REPLICAS:
                self._unheard.clear()
            self._unheard[replica_id] = sending.at
        kept, known = self._depth(chain)
        self._asked = None
        deepest = self._sent.young.get(kept[known - 1]) if known else None
        if deepest is not None and any(_alike(sending, each) for each in deepest):
            # The same replica was sent this much before, and not so long ago that it may be forgotten.
            self._sent.put(kept[known - 1 : known], _with(sending, deepest))
            self._sent.put(kept[known:], (sending,))
            return sending
        room, of = self._sent.room(), None
        made: _Holders = (sending,)
        for key in kept[:known]:
            holders = self._sent.get(key)
            if holders is not of:
                of, made = holders, _with(sending, holders or ())
            room[key] = made
        room.update(dict.fromkeys(kept[known:], (sending,)))
        return sending

    def refused(self, chain: Sequence[int], at: float) -> None:
        """A prompt that was sent then was answered with an error: nothing of it was computed."""
        young = self._sent.young
        for key in _kept(chain):
            holders = young.get(key)
            if holders is not None and holders[0].at == at:
                if len(holders) > 1:
                    young[key] = holders[1:]
                elif key not in self._sent.old:
                    del young[key]
        self._asked = None

    @property
    def entries(self) -> int:
        """What it holds, bounded."""
        return len(self._sent) + sum(map(len, self._dropped.values()))

    def computed(self, replica_id: str, tokens: int) -> None:
        """The replica computed so many tokens of a prompt."""
        if len(self._computed) > _MAX_REPLICAS:
            self._computed.clear()
        self._computed[replica_id] = self._computed.get(replica_id, 0) + tokens

    def known(self, chain: Sequence[int]) -> int:
        """Leading blocks of `chain` that were in a prompt sent before; up to 7 too few."""
        kept, depth = self._depth(chain)
        if depth <= DENSE:
            return depth
        return len(chain) if depth == len(kept) else _place(depth - 1, len(chain)) + 1

    def likely(self, replica_id: str, chain: Sequence[int], blocks: int, size: int) -> int:
        """Of the leading blocks (of `size` tokens) that a replica is said to hold, those that it can still hold.

        All, unless it was sent prompts since it was last heard of: its events may be lost. What it computed since it
        was sent these blocks has pushed them out then from the end on, as far as both do not fit into its cache.
        """
        standing = self.standing(replica_id)
        if self._unheard.get(replica_id, 0.0) <= standing.heard or not standing.tokens or not blocks:
            return blocks
        kept, depth = self._depth(chain)
        then = max(
            (
                each.computed
                for key in kept[_index(blocks) - 1 : depth]
                for each in self._sent.get(key) or ()
                if each.replica_id == replica_id
            ),
            default=None,
        )
        if then is None:
            return blocks
        room = standing.tokens - max(0, self._computed.get(replica_id, 0) - then)
        return max(0, min(blocks, room // size))

    def lost(self, chain: Sequence[int], held: int, asked: str, size: int) -> list[Lost]:
        """Why nobody holds the blocks from `held` on that were sent before: how the last one that had them lost them.

        `asked`: who is asked for them now. A replica that is there, dropped nothing and had room, and still is not
        known to hold what it was sent: its events are late or lost. Of the one that is asked its answer would show it.
        """
        kept, depth = self._depth(chain)
        first = min(_index(held), depth - 1)
        if first < 0 or held >= len(chain):
            return []
        latest: dict[str, Sending] = {}
        now: dict[str, Standing] = {}
        found: list[Lost] = []
        until = _place(depth - 1, len(chain)) + 1
        for at in sorted({first + (depth - 1 - first) * n // PLACES for n in range(PLACES + 1)}, reverse=True):
            for sending in self._sent.get(kept[at]) or ():
                before = latest.get(sending.replica_id)
                if before is None:
                    now[sending.replica_id] = self.standing(sending.replica_id)
                if before is None or before.at < sending.at:
                    latest[sending.replica_id] = sending
            ends = [self._end(kept[at], then, now[name], name == asked, until * size) for name, then in latest.items()]
            cause = max(ends, key=_when)[1] if ends else Cause.UNKNOWN
            if not found or found[-1].cause is not cause:
                found.append(Lost(until, cause))
            until = _place(at, len(chain))
        return found[::-1]

    def _end(self, key: int, then: Sending, now: Standing, asked: bool, depth: int) -> tuple[float, Cause]:
        """When and how a replica lost a block of a prompt that it was sent; inf if it should have it.

        `depth`: tokens up to the block's end.
        """
        replica_id = then.replica_id
        room = max(1, now.tokens - depth) if now.tokens else 0
        dropped = self.dropped_at(replica_id, key)
        told = math.inf if dropped is None or dropped.at < then.at else dropped.at
        blind = False
        for clear in self.clears(replica_id):
            if then.at < clear.at < told:
                if clear.cause is not Cause.STALE:
                    full = self._full_at(then, clear.at, clear.computed, room) if blind or clear.unheard else None
                    return (clear.at, clear.cause) if full is None else (full, Cause.EVICTED)
                blind = True
        if told < math.inf:
            return told, Cause.EVICTED
        if now.gone:
            return math.inf, Cause.GONE
        if now.distrusted:
            return math.inf, Cause.MISMATCH
        full = self._full_at(then, self.clock(), self._computed.get(replica_id, 0), room)
        if full is not None or asked:
            return then.at if full is None else full, Cause.EVICTED
        return math.inf, Cause.STALE

    @staticmethod
    def _full_at(then: Sending, at: float, computed: int, room: int) -> float | None:
        """When a replica had computed `room` tokens since a sending, if it had by `at`: about then it evicted what lies
        so deep in that prompt that no more fits beside it."""
        since = computed - then.computed
        return then.at + (at - then.at) * room / since if since > room > 0 else None

    def dropped(self, replica_id: str, keys: Sequence[int], age_s: float = 0.0) -> None:
        """The replica evicted these blocks, so long ago."""
        known = self._dropped.get(replica_id)
        if known is None:
            if len(self._dropped) >= _MAX_REPLICAS:
                self._dropped.clear()
            known = self._dropped[replica_id] = _Generations(0)
            for each in self._dropped.values():
                each.bound = max(1, self._generation // len(self._dropped))
        now = self.clock()
        known.put(keys, Dropped(now - age_s, now))
        self.told_late = self.told_late or age_s > 0

    def cleared(self, replica_id: str) -> None:
        """All that was known of the replica was forgotten."""
        if len(self._clears) >= _MAX_REPLICAS:
            self._clears.clear()
        now = self.standing(replica_id)
        before, clears = self._clears.get(replica_id) or (GONE, deque(maxlen=MAX_CLEARS))
        if now.restarts > before.restarts:
            cause = Cause.GONE
        elif now.losses > before.losses:
            cause = Cause.STALE
        else:
            cause = Cause.EVICTED
        unheard = self._unheard.get(replica_id, 0.0) > now.heard
        clears.append(Clear(self.clock(), cause, self._computed.get(replica_id, 0), unheard))
        self._clears[replica_id] = now, clears

    def clears(self, replica_id: str) -> Iterable[Clear]:
        """The oldest first."""
        known = self._clears.get(replica_id)
        return () if known is None else known[1]

    def dropped_at(self, replica_id: str, key: int) -> Dropped | None:
        """When the replica evicted a block the last time, by the clock; None if that is not known."""
        known = self._dropped.get(replica_id)
        return None if known is None else known.get(key)

    def _depth(self, chain: Sequence[int]) -> tuple[Sequence[int], int]:
        """The chain's kept hashes, and how many leading ones of them are known; asked several times for one request."""
        if self._asked is not None and self._asked[0] is chain:
            return self._asked[1:]
        kept = _kept(chain)
        low, high = 0, len(kept)
        while low < high:
            middle = (low + high) // 2
            if self._sent.get(kept[middle]) is not None:
                low = middle + 1
            else:
                high = middle
        self._asked = chain, kept, low
        return kept, low


def _alike(one: Sending, other: Sending) -> bool:
    return one.replica_id == other.replica_id and one.standing[:-1] == other.standing[:-1]


def _with(sending: Sending, holders: _Holders) -> _Holders:
    return (sending, *(each for each in holders if each.replica_id != sending.replica_id))[:HOLDERS]


def _index(block: int) -> int:
    """Which kept hash is the first at or after a block."""
    return block if block <= DENSE else DENSE + -(-(block - DENSE) // STRIDE)


def _place(kept: int, blocks: int) -> int:
    """Where in a chain of so many blocks its kept hash of that number is."""
    return kept if kept < DENSE else min(DENSE + (kept - DENSE) * STRIDE, blocks - 1)


def _kept(chain: Sequence[int]) -> Sequence[int]:
    if len(chain) <= DENSE:
        return chain
    kept = [*chain[:DENSE], *chain[DENSE::STRIDE]]
    if (len(chain) - 1 - DENSE) % STRIDE:
        kept.append(chain[-1])
    return kept
