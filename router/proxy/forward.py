"""Forwarding one request: targets in order, the client's bytes out, the answer's bytes back."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Protocol

from router.http.errors import BadResponse, ConnectFailed, ConnectionLost, Headers, UpstreamError, UpstreamTimeout
from router.http.message import Request
from router.http.response import Response
from router.http.upstream import Origin, UpstreamPool
from router.http.upstream_connection import UpstreamConnection
from router.http.upstream_head import Framing, ResponseHead
from router.proxy.headers import PASS_ALL, HeaderRules, request_head, response_headers
from router.proxy.relay import Relay
from router.proxy.retry import RetryPolicy, RetryState, StatusFailure, Verdict, final_answer
from router.proxy.watch import ResponseWatcher, Usage, failed_before_first_token

NO_ROUTE = b'{"detail":"Not Found"}'
"""What both engines' web framework answers for a path it doesn't know; clients get it in their own error format."""


@dataclass(frozen=True, slots=True)
class Target:
    """A replica to send to. extra_headers are added to the client's own. body: sent in the place of the client's."""

    id: str
    origin: Origin
    extra_headers: Headers = field(default_factory=list)
    body: bytes | None = None


@dataclass(slots=True)
class Attempt:
    """One target's try. error: None (answered), `connect`, `timeout`, `lost`, `bad_response`, `status` (retried
    elsewhere), `engine_error` (error event in a 200 stream), `cut` (broke off after its first byte), `client_gone`,
    `internal`. seconds: from sending to the end. stale_retries: fresh connections after a stale one."""

    target_id: str
    status: int | None = None
    error: str | None = None
    message: str = ""
    seconds: float = 0.0
    stale_retries: int = 0


@dataclass(slots=True)
class Outcome:
    """What became of a request. target_id: who answered, None if nobody did. status: what the client got (None: it
    left before). error: as in Attempt, None if all is well, `no_replica` if there was none to try. Times in seconds
    from the start of forward(); ttft_s: to the first content byte of the answer."""

    target_id: str | None = None
    status: int | None = None
    attempts: list[Attempt] = field(default_factory=list)
    ttft_s: float | None = None
    total_s: float = 0.0
    usage: Usage | None = None
    error: str | None = None
    client_gone: bool = False
    events: int = 0
    body_bytes: int = 0


class Plan(Protocol):
    """Where a request may go and who wants to know. Each on_send is followed by exactly one on_end."""

    def next_target(self, excluded: set[str], last_error: UpstreamError | None) -> Target | None:
        """The next target, none of `excluded` (ids tried already); None: no other. last_error: why the last failed."""
        ...

    def response_headers(self, target: Target) -> Headers:
        """Headers added to the target's answer (receipts)."""
        ...

    def on_send(self, target: Target) -> None:
        """The target is about to get the request."""
        ...

    def on_first_byte(self, target: Target, status: int, seconds: float) -> None:
        """The first byte of its answer's body is here, seconds after on_send; nothing went to the client yet."""
        ...

    def on_end(self, target: Target, attempt: Attempt) -> None:
        """The target is done with the request, however it ended."""
        ...


class Forwarder:
    """Sends requests through one pool under one retry policy."""

    def __init__(
        self,
        pool: UpstreamPool,
        policy: RetryPolicy | None = None,
        *,
        retry_after_s: int = 1,
        headers: HeaderRules = PASS_ALL,
    ) -> None:
        self.pool = pool
        self.headers = headers
        self.policy = policy or RetryPolicy()
        self._retry_after = [(b"retry-after", b"%d" % retry_after_s)]

    async def forward(self, request: Request, response: Response, plan: Plan) -> Outcome:
        """Answer `request` from the plan's targets; an error answer if none has one.

        A client that leaves ends it at once: the upstream connection is closed and the outcome says client_gone (the
        task's cancellation by the server is consumed). Any other cancellation passes through, callbacks balanced.
        """
        forwarding = _Forwarding(self.pool, self.policy, self.headers, request, response, plan)
        outcome = forwarding.outcome
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
            self._give_up(forwarding, response)
        outcome.total_s = time.monotonic() - forwarding.started
        return outcome

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
        "_headers",
        "_plan",
        "_pool",
        "_request",
        "_response",
        "_state",
        "errors",
        "outcome",
        "started",
    )

    def __init__(
        self,
        pool: UpstreamPool,
        policy: RetryPolicy,
        headers: HeaderRules,
        request: Request,
        response: Response,
        plan: Plan,
    ) -> None:
        self._pool = pool
        self._headers = headers
        self._request = request
        self._response = response
        self._plan = plan
        self._state = RetryState(policy)
        self._excluded: set[str] = set()
        self.started = time.monotonic()
        self._deadline = self.started + policy.total_s
        self.errors: list[UpstreamError] = []
        self.outcome = Outcome()

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
                verdict = self._state.after(error)
                if verdict is Verdict.SAME_FRESH:
                    fresh = True
                    attempt.stale_retries += 1
                    continue
                self._note(attempt, error)
                if verdict is Verdict.STOP or time.monotonic() >= self._deadline:
                    return None
                return self._plan.next_target(self._excluded, error)

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
            connection = await self._pool.connect(target.origin, max(0.0, self._deadline - time.monotonic()))
        try:
            timeout = min(self._pool.limits.first_byte_timeout_s, self._deadline - time.monotonic())
            body = self._request.body if target.body is None else target.body
            answer = await connection.send(self._request.method, head, body, timeout)
            attempt.status = answer.status
            self._plan.on_first_byte(target, answer.status, time.monotonic() - begun)
            failure = self._failure(connection, answer)
            if failure is not None:
                error = StatusFailure(failure, answer.status)
                following = self._plan.next_target(self._excluded, error)
                if following is not None:
                    self._note(attempt, error)
                    connection.discard()
                    return following
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

    def _failure(self, connection: UpstreamConnection, answer: ResponseHead) -> str | None:
        """Why this answer, of which the client has seen nothing, is worth another target; None if it is not."""
        status = answer.status
        if self._state.may_retry_status(status):
            return f"answered {status}"
        died = status == 500 or failed_before_first_token(answer.header(b"content-type"), connection.peek())
        if died and self._state.may_retry_failure():
            return f"answered {status}" if status != 200 else "failed before its first token"
        return None

    async def _answer(
        self, target: Target, attempt: Attempt, connection: UpstreamConnection, head: ResponseHead
    ) -> None:
        response, outcome = self._response, self.outcome
        watch = ResponseWatcher(head.header(b"content-type"), head.header(b"content-encoding"))
        relay = Relay(response, watch, head.framing)
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
            relay.finish()
            if watch.error_seen:
                attempt.error = "engine_error"
        except UpstreamError as error:
            self._note(attempt, error)
            attempt.error = "cut"
            relay.fail(502, f"the replica's answer broke off: {error}")
        finally:
            response.attach(None)
            outcome.error = attempt.error
            outcome.ttft_s = watch.first_at - self.started if watch.first_at is not None else None
            outcome.usage = watch.usage()
            outcome.events, outcome.body_bytes = watch.events, watch.bytes


def error_kind(error: UpstreamError) -> str:
    """`Attempt.error` for a failed try."""
    if isinstance(error, StatusFailure):
        return "status"
    if isinstance(error, UpstreamTimeout):
        return "connect" if error.stage == "connect" else "timeout"
    if isinstance(error, ConnectFailed):
        return "connect"
    if isinstance(error, ConnectionLost):
        return "lost"
    assert isinstance(error, BadResponse)
    return "bad_response"
