"""Placing requests: what is known of a request's past and future, the policy's choice, and what is learnt from answers.

past   = placement.look(prompt facts)           whose step is it?            changes nothing (or `glance`)
choice = placement.decide(past, candidates)     where does it go?            changes nothing
sent   = placement.sent(past, candidate)        books: load, session         at each dispatch
sent.first_byte(now), sent.ended(now)           what it took                 exactly once each, `ended` always
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from router.blocks import TOKEN_BYTES
from router.fleet.load import Ticket
from router.fleet.pace import FleetPace
from router.fleet.replica import Replica
from router.fleet.speed import FleetSpeed, effort
from router.routing.cost import ANSWER_WEIGHT
from router.routing.lineage import NEW, Found, Lineage, Session
from router.routing.popularity import HotPrefix, Popularity
from router.routing.types import Ask, Candidate, Decision, Policy


class Facts(msgspec.Struct, frozen=True, gc=False):
    """What placement has to know of a request. `ids`: packed token ids of an exact prompt, None if unknown.

    `name`: the session's name if the client gives one; `hint`: anything weaker that groups requests (a user's name).
    """

    chain: Sequence[int] = ()
    ids: bytes | None = None
    block_size: int = 16
    tokens: int = 0
    sequences: int = 1
    streamed: bool = True
    name: str | None = None
    hint: str | None = None
    tenant: str = ""
    model: str = ""
    salt: str = ""

    def prefix(self, tokens: int) -> HotPrefix | None:
        """The prompt's beginning, to warm another replica with; None if its ids are unknown."""
        return None if self.ids is None else HotPrefix(self.model, self.salt, self.ids[: tokens * TOKEN_BYTES])

    @property
    def hittable_tokens(self) -> int:
        """The most an engine can reuse: whole blocks, and at least one token is always computed."""
        return max(0, (self.tokens - 1) // self.block_size * self.block_size)


class Past(msgspec.Struct, gc=False):
    """A request's place among those before it. `shared_tokens`, `kind`: see lineage and habits."""

    facts: Facts
    found: Found
    shared_tokens: int
    kind: int
    ask: Ask
    session: Session | None = None
    """The session it became a step of, once it was sent."""


class Placement:
    """One router's memory of sessions, prefixes and speeds, and its policy. `clock`: seconds, steady."""

    def __init__(
        self, policy: Policy, clock: Callable[[], float], *, max_sessions: int = 100_000, prefix: str = "s"
    ) -> None:
        self.policy = policy
        self.clock = clock
        self.lineage = Lineage(clock, max_sessions, prefix)
        self.popularity = Popularity()
        self.speed = FleetSpeed()
        self.pace = FleetPace()
        self.answer_s = 1.0
        self.answer_tokens = 100.0

    def look(self, facts: Facts, most_held: int) -> Past:
        """What is known before the decision. `most_held`: leading tokens that the best replica holds."""
        now, lineage = self.clock(), self.lineage
        habits = lineage.habits
        found = lineage.find(facts.chain, facts.ids, facts.block_size, facts.name, facts.tenant)
        session = found.session
        if session is not None:
            shared, kind = session.shared_tokens, session.kind
        else:
            shared = min(most_held, facts.hittable_tokens)
            kind = habits.kind(facts.tokens, shared)
        key = self._prefix(facts, shared)
        steps_left = habits.steps_left(kind)
        ask = Ask(
            prompt_tokens=facts.tokens,
            hittable_tokens=facts.hittable_tokens,
            session=facts.name or facts.hint,
            home=session.home if session is not None else "",
            shared_tokens=shared,
            copy_users=self.popularity.expected(key, now) if key else 1.0,
            steps_left=steps_left,
            step_tokens=habits.growth(kind),
            kept_tokens=lineage.expected_tokens(session, kind, facts.tokens, shared),
            own_warm=session.warm if session is not None else 0.0,
            base_s=self.speed.base_s,
            rate=self.speed.rate,
            answer_s=self.answer_s,
            company_s=self.pace.wait(1.0) + 0.5 * ANSWER_WEIGHT * self.answer_tokens * self.pace.token_s,
            now=now,
        )
        return Past(facts, found, shared, kind, ask)

    def glance(self, facts: Facts) -> Past:
        """`look` for a policy that does not use what is known of prompts."""
        session = facts.name or facts.hint
        return Past(facts, NEW, 0, 0, Ask(facts.tokens, session=session, now=self.clock()))

    def decide(self, past: Past, candidates: Sequence[Candidate], policy: Policy | None = None) -> Decision:
        """The policy's choice, or that of another one."""
        self.refresh([candidate.replica for candidate in candidates])
        return (policy or self.policy).select(past.ask, candidates)

    def refresh(self, replicas: Iterable[Replica]) -> None:
        """Bring what time and sessions changed into the replicas' loads."""
        warm, now = self.lineage.warm_tokens, self.clock()
        for replica in replicas:
            load = replica.load
            if load.due:
                load.settle(now)
            load.warm_tokens = warm.get(replica.id, 0.0)
            head, speed = load.head, replica.speed
            if head is not None and now > head.due:
                waited = now - head.at - speed.slowness * self.pace.wait(head.among)
                speed.look(self.speed, now, head.ahead, max(0.0, waited))
            elif speed.slowness != 1.0:
                speed.look(self.speed, now)

    def sent(self, past: Past, candidate: Candidate) -> Sent:
        """The request goes to `candidate`: counted there at once."""
        return Sent(self, past, candidate)

    def _prefix(self, facts: Facts, shared_tokens: int) -> int:
        depth = shared_tokens // facts.block_size
        return facts.chain[depth - 1] if 0 < depth <= len(facts.chain) else 0


class Sent:
    """One dispatch under way."""

    __slots__ = ("_first", "_placement", "_sequences", "_streamed", "_ticket", "replica", "session")

    def __init__(self, placement: Placement, past: Past, candidate: Candidate) -> None:
        facts = past.facts
        now = placement.clock()
        self._placement = placement
        self.replica: Replica = candidate.replica
        load = self.replica.load
        cached = candidate.cached(past.ask)
        own = int(effort(max(0, facts.tokens - cached), cached))
        slowness, speed = self.replica.speed.slowness, placement.speed
        ahead = load.left(now, speed.rate / slowness) + own
        due = now + slowness * (speed.predict(ahead) + placement.pace.wait(load.context))
        self._first = 0.0
        # An answer that is not streamed has its first byte at its end: nothing tells when its prompt was done.
        self._streamed = facts.streamed
        self._sequences = max(1, facts.sequences)
        context = facts.tokens * facts.sequences
        self._ticket: Ticket = load.begin(
            own, facts.sequences, now, context=context, ahead=ahead, due=due, told=facts.streamed
        )
        self.session: Session | None = None
        if past.session is not None:
            self.session = past.session  # sent before, to a replica that failed
            placement.lineage.moved(past.session, self.replica.id)
        elif facts.chain:
            if past.found.session is None and (key := placement._prefix(facts, past.shared_tokens)):
                placement.popularity.note(key, now, facts.prefix(past.shared_tokens))
            self.session = placement.lineage.sent(
                past.found,
                self.replica.id,
                facts.chain,
                facts.ids,
                facts.block_size,
                facts.tokens,
                past.shared_tokens,
                facts.name,
                facts.tenant,
                facts.model,
            )
            past.session = self.session

    def first_byte(self, now: float, *, answered: bool = True) -> None:
        """The first byte of the answer's body is here; `answered` if it is an answer and no refusal."""
        ticket = self._ticket
        ticket.first_byte(now)
        if not self._streamed:
            return
        self._first = now
        if answered and ticket.ahead:
            speed, placement = self.replica.speed, self._placement
            seconds = now - ticket.at - speed.slowness * placement.pace.wait(ticket.among)
            speed.observe(placement.speed, ticket.ahead, seconds, now)

    def ended(self, now: float, tokens: int = 0) -> None:
        """Nothing of it is there any more. `tokens`: of its answers, if they are complete and that is known."""
        first, placement = self._first, self._placement
        if first:
            placement.answer_s += 0.01 * (now - first - placement.answer_s)
            tokens //= self._sequences
            if tokens and now > first:
                placement.answer_tokens += 0.01 * (tokens - placement.answer_tokens)
                area, computed = self._ticket.beside(now)
                seconds = (now - first) / self.replica.speed.slowness - computed / placement.speed.rate
                placement.pace.observe(tokens, seconds, area / (now - first))
        self._ticket.end(now)
        if self.session is not None:
            self._placement.lineage.ended(self.session)
            self.session = None
