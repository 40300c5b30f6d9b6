"""What is learnt from each request: its session, its breaks, why tokens were computed; told to everyone who looks.

seen = observer.sent(dispatch)      at the first dispatch: the session's step and the break, if there is one
seen.moved(dispatch)                at each further one, on another replica
observer.done(seen, ...)            once, when it is over: attribution, metrics, record, access log
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from router.fleet.replica import Replica
from router.http.errors import Headers
from router.observe.attribution import Attribution, Facts, attribute
from router.observe.breaks import Break, BreakClass, shown
from router.observe.doubt import Doubt
from router.observe.hot import HotPrefixes
from router.observe.metrics import Metrics
from router.observe.past import GONE, Lost, Past, Standing
from router.observe.recent import Recent, Timeline
from router.observe.records import Offer, Passed, Record
from router.observe.sessions import Asked, Session, Sessions, Step
from router.prompt.requests import ApiRequest, Endpoint
from router.prompt.stage import Prompt
from router.proxy.plan import Outcome
from router.proxy.watch import Usage

access_log = logging.getLogger("router.access")
log = logging.getLogger("router.breaks")

MAX_DOUBTS = 64
"""Requests whose causes may be corrected: 64 take less than a millisecond, once after lost events came."""
_NOTHING: Sequence[Lost] = ()
WITH_SESSIONS = frozenset(
    {Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES, Endpoint.GENERATE}
)


class Dispatch(msgspec.Struct, gc=False):
    """A request on its way to a replica. Token counts.

    `entry`: the index's entry that speaks for the replica. `matched`: what it was thought to hold; `best`: the most
    that any candidate was. `offers`: in the order of the decision.
    `session`, `named`, `parent`, `fresh`: as in sessions.Asked.
    """

    request: ApiRequest
    path: str
    request_id: str
    tenant: str
    model: str
    prompt: Prompt
    replica: Replica
    entry: str
    reason: str
    matched: int
    best: int
    followed: bool
    offers: Sequence[Offer]
    session: str | None = None
    named: bool = False
    parent: str | None = None
    fresh: bool = True
    seconds: dict[str, float] = {}


class Seen(msgspec.Struct, gc=False):
    """One request under way, and what was known when it was sent.

    `best`: the most of its prompt that anyone is likely to hold; see Past.likely."""

    dispatch: Dispatch
    session: Session | None
    step: Step | None
    known: int
    lost: Sequence[Lost]
    best: int
    sending: float
    standing: Standing
    at: float
    tries: int = 1

    @property
    def broken(self) -> Break | None:
        """The prefix break that this request is, if it is one."""
        found = None if self.step is None else self.step.broken
        return None if found is None or found.kind is BreakClass.NEW else found

    def headers(self) -> Headers:
        """The receipt's part about the request itself."""
        told = [(b"x-prefix-router-request", self.dispatch.request_id.encode("latin-1"))]
        if self.session is not None and self.step is not None:
            told.append((b"x-prefix-router-session", b"%b; step=%d" % (self.session.id.encode(), self.step.number)))
        if self.broken is not None:
            told.append((b"x-prefix-router-break", self.broken.header().encode("ascii")))
        return told

    def moved(self, dispatch: Dispatch) -> None:
        """Tried again, on another replica."""
        self.dispatch = dispatch
        self.tries += 1


class Observer:
    """`rate`: prompt tokens a second that a replica computes, None if not known; for estimates of time saved."""

    def __init__(
        self,
        metrics: Metrics,
        sessions: Sessions,
        past: Past,
        *,
        rate: Callable[[Replica], float | None],
        recent: Recent | None = None,
        log_blocks: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.metrics = metrics
        self.sessions = sessions
        self.past = past
        self.recent = recent or Recent()
        self.timeline = Timeline(clock)
        self.hot = HotPrefixes()
        self._doubts: deque[tuple[Record, Doubt]] = deque(maxlen=MAX_DOUBTS)
        self._rate = rate
        self.log_blocks = log_blocks
        self._clock = clock

    def sent(self, dispatch: Dispatch) -> Seen:
        """The request's first dispatch."""
        prompt, chain = dispatch.prompt, dispatch.prompt.chain
        session: Session | None = None
        step: Step | None = None
        known, lost, best = 0, _NOTHING, dispatch.best
        if chain and dispatch.request.endpoint in WITH_SESSIONS:
            session, step = self.sessions.step(
                Asked(
                    dispatch.request,
                    dispatch.request_id,
                    dispatch.tenant,
                    dispatch.model,
                    dispatch.session or f"r-{dispatch.request_id}",
                    dispatch.named,
                    chain,
                    prompt.tokens,
                    prompt.block_size,
                    dispatch.parent,
                    dispatch.fresh,
                )
            )
        if chain:
            size = prompt.block_size
            seen = self.past.known(chain)
            known = max(seen * size, step.resent if step is not None else 0)
            if dispatch.best + size <= known:
                lost = self.past.lost(chain, dispatch.best // size, dispatch.entry, size)
            if dispatch.best > dispatch.matched:
                likely = (self.past.likely(each.replica, chain, each.matched // size, size) for each in dispatch.offers)
                best = max(likely, default=0) * size
            sent = self.past.sent(dispatch.entry, chain, prompt.tokens - dispatch.matched)
            self.hot.note(dispatch.model, chain, size)
            sending, standing = sent.at, sent.standing
        else:
            sending, standing = self.past.clock(), self.past.standing(dispatch.entry)
        return Seen(dispatch, session, step, known, lost, best, sending, standing, self._clock())

    def unsent(self, dispatch: Dispatch) -> Seen:
        """A request that was never sent: no step of a session."""
        return Seen(dispatch, None, None, 0, _NOTHING, 0, 0.0, GONE, self._clock(), 0)

    def done(self, seen: Seen, outcome: Outcome, status: int) -> None:
        """The request is over. `status`: what the client got, 499 if it left."""
        dispatch, step, session = seen.dispatch, seen.step, seen.session
        if self.past.told_late:
            self._settle()
        answered = outcome.target_id is not None and outcome.status is not None and outcome.status < 400
        facts = self._facts(seen, outcome.usage) if answered and dispatch.prompt.tokens else None
        found = None if facts is None else attribute(facts)
        if outcome.status is not None and outcome.status >= 400 and seen.tries == 1 and dispatch.prompt.chain:
            self.past.refused(dispatch.prompt.chain, seen.sending)
        saved = 0.0
        if found is not None:
            rate = self._rate(dispatch.replica)
            saved = found.reused / rate if rate else 0.0
        if session is not None and step is not None:
            step.replica, step.reason, step.matched = dispatch.replica.id, dispatch.reason, dispatch.matched
            step.ttft_s = outcome.ttft_s
            self.sessions.answered(session, step, found, saved)
        self._count(seen, outcome, found)
        self._clock_stages(dispatch.seconds, outcome, status)
        record = self._record(seen, outcome, status, facts, found)
        self.recent.put(record)
        if access_log.isEnabledFor(logging.INFO):
            prompt = dispatch.prompt
            blocks = {"block_size": prompt.block_size, "blocks": prompt.chain} if self.log_blocks else {}
            self._log(record.told() | blocks)

    def passed(self, passed: Passed, outcome: Outcome, status: int) -> None:
        """A request whose prompt was not read is over."""
        passed.at, passed.outcome, passed.status = self._clock() - outcome.total_s, outcome, status
        self._clock_stages(passed.seconds, outcome, status)
        self.recent.put(passed)
        if access_log.isEnabledFor(logging.INFO):
            self._log(passed.told())

    def refused(self, told: dict[str, Any]) -> None:
        """The router answered with an error itself, before any replica was chosen. Counted and logged, not remembered:
        refusals in number would push out the records of requests that were answered."""
        bucket = self.timeline.now()
        bucket.requests += 1
        bucket.errors += told["status"] >= 500
        if access_log.isEnabledFor(logging.INFO):
            self._log({"at": round(self._clock(), 3), **told})

    @staticmethod
    def _log(record: dict[str, Any]) -> None:
        line = {name: value for name, value in record.items() if name not in ("candidates", "seq")}
        access_log.info("%s", msgspec.json.encode(line).decode())

    def _clock_stages(self, seconds: dict[str, float], outcome: Outcome, status: int) -> None:
        """The part of the books that every request has."""
        bucket = self.timeline.now()
        bucket.requests += 1
        bucket.errors += status >= 500
        if outcome.ttft_s is not None:
            bucket.answered += 1
            bucket.ttft_s += outcome.ttft_s
        if outcome.attempts:
            seconds["connect"] = sum([attempt.connect_s for attempt in outcome.attempts])
        self.metrics.stage.observe(seconds)

    def receipt(self, seen: Seen, usage: Usage | None) -> dict[str, Any]:
        """What is known at the end of an answer, for those who asked for it."""
        found = attribute(self._facts(seen, usage))
        return {
            "request": seen.dispatch.request_id,
            "cached_tokens": usage.cached_tokens if usage is not None else None,
            "cause": found.cause,
            "computed_tokens": found.tokens,
        }

    def _facts(self, seen: Seen, usage: Usage | None) -> Facts:
        dispatch, step = seen.dispatch, seen.step
        prompt, size = dispatch.prompt, dispatch.prompt.block_size
        cached = usage.cached_tokens if usage is not None else None
        unkept = cached is not None and cached < dispatch.matched  # what became of it matters only then
        dropped, renewed = self._became(seen, cached // size) if unkept and cached is not None else (False, False)
        broken = step is not None and seen.broken is not None
        return Facts(
            prompt=prompt.tokens,
            hittable=prompt.hittable_blocks * size,
            matched=dispatch.matched,
            best=seen.best if seen.tries == 1 else dispatch.best,
            not_held=dispatch.best,
            known=seen.known,
            cached=cached,
            mutated_from=step.resent if step is not None and broken else 0,
            mutated_to=step.mutated_to if step is not None and broken else 0,
            block=size,
            exact=prompt.exact,
            engine_prompt=usage.prompt_tokens if usage is not None else None,
            distrusted=bool(dispatch.replica.distrust),
            tried=seen.tries > 1,
            lost=[(lost.until * size, lost.cause) for lost in seen.lost],
            dropped=dropped,
            renewed=renewed,
            followed=dispatch.followed,
        )

    def _became(self, seen: Seen, at: int) -> tuple[bool, bool]:
        """What became of block `at` on the replica since the decision: (it was evicted, the replica restarted)."""
        dispatch, chain = seen.dispatch, seen.dispatch.prompt.chain
        then, now = seen.standing, self.past.standing(dispatch.entry)
        emptied = now.clears > then.clears and (now.restarts, now.losses) == (then.restarts, then.losses)
        dropped = self.past.dropped_at(dispatch.entry, chain[at]) if at < len(chain) else None
        return emptied or (dropped is not None and dropped.at >= seen.sending), now.restarts > then.restarts

    def _count(self, seen: Seen, outcome: Outcome, found: Attribution | None) -> None:
        metrics, dispatch = self.metrics, seen.dispatch
        bucket = self.timeline.now()
        if seen.step is not None and (broken := seen.step.broken) is not None:
            metrics.breaks.labels(broken.kind).inc()
            metrics.break_tokens.labels(broken.kind).inc(broken.tokens_lost)
            bucket.breaks += seen.broken is not None
            self._tell_break(seen)
        if found is not None:
            metrics.causes.labels(found.cause).inc()
            metrics.reused_tokens.inc(found.reused)
            self.past.computed(dispatch.entry, dispatch.prompt.tokens - found.reused)
            for cause, tokens in found.tokens.items():
                metrics.computed_tokens.labels(cause).inc(tokens)
            bucket.prompt_tokens += dispatch.prompt.tokens
            bucket.reused_tokens += found.reused

    @staticmethod
    def _tell_break(seen: Seen) -> None:
        """One line a session and class: a client that breaks every step would fill the log."""
        session, step, broken = seen.session, seen.step, seen.broken
        if session is None or step is None or broken is None or session.classes[broken.kind] != 1:
            return
        where = shown(broken.field)
        if broken.message is not None:
            where = f"message {broken.message} ({shown(broken.role)}), {where}"
        at = "" if broken.offset is None else f", character {broken.offset}: {broken.before!r} became {broken.after!r}"
        log.info(
            "prefix break in session %s, step %d: %s in %s%s; %d tokens can't be reused",
            session.id, step.number, broken.kind, where, at, broken.tokens_lost,
        )  # fmt: skip

    def _record(
        self, seen: Seen, outcome: Outcome, status: int, facts: Facts | None, found: Attribution | None
    ) -> Record:
        dispatch, step = seen.dispatch, seen.step
        prompt, offers = dispatch.prompt, dispatch.offers
        record = Record(
            dispatch.request_id,
            seen.at,
            dispatch.path,
            dispatch.model,
            dispatch.tenant,
            seen.session.id if seen.session is not None else None,
            step.number if step is not None else None,
            step.relation if step is not None else None,
            seen.broken,
            status,
            outcome,
            dispatch.reason,
            prompt.tokens,
            dispatch.matched,
            dispatch.best,
            prompt.told,
            dispatch.seconds,
            offers,
            found,
        )
        if facts is not None and found is not None and dispatch.best > max(dispatch.matched, found.reused):
            held = [(offer.replica, offer.matched) for offer in offers]
            doubt = Doubt.of(facts, seen.sending, prompt.chain, held, found.reused)
            if doubt is not None:
                self._doubts.append((record, doubt))
        return record

    def _settle(self) -> None:
        """Events that were lost have come: correct what is remembered of the last requests."""
        self.past.told_late = False
        for record, doubt in self._doubts:
            record.found = doubt.settled(self.past) or record.found
