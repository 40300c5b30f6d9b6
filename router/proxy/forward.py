"""Forwarding one request: targets in order, the client's bytes out, the answer's bytes back."""

from __future__ import annotations

import asyncio
import math
import time

from router.http.errors import ConnectionLost, UpstreamError
from router.http.message import Request
from router.http.response import Response
from router.http.upstream import UpstreamPool
from router.http.upstream_connection import UpstreamConnection
from router.http.upstream_head import Framing, ResponseHead
from router.proxy.budget import RetryBudget
from router.proxy.headers import PASS_ALL, HeaderRules, request_head, response_headers
from router.proxy.plan import Attempt, Outcome, Plan, Target
from router.proxy.poison import PoisonGuard
from router.proxy.relay import Relay
from router.proxy.retry import UNSENT, RetryPolicy, RetryState, StatusFailure, Verdict, error_kind, final_answer
from router.proxy.watch import ResponseWatcher, failed_before_first_token

NO_ROUTE = b'{"detail":"Not Found"}'
"""What both engines' web framework answers for a path it doesn't know; clients get it in their own error format."""


class Forwarder:
    """Sends requests through one pool under one retry policy, one budget for all of them."""

    def __init__(
        self,
        pool: UpstreamPool,
        policy: RetryPolicy | None = None,
        *,
        budget: RetryBudget | None = None,
        poison: PoisonGuard | None = None,
        retry_after_s: int = 1,
        headers: HeaderRules = PASS_ALL,
    ) -> None:
        self.pool = pool
        self.headers = headers
        self.policy = policy or RetryPolicy()
        self.budget = budget or RetryBudget()
        self.poison = poison or PoisonGuard()
        self._retry_after = [(b"retry-after", b"%d" % retry_after_s)]

    async def forward(
        self, request: Request, response: Response, plan: Plan, *, within_s: float = math.inf, hold: bool = False
    ) -> Outcome:
        """Answer `request` from the plan's targets; an error answer if none has one.

        within_s: for the first byte; the client waits no longer. hold: when no target did anything for the request,
        since none took a connection or all said that their queue is full, nothing is answered, and the outcome's error
        is `held`: the request may be forwarded again later.

        A client that leaves ends it at once: the upstream connection is closed and the outcome says client_gone (the
        task's cancellation by the server is consumed). Any other cancellation passes through, callbacks balanced.
        """
        forwarding = _Forwarding(self, request, response, plan, within_s, hold)
        outcome = forwarding.outcome
        if self.poison.watching and self._refused(request, response):
            outcome.status, outcome.error = 422, "poison"
            return outcome
        self.budget.began(forwarding.started)
        try:
            await forwarding.run()
        except asyncio.CancelledError:
            if not response.gone:
                raise
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
        outcome.client_gone = response.gone and outcome.error not in ("cut", "engine_error")
        if outcome.client_gone:
            outcome.error = "client_gone"
        elif not response.started:
            if hold and forwarding.untouched:
                outcome.error = "held"
            else:
                self._give_up(forwarding, response)
        outcome.total_s = time.monotonic() - forwarding.started
        return outcome

    def _refused(self, request: Request, response: Response) -> bool:
        fingerprint = self.poison.fingerprint(request.path, request.body)
        left = math.ceil(self.poison.refused_for(fingerprint, time.monotonic()))
        if left:
            message = (
                "This very request was being answered each time when several replicas broke down. It may be the cause, "
                f"so it is refused for {left} s. Change it, or send it again later."
            )
            response.fail(422, message, [(b"retry-after", b"%d" % left)])
        return left > 0

    def _give_up(self, forwarding: _Forwarding, response: Response) -> None:
        errors = forwarding.errors
        status, retry_after = final_answer(errors)
        if not errors:
            message = "no replica is available for this request"
            forwarding.outcome.error = "no_replica"
        else:
            tried = "; ".join(
                f"{attempt.target_id}: {attempt.message}" for attempt in forwarding.outcome.attempts if attempt.message
            )
            message = f"no replica answered. Tried {tried}"
            forwarding.outcome.error = forwarding.outcome.attempts[-1].error
        forwarding.outcome.status = status
        response.fail(status, message, self._retry_after if retry_after else None)


class _Forwarding:
    """One request on its way."""

    __slots__ = (
        "_deadline",
        "_excluded",
        "_fallen",
        "_headers",
        "_hold",
        "_plan",
        "_poison",
        "_pool",
        "_request",
        "_response",
        "_state",
        "errors",
        "outcome",
        "started",
    )

    def __init__(
        self, forwarder: Forwarder, request: Request, response: Response, plan: Plan, within_s: float, hold: bool
    ) -> None:
        self._hold = hold
        policy = forwarder.policy
        self._pool = forwarder.pool
        self._poison = forwarder.poison
        self._headers = forwarder.headers
        self._request = request
        self._response = response
        self._plan = plan
        self._state = RetryState(policy, forwarder.budget)
        self._excluded: set[str] = set()
        self._fallen: list[Target] = []
        self.started = time.monotonic()
        self._deadline = self.started + min(policy.total_s, within_s)
        self.errors: list[UpstreamError] = []
        self.outcome = Outcome()

    @property
    def untouched(self) -> bool:
        """Nothing was done for the request anywhere."""
        return bool(self.errors) and all(
            error_kind(error) in UNSENT or (isinstance(error, StatusFailure) and error.overload)
            for error in self.errors
        )

    async def run(self) -> None:
        target = self._plan.next_target(self._excluded, None)
        while target is not None:
            self._excluded.add(target.id)
            self._state.begin_target()
            attempt = Attempt(target.id)
            self.outcome.attempts.append(attempt)
            begun = time.monotonic()
            self._plan.on_send(target)
            following: Target | None = None
            try:
                attempt.error = "internal"
                following = await self._try(target, attempt, begun)
            except asyncio.CancelledError:
                attempt.error = "client_gone" if self._response.gone else "cancelled"
                raise
            finally:
                attempt.seconds = time.monotonic() - begun
                self._plan.on_end(target, attempt)
            if following is not None and (pause := self._state.backoff_s()):
                await asyncio.sleep(min(pause, max(0.0, self._deadline - time.monotonic())))
            target = following

    async def _try(self, target: Target, attempt: Attempt, begun: float) -> Target | None:
        """One target, with the free second try after a stale connection. Returns the target to try next."""
        extra = target.extra_headers
        if target.body is not None:
            extra = [*extra, (b"content-length", b"%d" % len(target.body))]
        head = request_head(self._request, target.origin, extra, self._headers)
        fresh = False
        while True:
            try:
                return await self._exchange(target, attempt, head, begun, fresh)
            except UpstreamError as error:
                now = time.monotonic()
                verdict = self._state.after(error, now)
                if verdict is Verdict.SAME_FRESH:
                    fresh = True
                    attempt.stale_retries += 1
                    continue
                self._note(attempt, error)
                if isinstance(error, ConnectionLost) or attempt.stale_retries:
                    self._fallen.append(target)
                    if verdict is Verdict.STOP:
                        verdict = await self._ask_the_fallen()
                    if verdict is Verdict.STOP or len(self._fallen) == 1:
                        self._poison.lost(self._fingerprint(), target.id, now)
                if verdict is Verdict.STOP or now >= self._deadline:
                    return None
                return self._plan.next_target(self._excluded, error)

    async def _ask_the_fallen(self) -> Verdict:
        """Go on if those that failed under this request live: it is not what kills replicas."""
        alive = await asyncio.gather(*(self._plan.alive(target) for target in self._fallen))
        return self._state.acquit(alive.count(False))

    def _fingerprint(self) -> int:
        return self._poison.fingerprint(self._request.path, self._request.body)

    def _note(self, attempt: Attempt, error: UpstreamError) -> None:
        self.errors.append(error)
        attempt.error = error_kind(error)
        attempt.message = str(error)

    async def _exchange(
        self, target: Target, attempt: Attempt, head: bytes, begun: float, fresh: bool
    ) -> Target | None:
        """Send once. Raises UpstreamError while nothing reached the client; afterwards failures end the answer."""
        connection = None if fresh else self._pool.take(target.origin)
        if connection is None:
            asked = time.monotonic()
            try:
                connection = await self._pool.connect(target.origin, max(0.0, self._deadline - asked))
            finally:
                attempt.connect_s += time.monotonic() - asked
        try:
            timeout = min(self._pool.limits.first_byte_timeout_s, self._deadline - time.monotonic())
            body = self._request.body if target.body is None else target.body
            answer = await connection.send(self._request.method, head, body, timeout)
            attempt.status = answer.status
            failed = engine_failed(connection, answer)
            failure = self._failure(target, answer, failed)
            if failed:
                self._fallen.append(target)
                # Those that failed over it still answer: more likely it is they that are unwell.
                go_on = failure is None and self._state.may_go_on(time.monotonic())
                if go_on and await self._ask_the_fallen() is Verdict.NEXT:
                    failure = f"answered {answer.status}"
            full = answer.status == target.overload
            if failure is not None or (self._hold and full):
                error = StatusFailure(failure or f"answered {answer.status}", answer.status, overload=full)
                following = None if failure is None else self._plan.next_target(self._excluded, error)
                if following is not None or (self._hold and full):
                    self._note(attempt, error)
                    connection.discard()
                    return following
            self._plan.on_first_byte(target, answer.status, time.monotonic() - begun)
            if answer.status == 404 and connection.peek() == NO_ROUTE:
                connection.discard()
                attempt.error = None
                self.outcome.target_id, self.outcome.status = target.id, 404
                message = f"Unknown path {self._request.path}: neither the router nor the replica serves it"
                self._response.fail(404, message, self._plan.response_headers(target))
                return None
            await self._answer(target, attempt, connection, answer)
            return None
        except BaseException:
            connection.abort()
            raise

    def _failure(self, target: Target, answer: ResponseHead, failed: bool) -> str | None:
        """Why this answer, of which the client has seen nothing, is worth another target; None if it is not."""
        status, now = answer.status, time.monotonic()
        if self._state.may_retry_status(status, now, target.overload):
            return f"answered {status}"
        if failed:
            self._poison.failed(self._fingerprint(), target.id, now)
            if self._state.may_retry_failure(now):
                return f"answered {status}" if status != 200 else "failed before its first token"
        return None

    async def _answer(
        self, target: Target, attempt: Attempt, connection: UpstreamConnection, head: ResponseHead
    ) -> None:
        response, outcome = self._response, self.outcome
        watch = ResponseWatcher(head.content_type, head.header(b"content-encoding"))
        relay = Relay(response, watch, head.framing, target.closing)
        headers = response_headers(head.headers) + self._plan.response_headers(target)
        length = head.length
        if head.framing is Framing.NONE and length is None and self._request.method != "HEAD":
            length = 0
        response.start(head.status, headers, length=length, framed=relay.framed)
        outcome.target_id, outcome.status = target.id, head.status
        attempt.error = None
        try:
            ended = connection.relay(relay)
            if ended is not None:
                response.attach(connection)
                await ended
            response.attach(None)
            connection.release()
            relay.finish()
            if watch.error_seen:
                attempt.error = "engine_error" if watch.engine_at_fault else "request_error"
            elif self._poison.watching and head.status < 500:
                self._poison.answered(self._fingerprint())
        except UpstreamError as error:
            self._note(attempt, error)
            attempt.error = "cut"
            if isinstance(error, ConnectionLost):
                self._poison.lost(self._fingerprint(), target.id, time.monotonic())
            relay.fail(502, f"the replica's answer broke off: {error}")
        finally:
            response.attach(None)
            outcome.error = attempt.error
            outcome.ttft_s = watch.first_at - self.started if watch.first_at is not None else None
            outcome.usage = usage = watch.usage()
            if attempt.error is None:
                told = usage.completion_tokens if usage is not None else None
                attempt.tokens = watch.events if told is None else told
            outcome.events, outcome.body_bytes, outcome.opening = watch.events, watch.bytes, watch.opening


def engine_failed(connection: UpstreamConnection, answer: ResponseHead) -> bool:
    """Whether an answer says that the engine itself failed, before its first token."""
    return answer.status == 500 or failed_before_first_token(answer.content_type, connection.peek())
