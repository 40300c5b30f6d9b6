"""One request on its way: the decision, what each replica tried is sent and told, and the books on every try."""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import getrandbits
from time import monotonic
from typing import TYPE_CHECKING

import msgspec

from router.api.errors import ApiError
from router.api.keys import Grant
from router.api.state import needed
from router.api.turn import Turn
from router.engines import OVERLOAD
from router.fleet.feeds import NOTHING
from router.fleet.judge import Judge
from router.fleet.replica import Health, Replica
from router.fleet.room import with_room
from router.http.errors import Headers, UpstreamError
from router.http.message import Request
from router.index.types import Match
from router.observe.observer import Dispatch, Seen
from router.observe.records import Offer, Passed
from router.prompt.forward_ids import NotForwardable, supports, with_token_ids
from router.prompt.report_mode import asks_report, without_report
from router.prompt.requests import ApiRequest, Endpoint
from router.prompt.stage import Prompt, Took
from router.proxy.plan import Attempt, Target
from router.proxy.watch import Usage
from router.routing.placement import Facts, Sent
from router.routing.ramp import ramped
from router.routing.types import Candidate, Decision, Policy

if TYPE_CHECKING:
    from router.api.route import Route
    from router.observe.tracing import Traced

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{8,128}")


class Known(msgspec.Struct, frozen=True, gc=False):
    """What is known of the prompt as one kind of engine sees it: the prompt, and who holds how much of it."""

    prompt: Prompt
    matches: Mapping[str, Match]


class Routed:
    """One request's plan (see proxy.forward.Plan): the decision, and the books kept on each try.

    Nothing outlives it that refers to it: each request would be a cycle for the collector to find.
    """

    __slots__ = (
        "_candidates",
        "_grant",
        "_judge",
        "_left",
        "_matched",
        "_matches",
        "_read",
        "_reason",
        "_request",
        "_route",
        "_sent",
        "_sent_before",
        "_took",
        "_traced",
        "_turn",
        "decision",
        "known",
        "parsed",
        "past",
        "request_id",
        "seen",
    )

    def __init__(
        self,
        route: Route,
        request: Request,
        parsed: ApiRequest,
        replicas: list[Replica],
        known: Mapping[str, Known],
        grant: Grant,
        took: Took,
        turn: Turn,
        *,
        before: Routed | None = None,
        policy: Policy | None = None,
        traced: Traced | None = None,
    ) -> None:
        """`before`: the same request's when it was forwarded the last time. `policy`: asked in place of the route's."""
        route.fleet.listen()
        self.request_id: str = request_id(request) if before is None else before.request_id
        self.seen: Seen | None = None if before is None else before.seen
        self.known = known
        self._route = route
        self._request = request
        self.parsed = parsed
        self._grant = grant
        self._took = took
        self._turn = turn
        self._traced = traced
        self._judge = Judge(route.outliers)
        self._reason = ""
        self._sent: Sent | None = None
        self._sent_before = False
        first = next(iter(known.values())).prompt
        self._read = first.read
        self._matches: dict[str, Match] = {}
        self._matched: dict[str, int] = {}
        if self._read:
            self._candidates = self._look_up(replicas)
            held = max([candidate.held_tokens for candidate in self._candidates.values()])
            self.past = route.placement.look(self._facts(first), held)
        else:
            self._candidates = {replica.id: Candidate(replica) for replica in replicas}
            self.past = route.placement.glance(self._facts(first))
        able = with_room(replicas, monotonic()) if route.fleet.bounded else replicas
        self.decision = self._decide([self._candidates[replica.id] for replica in able], policy)
        self._left = ramped(self.decision.order) if route.fleet.ramping else self.decision.order
        if len(able) < len(replicas) and self.decision.reason != "sticky":
            full = [candidate for candidate in self._candidates.values() if candidate.replica not in able]
            self._left = [*self._left, *full]

    # the decision

    def _look_up(self, replicas: list[Replica]) -> dict[str, Candidate]:
        found: dict[str, Candidate] = {}
        held, known, matches, matched = self._route.feeds.held, self.known, self._matches, self._matched
        for replica in replicas:
            assert replica.info is not None
            its = known[replica.info.kind]
            prompt = its.prompt
            size, name = prompt.block_size, replica.id
            matches[name] = match = held(replica, its.matches, prompt.exact)
            tokens = match.blocks * size
            matched[name] = min(tokens, prompt.hittable_blocks * size) if tokens else 0
            found[name] = Candidate(replica, tokens, match.lower * size)
        return found

    def _facts(self, prompt: Prompt) -> Facts:
        """Lineage is followed in the chain of the first engine kind: a session's own steps agree in any."""
        parsed, grant, naming = self.parsed, self._grant, self._route.naming
        return Facts(
            prompt.chain,
            prompt.ids,
            prompt.block_size,
            prompt.tokens,
            parsed.n * max(1, len(parsed.prompts)),
            parsed.stream,
            naming.name(self._request, parsed),
            grant.session(naming.hint(parsed)),
            grant.tenant,
            parsed.model or "",
            parsed.salt,
        )

    def _decide(self, able: list[Candidate], policy: Policy | None) -> Decision:
        """The order of candidates. Raises ApiError when the replica that has the request's state is gone."""
        route = self._route
        home = route.sticky.home(needed(self._request.path, self.parsed, self._grant.tenant))
        if home is not None:
            keeper = self._candidates.get(home)
            if keeper is None:
                message = f"The replica that keeps this state ({home}) is not available."
                raise ApiError(503, message, code="state_unavailable", retry_after_s=1)
            return Decision([keeper], "sticky")
        if route.pools.divided:
            able = list(route.pools.select(self.past, able))
        return route.placement.decide(self.past, able, policy)

    def offers(self) -> list[Offer]:
        """The candidates in the order of the decision, as they are now."""
        prices, matches, matched = self.decision.prices, self._matches, self._matched
        made: list[Offer] = []
        for place, candidate in enumerate(self.decision.order):
            name, info = candidate.replica.id, candidate.replica.info
            assert info is not None
            match, size = matches[name], self.known[info.kind].prompt.block_size
            price = prices[place] if place < len(prices) else None
            made.append(Offer(name, matched[name], match.predicted * size, match.lower * size, price))
        return made

    # what a replica is sent

    def next_target(self, excluded: set[str], last_error: UpstreamError | None) -> Target | None:
        """The next in the decision's order that is still part of the fleet, those first that are still well."""
        route, replica = self._route, None
        for candidate in self._left:
            its = candidate.replica
            if its.id in excluded or route.fleet.get(its.id) is not its:
                continue
            if its.health is Health.UP and its.breaker.admits:
                replica = its
                break
            replica = replica or its
        if replica is None:
            return None
        assert replica.info is not None
        kind, parsed, request = replica.info.kind, self.parsed, self._request
        self._reason = self.decision.reason if last_error is None else "retry"
        headers = [] if replica.rank is None else [(b"x-data-parallel-rank", b"%d" % replica.rank)]
        if self._traced is not None:
            headers += self._traced.sending(replica.id)
        body = self._body_with_ids(replica) if route.send_token_ids else None
        if kind == "vllm" and asks_report(parsed.body):
            body = without_report(request.body if body is None else body)
        asked = wants_comment(request) and self._read and not self._grant.hides_matches
        closing = self._closing if asked else None
        return Target(replica.id, route.origin_of(replica), headers, body, OVERLOAD[kind], closing)

    def _closing(self, usage: Usage | None) -> bytes:
        assert self.seen is not None
        return b": prefix-router " + msgspec.json.encode(self._route.observer.receipt(self.seen, usage)) + b"\n\n"

    def _body_with_ids(self, replica: Replica) -> bytes | None:
        prompt, info = self._prompt(replica), replica.info
        if not replica.verified or replica.distrust or info is None:
            return None
        if not prompt.exact or not prompt.ids or self.parsed.endpoint is not Endpoint.CHAT:
            return None
        if not supports(info.kind, info.version):
            return None
        try:
            return with_token_ids(self._request.body, prompt.ids, info.kind)
        except NotForwardable:
            return None

    # the books

    def on_send(self, target: Target) -> None:
        """Credit the dispatch at once, and expect the replica to hold the prompt."""
        route, candidate = self._route, self._candidates[target.id]
        replica = candidate.replica
        self._judge.sent(replica)
        self._sent = route.placement.sent(self.past, candidate)
        self._turn.landed()
        route.fleet.chosen(replica)
        route.metrics.decisions.labels(target.id, self._reason).inc()
        if self._read:
            self._expect(replica)
        elif not self._sent_before:
            self._sent_before = True
            self._took.lap("decide")

    def _expect(self, replica: Replica) -> None:
        route, prompt, metrics = self._route, self._prompt(replica), self._route.metrics
        route.feeds.expect(replica, prompt.chain, self._matches[replica.id], prompt.exact)
        dispatch = self._dispatch(replica)
        if self.seen is None:
            self._took.lap("decide")
            self.seen = route.observer.sent(dispatch)
            self._took.lap("observe")
        else:
            self.seen.moved(dispatch)
        metrics.prompt_tokens.labels(replica.id).inc(prompt.tokens)
        metrics.matched_tokens.labels(replica.id).inc(self._matched[replica.id])
        if not prompt.exact and prompt.reason:
            metrics.approximate.labels(prompt.reason).inc()

    def _dispatch(self, replica: Replica) -> Dispatch:
        route, prompt, past = self._route, self._prompt(replica), self.past
        session = past.session
        return Dispatch(
            request=self.parsed,
            path=self._request.path,
            request_id=self.request_id,
            tenant=self._grant.tenant,
            model=route.fleet.canonical_model(self.parsed.model or ""),
            prompt=prompt,
            replica=replica,
            entry=route.feeds.entry(replica, prompt.exact),
            reason=self._reason,
            matched=self._matched[replica.id],
            best=max(self._matched.values()),
            followed=route.feeds.followed(replica, prompt.exact),
            offers=self.offers(),
            session=None if session is None else session.id,
            named=session is not None and session.named,
            parent=None if session is None else session.parent,
            fresh=past.found.session is None,
            seconds=self._took.seconds,
        )

    def response_headers(self, target: Target) -> Headers:
        """The receipt."""
        prompt = self._prompt(self._candidates[target.id].replica)
        receipt = [
            (b"x-prefix-router-replica", target.id.encode()),
            (b"x-prefix-router-reason", self._reason.encode()),
        ]
        if not prompt.read:
            receipt.append((b"x-prefix-router-tokens", b"unread"))
        elif self.parsed.endpoint is not Endpoint.OTHER:
            distrust = self._candidates[target.id].replica.distrust
            tokens = "approximate; token-mismatch" if prompt.exact and distrust else prompt.told
            receipt += [
                (b"x-prefix-router-matched-tokens", b"%d" % self._matched[target.id]),
                (b"x-prefix-router-prompt-tokens", b"%d" % prompt.tokens),
                (b"x-prefix-router-tokens", tokens.encode()),
            ]
        if self.seen is not None:
            receipt += self.seen.headers()
        elif not self._read:
            receipt.append((b"x-prefix-router-request", self.request_id.encode("latin-1")))
        return self._grant.visible(receipt)

    def on_first_byte(self, target: Target, status: int, seconds: float) -> None:
        """The prompt is prefilled."""
        if self._sent is not None:
            self._sent.first_byte(monotonic(), answered=status < 400)
            self._route.fleet.changed()
        replica = self._candidates[target.id].replica
        self._judge.answered(replica, status)
        if status < 400 and self._read:
            prompt = self._prompt(replica)
            self._route.feeds.answered(replica, prompt.chain, prompt.block_size, prompt.exact)

    async def alive(self, target: Target) -> bool:
        """Asked after a lost connection, and when a second engine failed over the request."""
        return await self._route.alive(self._candidates[target.id].replica)

    def on_end(self, target: Target, attempt: Attempt) -> None:
        """Whatever happened, the work is no longer there."""
        if self._traced is not None:
            self._traced.sent(attempt)
        if self._sent is not None:
            self._sent.ended(monotonic(), attempt.tokens)
            self._sent = None
            self._route.fleet.changed()
            self._route.turns.admission.pump()
        replica = self._candidates[target.id].replica
        full = attempt.status == target.overload
        self._judge.ended(replica, attempt.error, attempt.status, attempt.message, full=full)

    # when it is over

    def expected(self, replica_id: str) -> tuple[Replica, Prompt, Match]:
        """What was expected of a candidate: the prompt, and what its own events said it held of it."""
        replica = self._candidates[replica_id].replica
        assert replica.info is not None
        known = self.known[replica.info.kind]
        return replica, known.prompt, known.matches.get(replica_id, NOTHING)

    def passed(self) -> Passed | None:
        """What is to be remembered of a request whose prompt was not read; None for one that was."""
        if self._read:
            return None
        model = self._route.fleet.canonical_model(self.parsed.model or "")
        seconds = self._took.seconds
        return Passed(self.request_id, self._request.path, model, self._grant.tenant, self._reason, seconds)

    def unsent(self) -> Seen:
        """For a request that no replica was left to try for."""
        return self._route.observer.unsent(self._dispatch(self.decision.order[0].replica))

    def _prompt(self, replica: Replica) -> Prompt:
        assert replica.info is not None
        return self.known[replica.info.kind].prompt


def request_id(request: Request) -> str:
    """The client's x-request-id where it is one that can be looked up, else one made here."""
    given = request.header(b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode("ascii")
    return f"{getrandbits(64):016x}"


def wants_comment(request: Request) -> bool:
    """Whether the client asked for the receipt at the end of a stream, as an SSE comment."""
    return request.header(b"x-prefix-router-receipt") == b"comment"
