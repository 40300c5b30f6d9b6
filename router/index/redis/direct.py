"""Lookups that ask Redis each time, for a fleet whose index is too large to mirror in every router.

A lookup fetches the bitmaps of a small head first and goes on only while some replica holds all of it. It is boxed in
time and never retried: no answer in time is an empty answer, counted. After a failure Redis is left alone until the
registry has reached it again, so a dead Redis costs a request nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from router.index.redis.health import STORE_ERRORS, Health
from router.index.redis.layout import QUARANTINE_MS, Layout
from router.index.redis.registry import Registry, Roster
from router.index.redis.store import Store
from router.index.types import Match, Tier

log = logging.getLogger(__name__)

HEAD = 64
"""Blocks asked for first: a miss costs a twelfth of asking for 2,048."""
STEP = 2048
"""Blocks asked for at a time after the head: 2 ms of the server at most."""
ROSTER_LIFE_S = QUARANTINE_MS / 1000 / 2
"""An older roster may name a slot that has a new owner; then nothing is answered."""


@dataclass(slots=True)
class DirectCounters:
    lookups: int = 0
    timeouts: int = 0
    failures: int = 0
    skipped: int = 0
    """Answered empty without asking: Redis failed lately, or no roster is fresh enough."""


class RedisDirectIndex:
    """The lookup of a BlockIndex. `store` should have connections of its own; `registry` is run by the owner."""

    def __init__(
        self,
        store: Store,
        layout: Layout,
        registry: Registry,
        *,
        timeout_s: float = 0.005,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._layout, self._registry = store, layout, registry
        self._timeout_s, self._clock = timeout_s, clock
        self._failed_at = float("-inf")
        self._roster: Roster | None = None
        self._owners: dict[int, str] = {}
        self._mask = 0
        self.health = Health(f"direct index of pool {layout.pool}", log)
        self.counters = DirectCounters()

    async def lookup(self, chain: Sequence[int]) -> dict[str, Match]:
        """As BlockIndex.lookup; empty when Redis does not answer within `timeout_s`. Raises no store errors."""
        self.counters.lookups += 1
        registry = self._registry
        if registry.roster is not self._roster:
            self._take(registry.roster)
        stale = self._clock() - registry.polled > ROSTER_LIFE_S
        if not self._mask or not chain or stale or self._failed_at >= registry.polled:
            self.counters.skipped += 1
            return {}
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await self._walk(chain)
        except STORE_ERRORS as error:
            self._failed_at = self._clock()
            self.health.fail(error)
            if isinstance(error, TimeoutError):
                self.counters.timeouts += 1
            else:
                self.counters.failures += 1
            return {}
        self.health.ok()
        return found

    def _take(self, roster: Roster | None) -> None:
        self._roster = roster
        incarnations = roster.incarnations if roster else ()
        live = roster.live if roster else frozenset()
        self._owners = {each.slot: each.replica_id for each in incarnations if each.replica_id in live}
        self._mask = sum(1 << slot for slot in self._owners)

    async def _walk(self, chain: Sequence[int]) -> dict[str, Match]:
        walk = Walk(self._mask)
        tiers = self._roster.tiers if self._roster else (Tier.DEVICE,)
        at, step = 0, HEAD
        while walk.holders and at < len(chain):
            part = chain[at : at + step]
            keys = [key for tier in tiers for key in self._layout.blocks(tier, part)]
            values: list[Any] = await self._store.execute("MGET", *keys)
            planes = [values[start : start + len(part)] for start in range(0, len(values), len(part))]
            walk.feed(planes)
            at, step = at + len(part), STEP
        return {self._owners[slot]: match for slot, match in walk.matches().items()}


class Walk:
    """Bitmaps of a chain's blocks, block by block -> how far each slot of `mask` holds them all. No I/O.

    Example:
        >>> walk = Walk(0b11)
        >>> walk.feed([[b"\\x03", b"\\x01", None]])      # slot 1 holds one block, slot 0 two
        >>> walk.matches()
        {1: Match(blocks=1, lower=0, predicted=0), 0: Match(blocks=2, lower=0, predicted=0)}
    """

    def __init__(self, mask: int) -> None:
        self.holders = mask
        self._depth = 0
        self._ends: dict[int, int] = {}
        self._lower: dict[int, int] = {}

    def feed(self, planes: list[list[bytes | None]]) -> None:
        """The next blocks: one list of bitmaps per tier, device first."""
        device, rest = planes[0], planes[1:]
        read = int.from_bytes
        for at, value in enumerate(device):
            held = read(value, "little") if value else 0
            if rest:
                below = 0
                for plane in rest:
                    lower = plane[at]
                    if lower:
                        below |= read(lower, "little")
                only = below & ~held & self.holders
                held |= below
                for slot in _slots(only):
                    self._lower[slot] = self._lower.get(slot, 0) + 1
            still = self.holders & held
            if still != self.holders:
                for slot in _slots(self.holders & ~still):
                    self._ends[slot] = self._depth
                self.holders = still
                if not still:
                    return
            self._depth += 1

    def matches(self) -> dict[int, Match]:
        """Slot -> match, for slots that hold at least the first block."""
        for slot in _slots(self.holders):
            self._ends[slot] = self._depth
        return {slot: Match(depth, self._lower.get(slot, 0)) for slot, depth in self._ends.items() if depth}


def _slots(mask: int) -> list[int]:
    slots = []
    while mask:
        low = mask & -mask
        slots.append(low.bit_length() - 1)
        mask ^= low
    return slots
