"""What passes between the parts of the index: tiers, deltas, matches, and the one protocol every backend implements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, Protocol

import msgspec


class Tier(IntEnum):
    """Where a replica keeps a block. Lower is nearer to the GPU."""

    DEVICE = 0
    HOST = 1
    DISK = 2


class Cleared(IntEnum):
    """Why all that was known of a replica's cache was forgotten; NO (false): it was not."""

    NO = 0
    EMPTIED = 1
    """The engine dropped it all, as it was told to; or what is said next is all that it holds."""
    RESTARTED = 2
    """The engine began anew."""
    LOST = 3
    """Events were lost or could not be read: it may still hold everything."""


class Clears(NamedTuple):
    """Times that all that was known of a replica was forgotten, and of them those for a restart and for lost events."""

    times: int = 0
    restarts: int = 0
    losses: int = 0

    def plus(self, why: Cleared) -> Clears:
        """One more."""
        return Clears(self.times + 1, self.restarts + (why is Cleared.RESTARTED), self.losses + (why is Cleared.LOST))


class Match(msgspec.Struct, frozen=True, gc=False):
    """How much of a prompt's chain one replica holds, in leading blocks.

    `blocks` counts every leading block held in any tier or predicted; `lower` of them are held only below the device
    tier; `predicted` of them are not confirmed yet (just routed, the engine's event has not arrived).
    """

    blocks: int
    lower: int = 0
    predicted: int = 0


@dataclass(slots=True)
class Delta:
    """The net change of one replica's cache: first clear (when `cleared`), then drop, then store.

    A key occurs at most once per tier over `stored` and `dropped`. Applying a delta twice changes nothing.
    `age_s`: how long ago it happened, where that is known and not just now (events that had to be asked for again).
    """

    cleared: Cleared = Cleared.NO
    stored: dict[Tier, list[int]] = field(default_factory=dict)
    dropped: dict[Tier, list[int]] = field(default_factory=dict)
    age_s: float = field(default=0.0, compare=False)

    def __bool__(self) -> bool:
        return bool(self.cleared) or bool(self.stored) or bool(self.dropped)


class BlockIndex(Protocol):
    """Block hash -> replicas. Implemented in memory, as a mirror of Redis, and by Redis directly.

    A replica is known by its slot, a small integer (its bit in every mask). A slot is not given out again before
    every trace of its last owner is swept.
    """

    def add_replica(self, replica_id: str) -> int:
        """The slot of `replica_id`, new or the one it has."""
        ...

    def remove_replica(self, replica_id: str) -> None:
        """Forget a replica: no lookup names it from this moment on; its memory is swept in chunks later."""
        ...

    def clear_replica(self, replica_id: str, why: Cleared = Cleared.EMPTIED) -> None:
        """Forget a replica's blocks, keep the replica: at once for lookups, swept later."""
        ...

    def apply(self, replica_id: str, delta: Delta) -> None:
        """Apply a delta; one for an unknown replica is dropped and counted."""
        ...

    async def lookup(self, chain: Sequence[int]) -> dict[str, Match]:
        """For each replica that holds at least the first block: how many leading blocks of `chain` it holds."""
        ...


class BlockSink(Protocol):
    """Where the truth about a replica's cache is published: the index here, Redis from an agent."""

    def apply(self, replica_id: str, delta: Delta) -> None: ...
