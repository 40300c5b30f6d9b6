"""What was computed before and where, and what became of it: the memory behind miss attribution.

Two tables of block hashes, each in two generations of which the older is thrown away when the younger is full:

* *sent*: blocks of prompts this router sent, with the replica that got the last one and how often that replica's cache
  had been cleared by then. Of a chain's blocks beyond the first 64 every 8th is kept.
* *dropped*: blocks that replicas evicted, with the mask of those replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from router.observe.attribution import Cause

DENSE, STRIDE = 64, 8
MAX_SENT, MAX_DROPPED = 200_000, 200_000


@dataclass(frozen=True, slots=True)
class Standing:
    """How a replica's cache is known now. `clears`: times all was forgotten; `restarts`, `losses`: of them, because the
    engine restarted, or because events were lost. `gone`: it takes no requests; `distrusted`: other token ids."""

    gone: bool = False
    distrusted: bool = False
    clears: int = 0
    restarts: int = 0
    losses: int = 0


GONE = Standing(gone=True)


class _Generations:
    """A bounded dict: at most `bound` entries in each of two generations."""

    __slots__ = ("_bound", "old", "young")

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self.young: dict[int, int] = {}
        self.old: dict[int, int] = {}

    def room(self) -> dict[int, int]:
        if len(self.young) >= self._bound:
            self.old, self.young = self.young, {}
        return self.young

    def get(self, key: int) -> int | None:
        found = self.young.get(key)
        return found if found is not None else self.old.get(key)


class Past:
    """For one thread. `standing`: how a replica is now, by its id."""

    def __init__(
        self, standing: Callable[[str], Standing], *, max_sent: int = MAX_SENT, max_dropped: int = MAX_DROPPED
    ) -> None:
        self.standing = standing
        self._sent = _Generations(max_sent // 2)
        self._dropped = _Generations(max_dropped // 2)
        self._stays: list[tuple[str, Standing]] = []
        self._stay_of: dict[tuple[str, Standing], int] = {}
        self._bits: dict[str, int] = {}
        self._asked: tuple[Sequence[int], Sequence[int], int] | None = None

    def sent(self, replica_id: str, chain: Sequence[int]) -> None:
        """A prompt with this chain was sent there."""
        stay = (replica_id, self.standing(replica_id))
        number = self._stay_of.get(stay)
        if number is None:
            if len(self._stays) > 10_000:  # replicas come and go: forget it all rather than grow
                self._stays.clear()
                self._stay_of.clear()
                self._sent = _Generations(self._sent._bound)
            number = self._stay_of[stay] = len(self._stays)
            self._stays.append(stay)
        young = self._sent.room()
        # What the same replica was sent before, and not so long ago that it may be forgotten, is there already.
        kept, known = self._depth(chain)
        if not known or young.get(kept[known - 1]) != number:
            known = 0
        young.update(dict.fromkeys(kept[known:], number))
        self._asked = None

    def known(self, chain: Sequence[int]) -> int:
        """Leading blocks of `chain` that were in a prompt sent before; up to 7 too few."""
        kept, depth = self._depth(chain)
        if depth <= DENSE:
            return depth
        return len(chain) if depth == len(kept) else DENSE + (depth - DENSE - 1) * STRIDE + 1

    def _depth(self, chain: Sequence[int]) -> tuple[Sequence[int], int]:
        """The chain's kept hashes, and how many leading ones of them are known; asked twice for each request."""
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

    def lost(self, chain: Sequence[int], held: int, known: int) -> Cause | None:
        """Why nobody holds blocks `held` to `known` of a chain; None if it can't be told."""
        if held >= known:
            return None
        place = held if held < DENSE else min(DENSE + -(-(held - DENSE) // STRIDE) * STRIDE, len(chain) - 1)
        number = self._sent.get(chain[place])
        if number is None:
            return None
        replica_id, then = self._stays[number]
        now = self.standing(replica_id)
        if now.gone:
            return Cause.GONE
        if now.distrusted:
            return Cause.MISMATCH
        if now.restarts > then.restarts:
            return Cause.GONE
        if self.was_dropped(replica_id, chain[held]):
            return Cause.EVICTED
        if now.losses > then.losses:
            return Cause.STALE
        return Cause.EVICTED if now.clears > then.clears else None

    def dropped(self, replica_id: str, keys: Sequence[int]) -> None:
        """The replica evicted these blocks."""
        bit = self._bits.get(replica_id)
        if bit is None:
            if len(self._bits) > 1000:
                self._bits.clear()
                self._dropped = _Generations(self._dropped._bound)
            bit = self._bits[replica_id] = 1 << len(self._bits)
        young = self._dropped.room()
        for key in keys:
            young[key] = young.get(key, 0) | bit

    def was_dropped(self, replica_id: str, key: int) -> bool:
        """Whether the replica is known to have evicted a block, lately."""
        bit = self._bits.get(replica_id, 0)
        return bool(self._dropped.young.get(key, 0) & bit or self._dropped.old.get(key, 0) & bit)


def _kept(chain: Sequence[int]) -> Sequence[int]:
    if len(chain) <= DENSE:
        return chain
    kept = [*chain[:DENSE], *chain[DENSE::STRIDE]]
    if (len(chain) - 1 - DENSE) % STRIDE:
        kept.append(chain[-1])
    return kept
