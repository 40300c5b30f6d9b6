"""Slow start: replicas that are new or back take a growing share."""

from __future__ import annotations

from collections.abc import Sequence

from router.routing.types import Candidate


def ramped(order: Sequence[Candidate]) -> list[Candidate]:
    """The order of a decision, with those at the end that have their share for now.

    The share of a replica with weight w < 1 is w times the sequences that the busiest of those with weight 1 has, and
    at least one sequence.
    """
    busiest = max((c.replica.load.sequences for c in order if c.replica.weight == 1.0), default=0)
    free: list[Candidate] = []
    taken: list[Candidate] = []
    for candidate in order:
        replica = candidate.replica
        over = replica.weight < 1.0 and replica.load.sequences >= max(1.0, replica.weight * busiest)
        (taken if over else free).append(candidate)
    return free + taken
