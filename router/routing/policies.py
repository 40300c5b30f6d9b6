"""The policies. To add one: write its type here and name it in POLICIES."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import xxhash

from router.routing.cost import Weights, prices
from router.routing.types import Ask, Candidate, Decision, Policy

TOLD = 16
"""Candidates whose costs a decision tells."""


class Prefix:
    """Least predicted time, of this request and of what its session will meet later: see routing.cost.

    A replica that holds the prompt is left exactly when waiting for it is predicted to cost more than recomputing
    elsewhere. Equal costs go to the least recently chosen replica.

    Use it for agents and chats, whose prompts grow, and for everything that comes along with them. It is the default.
    """

    name = "prefix"
    uses_cache = True

    def __init__(self, weights: Weights | None = None) -> None:
        self.weights = weights or Weights()

    def select(self, ask: Ask, candidates: Sequence[Candidate]) -> Decision:
        """Cheapest first."""
        priced = prices(ask, candidates, self.weights)
        priced.sort()
        order = [candidates[price[2]] for price in priced]
        held = [candidate.held_tokens for candidate in candidates]
        best, mine = min(max(held), ask.hittable_tokens), order[0].cached(ask)
        if len(candidates) == 1:
            reason = "only"
        elif best == 0:
            reason = "cold"
        elif mine < best:
            reason = "spilled"
        else:
            reason = "prefix" if min(held) < best else "shared"
        return Decision(order, reason, priced[:TOLD])


class RoundRobin:
    """Each replica in turn, whatever the request: the baseline every balancer offers."""

    name = "round_robin"
    uses_cache = False

    def __init__(self) -> None:
        self._next = 0

    def select(self, ask: Ask, candidates: Sequence[Candidate]) -> Decision:
        """The next in turn first, the others behind it in turn."""
        first = self._next % len(candidates)
        self._next += 1
        return Decision([*candidates[first:], *candidates[:first]], self.name)


class Random:
    """A random replica: needs no state, so that many routers never move in step."""

    name = "random"
    uses_cache = False

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)

    def select(self, ask: Ask, candidates: Sequence[Candidate]) -> Decision:
        """A random order."""
        return Decision(self._random.sample(candidates, len(candidates)), self.name)


class LeastLoad:
    """Fewest running sequences, then least queued prefill, then least recently chosen. Blind to the cache.

    Use it for prompts that share nothing.
    """

    name = "least_load"
    uses_cache = False

    def select(self, ask: Ask, candidates: Sequence[Candidate]) -> Decision:
        """Least loaded first."""

        def load(candidate: Candidate) -> tuple[int, int, int]:
            its = candidate.replica.load
            return its.sequences, its.queued_tokens, its.turn

        return Decision(sorted(candidates, key=load), self.name)


class Session:
    """Rendezvous hash of the session key: the same session, the same replica, with no state to share.

    When a replica comes or goes only its own sessions move. Blind to load and cache; a request without a session
    key goes by least load. Use it where clients send a session header and sessions are alike in size.
    """

    name = "session"
    uses_cache = False

    def __init__(self) -> None:
        self._without = LeastLoad()

    def select(self, ask: Ask, candidates: Sequence[Candidate]) -> Decision:
        """Highest hash of (session, replica id) first."""
        if ask.session is None:
            return self._without.select(ask, candidates)
        seed = xxhash.xxh3_64_intdigest(ask.session.encode())

        def weight(candidate: Candidate) -> int:
            return xxhash.xxh3_64_intdigest(candidate.replica.id.encode(), seed)

        return Decision(sorted(candidates, key=weight, reverse=True), self.name)


POLICIES: dict[str, Callable[[], Policy]] = {
    policy.name: policy for policy in (Prefix, RoundRobin, Random, LeastLoad, Session)
}
