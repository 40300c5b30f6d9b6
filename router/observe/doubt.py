"""Whether others held what they were thought to hold when a request was sent: lost events that come later may deny it.

Until then the tokens count as `spilled`, for the decision was made in that belief; the record is corrected to
`index_stale` (metrics and the access log are not).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from router.observe.attribution import Attribution, Facts, attribute
from router.observe.past import Past

PLACES = 16
"""Blocks looked at, at most: what is told of a part of n blocks is exact to n / 16."""


@dataclass(slots=True)
class Doubt:
    """`at`: when it was sent, by the past's clock. `holders`: replicas and the tokens that each was thought to hold.
    `places`: some blocks, in order: the tokens before them, and their hashes."""

    facts: Facts
    at: float
    holders: Sequence[tuple[str, int]]
    places: Sequence[tuple[int, int]]

    @classmethod
    def of(
        cls, facts: Facts, at: float, chain: Sequence[int], held: Sequence[tuple[str, int]], reused: int
    ) -> Doubt | None:
        """None where no other replica was thought to hold a block that had to be computed."""
        first, end = max(reused, facts.matched) // facts.block, min(facts.best // facts.block, len(chain))
        if end <= first:
            return None
        blocks = sorted({first + (end - first) * n // PLACES for n in range(PLACES)})
        others = [(replica, tokens) for replica, tokens in held if tokens > first * facts.block]
        return cls(facts, at, others, [(block * facts.block, chain[block]) for block in blocks])

    def settled(self, past: Past) -> Attribution | None:
        """The causes by what is known now, if that has changed."""
        best = max((self._held(past, replica_id, thought) for replica_id, thought in self.holders), default=0)
        if best >= self.facts.best:
            return None
        return attribute(replace(self.facts, best=best, not_held=max(self.facts.best, self.facts.not_held)))

    def _held(self, past: Past, replica_id: str, thought: int) -> int:
        for tokens, key in self.places:
            dropped = past.dropped_at(replica_id, key)
            if tokens < thought and dropped is not None and dropped.at <= self.at < dropped.told:
                return tokens
        return thought
