"""What was computed before and where, and what became of it: the memory behind miss attribution.

* *sent*: blocks of prompts this router sent, with the last sending of each: where to, how that replica's cache stood
  then. Of a chain's blocks beyond the first 64 every 8th is kept, and the last.
* *dropped*: blocks that a replica evicted, and when, counted in sendings.

Both are bounded: two generations each, of which the older is thrown away when the younger is full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from router.observe.attribution import Cause

DENSE, STRIDE = 64, 8
MAX_SENT, MAX_DROPPED = 200_000, 100_000
_MAX_REPLICAS = 1000
_Value = TypeVar("_Value")


class Standing(NamedTuple):
    """How a replica's cache is known now. `gone`: it takes no requests; `distrusted`: other token ids.

    `clears`: times all that was known of it was forgotten; of them `restarts` because the engine restarted, `losses`
    because events were lost, the others because the engine was told to. `tokens`: its size, 0 if unknown.
    """

    gone: bool = False
    distrusted: bool = False
    clears: int = 0
    restarts: int = 0
    losses: int = 0
    tokens: int = 0


GONE = Standing(gone=True)


class _Sending(NamedTuple):
    """One prompt sent. `at`: in sendings; `computed`: tokens computed on that replica by then."""

    replica_id: str
    standing: Standing
    at: int
    computed: int


class Lost(NamedTuple):
    """Why blocks that were computed on a replica are held by nobody now."""

    cause: Cause
    replica_id: str


class _Generations(Generic[_Value]):
    """A bounded dict: at most `bound` entries, and what one update adds, in each of two generations."""

    __slots__ = ("_bound", "old", "young")

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self.young: dict[int, _Value] = {}
        self.old: dict[int, _Value] = {}

    def put(self, keys: Sequence[int], value: _Value) -> None:
        if len(self.young) >= self._bound:
            self.old, self.young = self.young, {}
        self.young.update(dict.fromkeys(keys, value))

    def get(self, key: int) -> _Value | None:
        found = self.young.get(key)
        return found if found is not None else self.old.get(key)


class Past:
    """For one thread. `standing`: how a replica is now, by its id (its entry in the index)."""

    def __init__(
        self, standing: Callable[[str], Standing], *, max_sent: int = MAX_SENT, max_dropped: int = MAX_DROPPED
    ) -> None:
        self.standing = standing
        self.now = 0
        """Sendings so far."""
        self._sent: _Generations[_Sending] = _Generations(max_sent // 2)
        self._max_dropped = max_dropped
        self._dropped: dict[str, _Generations[int]] = {}
        self._computed: dict[str, int] = {}
        self._asked: tuple[Sequence[int], Sequence[int], int] | None = None

    def sent(self, replica_id: str, chain: Sequence[int]) -> None:
        """A prompt with this chain was sent there."""
        self.now += 1
        sending = _Sending(replica_id, self.standing(replica_id), self.now, self._computed.get(replica_id, 0))
        # What the same replica was sent before, and not so long ago that it may be forgotten, is there already; only
        # the deepest of it is made new, for it is what `lost` reads.
        kept, known = self._depth(chain)
        before = self._sent.young.get(kept[known - 1]) if known else None
        same = before is not None and before[:2] == sending[:2]
        self._sent.put(kept[known - 1 :] if same else kept, sending)
        self._asked = None

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
        return len(chain) if depth == len(kept) else DENSE + (depth - DENSE - 1) * STRIDE + 1

    def lost(self, chain: Sequence[int], held: int) -> Lost | None:
        """Why nobody holds block `held` of a chain that was sent before; None if it can't be told.

        A replica that is there, dropped nothing and had room, and still is not known to hold what it was sent: its
        events are late or lost.
        """
        kept, depth = self._depth(chain)
        sending = self._sent.get(kept[depth - 1]) if depth else None
        if sending is None or held >= len(chain):
            return None
        replica_id, then = sending.replica_id, sending.standing
        now = self.standing(replica_id)
        if now.gone or now.restarts > then.restarts:
            cause = Cause.GONE
        elif now.distrusted:
            cause = Cause.MISMATCH
        elif self.dropped_since(replica_id, chain[held], sending.at) or (
            now.clears > then.clears and now.losses == then.losses
        ):
            cause = Cause.EVICTED
        else:
            overrun = self._computed.get(replica_id, 0) - sending.computed > now.tokens > 0
            cause = Cause.EVICTED if overrun else Cause.STALE
        return Lost(cause, replica_id)

    def dropped(self, replica_id: str, keys: Sequence[int]) -> None:
        """The replica evicted these blocks."""
        known = self._dropped.get(replica_id)
        if known is None:
            if len(self._dropped) >= _MAX_REPLICAS:
                self._dropped.clear()
            known = self._dropped[replica_id] = _Generations(self._max_dropped // 2)
        known.put(keys, self.now)

    def dropped_since(self, replica_id: str, key: int, at: int) -> bool:
        """Whether the replica is known to have evicted a block since a sending."""
        known = self._dropped.get(replica_id)
        found = None if known is None else known.get(key)
        return found is not None and found >= at

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


def _kept(chain: Sequence[int]) -> Sequence[int]:
    if len(chain) <= DENSE:
        return chain
    kept = [*chain[:DENSE], *chain[DENSE::STRIDE]]
    if (len(chain) - 1 - DENSE) % STRIDE:
        kept.append(chain[-1])
    return kept
