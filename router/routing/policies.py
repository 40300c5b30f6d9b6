"""The policies. To add one: write its type here and name it in POLICIES."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import xxhash

from router.routing.types import Ask, Candidate, Decision, Policy


class Prefix:
    """Least predicted work before this request's first token, in uncached prefill tokens.

        cost = uncached prompt tokens already queued there
             + recompute_weight x uncached tokens of this prompt
             + decode_cost x sequences running there

    All three are what the newcomer waits for: the engine computes queued prompts first, then ours, and every running
    sequence takes its share of each step. Recomputing weighs more than waiting because it also delays whoever comes
    next. One currency means no thresholds: a replica that holds the prompt is left when its queue is longer than
    what recomputing elsewhere costs. Equal costs go to the least recently chosen replica.

    Use it for agents and chats, whose prompts grow. It is the default.
    """

    name = "prefix"

    def __init__(self, recompute_weight: float = 1.5, decode_cost: float = 64.0) -> None:
        self._recompute_weight = recompute_weight
        self._decode_cost = decode_cost

    def cost(self, ask: Ask, candidate: Candidate) -> float:
        """The predicted work, in tokens."""
        load = candidate.replica.load
        uncached = ask.prompt_tokens - candidate.cached(ask)
        return load.queued_tokens + self._recompute_weight * uncached + self._decode_cost * load.sequences

    def select(self, ask: Ask, candidates: Sequence[Candidate]) -> Decision:
        """Cheapest first."""
        scored = sorted(
            (
                (self.cost(ask, candidate), candidate.replica.load.turn, place)
                for place, candidate in enumerate(candidates)
            )
        )
        order = [candidates[place] for _, _, place in scored]
        held = [candidate.cached(ask) for candidate in candidates]
        best, mine = max(held), order[0].cached(ask)
        if len(candidates) == 1:
            reason = "only"
        elif best == 0:
            reason = "cold"
        elif mine < best:
            reason = "spilled"
        else:
            reason = "prefix" if min(held) < best else "shared"
        return Decision(order, reason, [cost for cost, _, _ in scored])


class RoundRobin:
    """Each replica in turn, whatever the request: the baseline every balancer offers."""

    name = "round_robin"

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
