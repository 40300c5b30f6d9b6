"""The life of a routed request: tokens, lookup, decision, forwarding, and what is learnt from the answer."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Container, Mapping
from copy import copy
from functools import partial
from random import getrandbits
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from router.api.errors import ApiError, unknown_model
from router.api.keys import OPEN, Grant
from router.api.sessions import Naming
from router.api.state import made, needed
from router.api.turn import Turn, Turns
from router.engines import OVERLOAD
from router.fleet.feeds import NOTHING, Feeds
from router.fleet.fleet import Fleet
from router.fleet.judge import Judge
from router.fleet.outliers import Outliers
from router.fleet.replica import Health, Replica
from router.fleet.room import with_room
from router.http.errors import Headers, UpstreamError
from router.http.message import Request
from router.http.response import Response
from router.http.upstream import Origin
from router.index.types import Match
from router.observe.metrics import Metrics
from router.observe.observer import Dispatch, Observer, Seen
from router.observe.records import Offer, Passed
from router.prompt.forward_ids import NotForwardable, supports, with_token_ids
from router.prompt.report_mode import asks_report, without_report
from router.prompt.requests import ApiRequest, Endpoint
from router.prompt.stage import Prompt, PromptStage, Took, UnknownModel, unread
from router.proxy.forward import Forwarder
from router.proxy.plan import Attempt, Outcome, Target
from router.proxy.watch import Usage
from router.routing.placement import Facts, Placement, Sent
from router.routing.pools import Pools
from router.routing.ramp import ramped
from router.routing.sticky import StickyTable
from router.routing.types import Candidate, Decision, Policy

if TYPE_CHECKING:
    from router.observe.tracing import Traced, Tracing

NEEDS_MODEL = frozenset(
    {Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES, Endpoint.EMBEDDINGS}
)
GENERATING = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES, Endpoint.GENERATE})
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{8,128}")
NO_PROMPT = Prompt(tokens=0, chain=[], block_size=1, exact=True)


class _Known(msgspec.Struct, frozen=True):
    """What is known of the prompt as one kind of engine sees it: the prompt, and who holds how much of it."""

    prompt: Prompt
    matches: Mapping[str, Match]


class Route:
    """Routes requests over a fleet.

    `origin_of` gives a replica's address, `outliers` is told how requests end, `alive` asks whether one still answers,
    `turns` makes requests wait for room, `answered` is told what came of a request whose prompt and prediction it gets.
    `send_token_ids`: with chat requests, to replicas known to agree with ours. `read_always`: prompts are read under
    policies that don't look at caches, too.
    """

    def __init__(
        self,
        fleet: Fleet,
        feeds: Feeds,
        prompts: PromptStage,
        placement: Placement,
        forwarder: Forwarder,
        metrics: Metrics,
        *,
        naming: Naming,
        pools: Pools,
        origin_of: Callable[[Replica], Origin],
        outliers: Outliers,
        alive: Callable[[Replica], Awaitable[bool]],
        turns: Turns,
        answered: Callable[[Replica, Prompt, Match, Outcome], None],
        observer: Observer,
        send_token_ids: bool = False,
        read_always: bool = False,
    ) -> None:
        self.fleet = fleet
        self.feeds = feeds
        self.prompts = prompts
        self.placement = placement
        self.sticky = StickyTable()
        self.forwarder = forwarder
        self.metrics = metrics
        self.origin_of = origin_of
        self.outliers = outliers
        self.alive = alive
        self.turns = turns
        self.answered = answered
        self.observer = observer
        self.send_token_ids = send_token_ids
        self.read_always = read_always
        self.naming = naming
        self.pools = pools
        self.tracing: Tracing | None = None
        """Set where requests are traced."""

    @property
    def reads_prompts(self) -> bool:
        """Whether prompts are tokenized and looked up; else they are passed on unread."""
        return self.placement.policy.uses_cache or self.read_always or self.send_token_ids or self.pools.divided

    async def __call__(
        self, request: Request, response: Response, parsed: ApiRequest, took: Took, grant: Grant = OPEN
    ) -> None:
        """Route and answer one request. Raises ApiError for one that no replica can serve, or its key doesn't cover.

        `took`: the time of each stage so far.
        """
        if self.tracing is None:
            await self._serve(request, response, parsed, took, grant, None)
        else:
            with self.tracing.request(request, took) as traced:
                await self._serve(request, response, parsed, took, grant, traced)

    async def _serve(
        self,
        request: Request,
        response: Response,
        parsed: ApiRequest,
        took: Took,
        grant: Grant,
        traced: Traced | None,
    ) -> None:
        replicas = self._able(parsed)
        assert replicas[0].info is not None
        await self.prompts.check_ids(parsed, parsed.model or replicas[0].info.models[0])
        known = await self._know(parsed, replicas, took, read=self.reads_prompts)
        tokens = max(each.prompt.tokens for each in known.values())
        grant.charge(tokens)
        turn = self.turns.turn(request, parsed, grant, tokens, replicas)
        before: _Routed | None = None
        try:
            while True:
                if await turn.wait(replicas):
                    for kind, each in known.items():  # time has passed: caches and queues have changed
                        if each.prompt.read:
                            known[kind] = _Known(each.prompt, await self.feeds.lookup(each.prompt.chain))
                    replicas = self._able(parsed, known)
                    took.lap("queue")
                routed = _Routed(self, request, parsed, replicas, known, grant, took, turn, traced=traced)
                if before is not None:
                    routed.seen, routed.request_id = before.seen, before.request_id
                took.lap("decide")
                outcome = await self.forwarder.forward(request, response, routed, within_s=turn.left_s, hold=turn.hold)
                if not turn.again(outcome):
                    break
                before = routed
                replicas = self._able(parsed, known)
        finally:
            turn.landed()
        told = outcome.usage
        # Of a stream without usage each event counts as one completion token.
        used = outcome.events if told is None or told.completion_tokens is None else told.completion_tokens
        grant.settle(None if told is None else told.prompt_tokens, used)
        if outcome.status == 200 and outcome.target_id is not None:
            state = made(request.path, parsed, grant.tenant, outcome.opening)
            if state is not None:
                self.sticky.keep(state, outcome.target_id)
        self._note(parsed, routed, outcome)
        if traced is not None and (record := self.observer.recent.get(routed.request_id, grant.tenant)) is not None:
            traced.told(record)

    async def explain(self, request: Request, parsed: ApiRequest) -> dict[str, Any]:
        """What would be decided about a request now, and why; nothing is sent, counted or remembered. Raises ApiError.

        Policies that take turns are asked through a copy: a question is no turn. The prompt is read under every policy.
        """
        replicas = self._able(parsed)
        took = Took()
        known = await self._know(parsed, replicas, took, read=True)
        turn = self.turns.turn(request, parsed, OPEN, 0, replicas)
        routed = _Routed(self, request, parsed, replicas, known, OPEN, took, turn, policy=copy(self.placement.policy))
        took.lap("decide")
        return routed.explained() | {"stages_ms": {name: round(s * 1000, 3) for name, s in took.seconds.items()}}

    async def _know(self, parsed: ApiRequest, replicas: list[Replica], took: Took, *, read: bool) -> dict[str, _Known]:
        if not read:
            prompt = NO_PROMPT if parsed.endpoint is Endpoint.OTHER else unread(parsed)
            return dict.fromkeys((r.info.kind for r in replicas if r.info is not None), _Known(prompt, {}))
        known: dict[str, _Known] = {}
        for info in {r.info.kind: r.info for r in replicas if r.info is not None}.values():
            prompt = NO_PROMPT
            if parsed.endpoint is not Endpoint.OTHER:
                # A native /generate names no model: the engine has one.
                named = parsed if parsed.model is not None else msgspec.structs.replace(parsed, model=info.models[0])
                try:
                    prompt = await self.prompts.prepare(named, engine=info.kind, took=took)
                except UnknownModel:  # a replica has just come back with a model that is still being loaded
                    message = f"The model `{named.model}` is being loaded; try again shortly."
                    raise ApiError(503, message, param="model", code="model_loading", retry_after_s=1) from None
            self.fleet.listen()
            known[info.kind] = _Known(prompt, await self.feeds.lookup(prompt.chain))
            took.lap("lookup")
        return known

    def _able(self, parsed: ApiRequest, kinds: Container[str] | None = None) -> list[Replica]:
        if parsed.model is None and parsed.endpoint in NEEDS_MODEL:
            raise ApiError(400, "'model' is required", param="model", code="missing_required_parameter")
        replicas = self.fleet.candidates(parsed.model)
        if kinds is not None:
            replicas = [r for r in replicas if r.info is not None and r.info.kind in kinds]
        if replicas:
            return replicas
        names = [str(entry["id"]) for entry in self.fleet.models()]
        if parsed.model is not None and names and parsed.model not in names:
            raise unknown_model(parsed.model, names)
        raise ApiError(503, "No replica is available yet; try again shortly.", code="no_replica", retry_after_s=1)

    def _note(self, parsed: ApiRequest, routed: _Routed, outcome: Outcome) -> None:
        metrics, replica = self.metrics, outcome.target_id
        metrics.requests.labels(parsed.endpoint.value, str(outcome.status or 499)).inc()
        if outcome.client_gone:
            metrics.disconnects.inc()
        for attempt in outcome.attempts[:-1]:
            metrics.retries.labels(attempt.error or "status").inc()
        if replica is not None:
            if outcome.error in ("cut", "engine_error"):
                metrics.broken_streams.labels(replica).inc()
            if outcome.ttft_s is not None:
                metrics.ttft.labels(replica).observe(outcome.ttft_s)
            metrics.duration.labels(replica).observe(outcome.total_s)
            usage = outcome.usage
            if usage is not None and usage.cached_tokens is not None and usage.prompt_tokens is not None:
                metrics.engine_prompt_tokens.labels(replica).inc(usage.prompt_tokens)
                metrics.engine_cached_tokens.labels(replica).inc(usage.cached_tokens)
            if outcome.error is None and outcome.status == 200 and parsed.endpoint in GENERATING:
                self.answered(*routed.expected(replica), outcome)
        status = outcome.status or 499
        if (passed := routed.passed()) is not None:
            self.observer.passed(passed, outcome, status)
        else:
            self.observer.done(routed.seen or routed.unsent(), outcome, status)


def request_id(request: Request) -> str:
    """The client's x-request-id where it is one that can be looked up, else one made here."""
    given = request.header(b"x-request-id") or b""
    return given.decode("ascii") if _REQUEST_ID.fullmatch(given) else f"{getrandbits(64):016x}"


def wants_comment(request: Request) -> bool:
    """Whether the client asked for the receipt at the end of a stream, as an SSE comment."""
    return request.header(b"x-prefix-router-receipt") == b"comment"


def _offers(
    decision: Decision, known: Mapping[str, _Known], matches: Mapping[str, Match], matched: Mapping[str, int]
) -> list[Offer]:
    """The candidates in the order of the decision, as they were then."""
    offers, terms = [], decision.terms
    for place, candidate in enumerate(decision.order):
        name, info = candidate.replica.id, candidate.replica.info
        assert info is not None
        match, size = matches[name], known[info.kind].prompt.block_size
        cost = terms[place] if place < len(terms) else None
        offers.append(Offer(name, matched[name], match.predicted * size, match.lower * size, cost))
    return offers


class _Routed:
    """One request's plan (see proxy.forward.Plan): the decision, and the books kept on each try."""

    __slots__ = (
        "_candidates",
        "_decision",
        "_grant",
        "_judge",
        "_known",
        "_left",
        "_matched",
        "_matches",
        "_parsed",
        "_past",
        "_read",
        "_reason",
        "_request",
        "_route",
        "_sent",
        "_sent_before",
        "_took",
        "_traced",
        "_turn",
        "request_id",
        "seen",
    )

    def __init__(
        self,
        route: Route,
        request: Request,
        parsed: ApiRequest,
        replicas: list[Replica],
        known: Mapping[str, _Known],
        grant: Grant,
        took: Took,
        turn: Turn,
        policy: Policy | None = None,
        traced: Traced | None = None,
    ) -> None:
        self._traced = traced
        route.fleet.listen()
        self.request_id = request_id(request)
        self.seen: Seen | None = None
        self._took = took
        self._route = route
        self._grant = grant
        self._request = request
        self._parsed = parsed
        self._known = known
        self._reason = ""
        self._sent: Sent | None = None
        self._sent_before = False
        self._read = next(iter(known.values())).prompt.read
        self._matches: dict[str, Match] = {}
        self._matched: dict[str, int] = {}
        if self._read:
            self._candidates = {r.id: self._candidate(r) for r in replicas}
            self._past = route.placement.look(self._facts(), max([c.held_tokens for c in self._candidates.values()]))
        else:
            self._candidates = {r.id: Candidate(r) for r in replicas}
            self._past = route.placement.glance(self._facts())
        able = with_room(replicas, monotonic()) if route.fleet.bounded else replicas
        self._decision = self._decide([self._candidates[r.id] for r in able], policy)
        self._left = ramped(self._decision.order) if route.fleet.ramping else list(self._decision.order)
        if len(able) < len(replicas) and self._decision.reason != "sticky":
            self._left += [candidate for candidate in self._candidates.values() if candidate.replica not in able]
        self._turn = turn
        self._judge = Judge(route.outliers)

    def _prompt(self, replica: Replica) -> _Known:
        assert replica.info is not None
        return self._known[replica.info.kind]

    def _candidate(self, replica: Replica) -> Candidate:
        known = self._prompt(replica)
        match = self._route.feeds.held(replica, known.matches, known.prompt.exact)
        size = known.prompt.block_size
        self._matches[replica.id] = match
        self._matched[replica.id] = min(match.blocks, known.prompt.hittable_blocks) * size
        return Candidate(replica, match.blocks * size, match.lower * size)

    def _facts(self) -> Facts:
        """Lineage is followed in the chain of the first engine kind: a session's own steps agree in any."""
        parsed, grant = self._parsed, self._grant
        prompt = next(iter(self._known.values())).prompt
        return Facts(
            prompt.chain,
            prompt.ids,
            prompt.block_size,
            prompt.tokens,
            sequences=parsed.n * max(1, len(parsed.prompts)),
            streamed=parsed.stream,
            name=self._route.naming.name(self._request, parsed),
            hint=grant.session(self._route.naming.hint(parsed)),
            tenant=grant.tenant,
            model=parsed.model or "",
            salt=parsed.salt,
        )

    def _decide(self, able: list[Candidate], policy: Policy | None) -> Decision:
        """The order of candidates. Raises ApiError when the replica that has the request's state is gone."""
        route = self._route
        home = route.sticky.home(needed(self._request.path, self._parsed, self._grant.tenant))
        if home is not None:
            keeper = self._candidates.get(home)
            if keeper is None:
                message = f"The replica that keeps this state ({home}) is not available."
                raise ApiError(503, message, code="state_unavailable", retry_after_s=1)
            return Decision([keeper], "sticky")
        return route.placement.decide(self._past, route.pools.select(self._past, able), policy)

    def next_target(self, excluded: set[str], last_error: UpstreamError | None) -> Target | None:
        """The next in the decision's order that is still part of the fleet, those first that are still well."""
        fleet = self._route.fleet
        left = [c for c in self._left if c.replica.id not in excluded and fleet.get(c.replica.id) is c.replica]
        if not left:
            return None
        replica = next((c for c in left if c.replica.health is Health.UP and c.replica.breaker.admits), left[0]).replica
        assert replica.info is not None
        self._reason = self._decision.reason if last_error is None else "retry"
        headers = [] if replica.rank is None else [(b"x-data-parallel-rank", b"%d" % replica.rank)]
        if self._traced is not None:
            headers += self._traced.sending(replica.id)
        body = self._body_with_ids(replica)
        if replica.info.kind == "vllm" and asks_report(self._parsed.body):
            body = without_report(self._request.body if body is None else body)
        asked = wants_comment(self._request) and self._read and not self._grant.hides_matches
        closing = self._closing if asked else None
        return Target(replica.id, self._route.origin_of(replica), headers, body, OVERLOAD[replica.info.kind], closing)

    def _closing(self, usage: Usage | None) -> bytes:
        assert self.seen is not None
        return b": prefix-router " + msgspec.json.encode(self._route.observer.receipt(self.seen, usage)) + b"\n\n"

    def _body_with_ids(self, replica: Replica) -> bytes | None:
        prompt, info = self._prompt(replica).prompt, replica.info
        allowed = self._route.send_token_ids and replica.verified and not replica.distrust and info is not None
        if not allowed or not prompt.exact or not prompt.ids or self._parsed.endpoint is not Endpoint.CHAT:
            return None
        assert info is not None
        if not supports(info.kind, info.version):
            return None
        try:
            return with_token_ids(self._request.body, prompt.ids, info.kind)
        except NotForwardable:
            return None

    def expected(self, replica_id: str) -> tuple[Replica, Prompt, Match]:
        """What was expected of a candidate: the prompt, and what its own events said it held of it."""
        known = self._prompt(self._candidates[replica_id].replica)
        return self._candidates[replica_id].replica, known.prompt, known.matches.get(replica_id, NOTHING)

    def response_headers(self, target: Target) -> Headers:
        """The receipt."""
        replica = self._candidates[target.id].replica
        prompt = self._prompt(replica).prompt
        receipt = [
            (b"x-prefix-router-replica", target.id.encode()),
            (b"x-prefix-router-reason", self._reason.encode()),
        ]
        if not prompt.read:
            receipt.append((b"x-prefix-router-tokens", b"unread"))
        elif self._parsed.endpoint is not Endpoint.OTHER:
            tokens = "approximate; token-mismatch" if prompt.exact and replica.distrust else prompt.told
            receipt += [
                (b"x-prefix-router-matched-tokens", b"%d" % self._matched[replica.id]),
                (b"x-prefix-router-prompt-tokens", b"%d" % prompt.tokens),
                (b"x-prefix-router-tokens", tokens.encode()),
            ]
        if self.seen is not None:
            receipt += self.seen.headers()
        elif not self._read:
            receipt.append((b"x-prefix-router-request", self.request_id.encode("latin-1")))
        return self._grant.visible(receipt)

    def on_send(self, target: Target) -> None:
        """Credit the dispatch at once, and expect the replica to hold the prompt."""
        route, replica = self._route, self._candidates[target.id].replica
        self._judge.sent(replica)
        self._sent = route.placement.sent(self._past, self._candidates[target.id])
        self._turn.landed()
        route.fleet.chosen(replica)
        route.metrics.decisions.labels(target.id, self._reason).inc()
        if self._read:
            self._expect(replica)
        elif not self._sent_before:
            self._sent_before = True
            self._took.lap("decide")

    def _expect(self, replica: Replica) -> None:
        route, prompt = self._route, self._prompt(replica).prompt
        route.feeds.expect(replica, prompt.chain, self._matches[replica.id], prompt.exact)
        dispatch = self._dispatch(replica)
        if self.seen is None:
            self._took.lap("decide")
            self.seen = route.observer.sent(dispatch)
            self._took.lap("observe")
        else:
            self.seen.moved(dispatch)
        route.metrics.prompt_tokens.labels(replica.id).inc(prompt.tokens)
        route.metrics.matched_tokens.labels(replica.id).inc(self._matched[replica.id])
        if not prompt.exact and prompt.reason:
            route.metrics.approximate.labels(prompt.reason).inc()

    def _dispatch(self, replica: Replica) -> Dispatch:
        route, prompt = self._route, self._prompt(replica).prompt
        held = self._matches[replica.id]
        session = self._past.session
        best = max(self._matched.values())
        return Dispatch(
            request=self._parsed,
            path=self._request.path,
            request_id=self.request_id,
            tenant=self._grant.tenant,
            model=route.fleet.canonical_model(self._parsed.model or ""),
            prompt=prompt,
            replica=replica,
            entry=route.feeds.entry(replica, prompt.exact),
            reason=self._reason,
            matched=self._matched[replica.id],
            confirmed=(held.blocks - held.predicted) * prompt.block_size,
            best=best,
            followed=route.feeds.followed(replica, prompt.exact),
            candidates=self._offers(),
            session=None if session is None else session.id,
            named=session is not None and session.named,
            parent=None if session is None else session.parent,
            fresh=self._past.found.session is None,
            seconds=self._took.seconds,
        )

    def _offers(self) -> Callable[[], list[Offer]]:
        """Keeps nothing of this object: its own record keeps it, and each request would be a cycle to be collected."""
        return partial(_offers, self._decision, self._known, self._matches, self._matched)

    def explained(self) -> dict[str, Any]:
        """The decision and everything it was made from."""
        past, first = self._past, self._decision.order[0].replica
        prompt, session = self._prompt(first).prompt, past.found.session or past.found.parent
        return {
            "model": self._parsed.model,
            "endpoint": self._parsed.endpoint.value,
            "tokens": {"prompt": prompt.tokens, "exact": prompt.exact, "reason": prompt.reason},
            "chain": {
                "block_size": prompt.block_size,
                "blocks": len(prompt.chain),
                "first": [f"{one:016x}" for one in prompt.chain[:2]],
                "last": [f"{one:016x}" for one in prompt.chain[-2:]],
            },
            "session": {
                "found_by": past.found.how if past.found.parent is None else "fork",
                "id": None if session is None else session.id,
                "steps": None if session is None else session.steps,
                "home": past.ask.home or None,
                "shared_tokens": past.shared_tokens,
                "expected_steps": round(past.ask.steps_left, 1),
                "expected_tokens_a_step": round(past.ask.step_tokens),
                "class": "light" if self._route.pools.is_light(past) else "heavy",
            },
            "decision": {
                "replica": first.id,
                "reason": self._decision.reason,
                "policy": self._route.placement.policy.name,
            },
            "candidates": [
                offer.told()
                | {
                    "health": candidate.replica.health,
                    "running": candidate.replica.load.running,
                    "queued_prefill_tokens": candidate.replica.load.queued_tokens,
                    "warm_tokens": round(candidate.replica.load.warm_tokens),
                    "slowness": round(candidate.replica.speed.slowness, 2),
                    "feed": candidate.replica.feed,
                }
                for offer, candidate in zip(self._offers()(), self._decision.order, strict=True)
            ],
        }

    def passed(self) -> Passed | None:
        """What is to be remembered of a request whose prompt was not read; None for one that was."""
        if self._read:
            return None
        parsed, request = self._parsed, self._request
        model = self._route.fleet.canonical_model(parsed.model or "")
        return Passed(self.request_id, request.path, model, self._grant.tenant, self._reason, self._took.seconds)

    def unsent(self) -> Seen:
        """For a request that no replica was left to try for."""
        return self._route.observer.unsent(self._dispatch(self._decision.order[0].replica))

    def on_first_byte(self, target: Target, status: int, seconds: float) -> None:
        """The prompt is prefilled."""
        if self._sent is not None:
            self._sent.first_byte(monotonic(), answered=status < 400)
            self._route.fleet.changed()
        replica = self._candidates[target.id].replica
        self._judge.answered(replica, status)
        if status < 400 and self._read:
            prompt = self._prompt(replica).prompt
            self._route.feeds.answered(replica, prompt.chain, prompt.block_size, prompt.exact)

    async def alive(self, target: Target) -> bool:
        """Asked after a lost connection, and when a second engine failed over the request."""
        return await self._route.alive(self._candidates[target.id].replica)

    def on_end(self, target: Target, attempt: Attempt) -> None:
        """Whatever happened, the work is no longer there."""
        if self._traced is not None:
            self._traced.sent(attempt)
        if self._sent is not None:
            self._sent.ended(monotonic())
            self._sent = None
            self._route.fleet.changed()
            self._route.turns.admission.pump()
        replica = self._candidates[target.id].replica
        full = attempt.status == target.overload
        self._judge.ended(replica, attempt.error, attempt.status, attempt.message, full=full)
