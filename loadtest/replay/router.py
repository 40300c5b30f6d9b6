"""The router of a replay: a real one's parts (fleet, index, overlay, policy, load), wired as in router.api.route.

One engine kind, exact tokens, KV events from every replica; no tokenizer, no sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from router.engines import EngineInfo
from router.fleet.feeds import Feeds
from router.fleet.fleet import Fleet
from router.fleet.replica import Feed, Health, Replica
from router.index.memory import MemoryIndex
from router.index.overlay import PredictedOverlay
from router.routing.placement import Facts, Placement, Sent
from router.routing.types import Ask, Candidate, Policy

MODEL = "replay"
INDEX_BLOCKS = 1 << 40
"""No bound: a replay compares policies, not index sizes."""
NO_BLOCKS = 1


class ChainAsk(Ask, frozen=True):
    """An Ask that carries the prompt's full blocks, for policies that keep a tree of their own."""

    chain: Sequence[int] = ()
    block: int = 1


@runtime_checkable
class Observer(Protocol):
    """What a policy may implement besides Policy to learn from answers; both are called when the router sees them."""

    def first_byte(self, ask: Ask, replica: Replica, seconds: float) -> None:
        """The first token came `seconds` after the request was sent."""
        ...

    def ended(self, ask: Ask, replica: Replica, chain: Sequence[int], seconds: float) -> None:
        """The answer is complete. chain: the full blocks of prompt and answer."""
        ...


class Routed:
    """One dispatch: where to, what the router thought is cached there, and its books."""

    __slots__ = ("ask", "matched", "place", "reason", "sent", "sent_at")

    def __init__(self, ask: Ask, place: int, matched: int, sent: Sent, reason: str, sent_at: float) -> None:
        self.ask = ask
        self.place = place
        self.matched = matched
        self.sent = sent
        self.reason = reason
        self.sent_at = sent_at


class VirtualRouter:
    """`clock`: virtual seconds. `session` of an ask is what a client's header said."""

    def __init__(
        self,
        policy: Policy,
        replicas: int,
        block: int,
        clock: Callable[[], float],
        ttl_s: float,
        kv_blocks: int | None = None,
    ) -> None:
        self.placement = Placement(policy, clock)
        self.observer = policy if isinstance(policy, Observer) else None
        self.index = MemoryIndex(INDEX_BLOCKS, PredictedOverlay(ttl_s, 1 << 24, clock), shards=1)
        self.fleet = Fleet()
        self.feeds = Feeds(self.index, shadow_blocks=NO_BLOCKS)
        self._block = block
        info = EngineInfo("vllm", (MODEL,), block_size=block, kv_tokens=kv_blocks and kv_blocks * block)
        for number in range(replicas):
            name = f"r{number}"
            self.fleet.add(
                Replica(name, f"http://{name}", "vllm", info=info, health=Health.UP, reason="", feed=Feed.EVENTS)
            )
            self.index.add_replica(name)
        self.replicas = list(self.fleet)
        self.places = {replica.id: place for place, replica in enumerate(self.replicas)}
        # Candidates are immutable and most replicas hold nothing of most prompts.
        self._empty = [Candidate(replica) for replica in self.replicas]

    def route(self, chain: Sequence[int], tokens: int, session: str | None, now: float) -> Routed:
        """Decide and credit the dispatch, as Route.__call__ and Routed.on_send do."""
        block, feeds = self._block, self.feeds
        matches = self.index.match(chain)
        candidates = self._empty
        most = 0
        if matches:
            candidates = candidates.copy()
            for name, match in matches.items():
                place = self.places[name]
                held = match.blocks * block
                if held > most:
                    most = held
                candidates[place] = Candidate(self.replicas[place], held)
        past = self.placement.look(Facts(chain, None, block, tokens, name=session), most)
        if self.observer is not None:
            past.ask = ChainAsk(tokens, past.ask.hittable_tokens, session, chain=chain, block=block)
        decision = self.placement.decide(past, candidates)
        best = decision.order[0]
        replica = best.replica
        matched = best.cached(past.ask)
        sent = self.placement.sent(past, best)
        self.fleet.chosen(replica)
        feeds.expect(replica, chain, feeds.held(replica, matches, True), True)
        return Routed(past.ask, self.places[replica.id], matched, sent, decision.reason, now)

    def first_byte(self, routed: Routed, now: float) -> None:
        """The first answer byte passed through."""
        routed.sent.first_byte(now)
        if self.observer is not None:
            self.observer.first_byte(routed.ask, self.replicas[routed.place], now - routed.sent_at)

    def ended(self, routed: Routed, chain: Sequence[int], now: float, tokens: int = 0) -> None:
        """The answer of `tokens` is complete; `chain`: full blocks of prompt and answer."""
        routed.sent.ended(now, tokens)
        if self.observer is not None:
            self.observer.ended(routed.ask, self.replicas[routed.place], chain, now - routed.sent_at)
