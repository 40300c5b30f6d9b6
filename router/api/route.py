"""The life of a request, from top to bottom: replicas, prompt and lookup, a turn, decision and forwarding, the books.

What is decided and booked for one request on its way is in `routed`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container
from copy import copy
from typing import TYPE_CHECKING, Any

import msgspec

from router.api.errors import ApiError, unknown_model
from router.api.explained import explained
from router.api.keys import OPEN, Grant
from router.api.routed import Known, Routed
from router.api.sessions import Naming
from router.api.state import made
from router.api.turn import Turns
from router.fleet.feeds import Feeds
from router.fleet.fleet import Fleet
from router.fleet.outliers import Outliers
from router.fleet.replica import Replica
from router.http.message import Request
from router.http.response import Response
from router.http.upstream import Origin
from router.index.types import Match
from router.observe.metrics import Metrics
from router.observe.observer import Observer
from router.prompt.requests import ApiRequest, Endpoint
from router.prompt.stage import LONG_BYTES, Prompt, PromptStage, Took, UnknownModel, unread
from router.proxy.forward import Forwarder
from router.proxy.plan import Outcome
from router.routing.placement import Placement
from router.routing.pools import Pools
from router.routing.sticky import StickyTable

if TYPE_CHECKING:
    from router.observe.tracing import Traced, Tracing

NEEDS_MODEL = frozenset(
    {Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES, Endpoint.EMBEDDINGS}
)
GENERATING = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES, Endpoint.GENERATE})
NO_PROMPT = Prompt(tokens=0, chain=[], block_size=1, exact=True)


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
        if parsed.size > LONG_BYTES and self.reads_prompts:
            for _ in self.observer.sessions.warm(parsed):
                await asyncio.sleep(0)
            took.lap("observe")
        tokens = max(each.prompt.tokens for each in known.values())
        grant.charge(tokens)
        turn = self.turns.turn(request, parsed, grant, tokens, replicas)
        before: Routed | None = None
        try:
            while True:
                if await turn.wait(replicas):
                    for kind, each in known.items():  # time has passed: caches and queues have changed
                        if each.prompt.read:
                            known[kind] = Known(each.prompt, await self.feeds.lookup(each.prompt.chain))
                    replicas = self._able(parsed, known)
                    took.lap("queue")
                routed = Routed(self, request, parsed, replicas, known, grant, took, turn, before=before, traced=traced)
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
        routed = Routed(self, request, parsed, replicas, known, OPEN, took, turn, policy=copy(self.placement.policy))
        took.lap("decide")
        return explained(routed, self.placement, self.pools) | {
            "stages_ms": {name: round(s * 1000, 3) for name, s in took.seconds.items()}
        }

    async def _know(self, parsed: ApiRequest, replicas: list[Replica], took: Took, *, read: bool) -> dict[str, Known]:
        if not read:
            prompt = NO_PROMPT if parsed.endpoint is Endpoint.OTHER else unread(parsed)
            return dict.fromkeys((r.info.kind for r in replicas if r.info is not None), Known(prompt, {}))
        known: dict[str, Known] = {}
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
            known[info.kind] = Known(prompt, await self.feeds.lookup(prompt.chain))
            took.lap("lookup")
        return known

    def _able(self, parsed: ApiRequest, kinds: Container[str] | None = None) -> list[Replica]:
        if parsed.model is None and parsed.endpoint in NEEDS_MODEL:
            raise ApiError(400, "'model' is required", param="model", code="missing_required_parameter")
        replicas = self.fleet.candidates(parsed.form_model) if parsed.form_model is not None else []
        replicas = replicas or self.fleet.candidates(parsed.model)
        if kinds is not None:
            replicas = [r for r in replicas if r.info is not None and r.info.kind in kinds]
        if replicas:
            return replicas
        names = [str(entry["id"]) for entry in self.fleet.models()]
        if parsed.model is not None and names and parsed.model not in names:
            raise unknown_model(parsed.model, names)
        raise ApiError(503, "No replica is available yet; try again shortly.", code="no_replica", retry_after_s=1)

    def _note(self, parsed: ApiRequest, routed: Routed, outcome: Outcome) -> None:
        metrics, replica = self.metrics, outcome.target_id
        metrics.requests.labels(parsed.endpoint, str(outcome.status or 499)).inc()
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
