"""What forwarding is told and what it tells: targets, tries, the outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from router.http.errors import Headers, UpstreamError
from router.http.upstream import Origin
from router.proxy.watch import Usage


class Target(msgspec.Struct, frozen=True):
    """A replica to send to. extra_headers are added to the client's own. body: sent in the place of the client's.
    overload: the replica's status when its queue is full. closing: makes an SSE comment for after the last event of a
    stream that came whole, for clients that asked for one."""

    id: str
    origin: Origin
    extra_headers: Headers = []
    body: bytes | None = None
    overload: int = 503
    closing: Callable[[Usage | None], bytes] | None = None


class Attempt(msgspec.Struct, gc=False):
    """One target's try. error: None (answered), `connect`, `pool_full`, `timeout`, `lost`, `bad_response`, `status`
    (retried elsewhere), `engine_error` (error event in a 200 stream), `request_error` (such an event that blames the
    request), `cut` (broke off after its first byte), `client_gone`, `internal`. seconds: from sending to the end.
    connect_s: spent on opening connections, 0 with one that was open. stale_retries: fresh ones after a stale one.
    tokens: of a complete answer, as the engine reports or by its events; 0 if neither says."""

    target_id: str
    status: int | None = None
    error: str | None = None
    message: str = ""
    seconds: float = 0.0
    connect_s: float = 0.0
    stale_retries: int = 0
    tokens: int = 0


class Outcome(msgspec.Struct, gc=False):
    """What became of a request. target_id: who answered, None if nobody did. status: what the client got (None: it
    left before). error: as in Attempt, None if all is well, `no_replica` if there was none to try, `poison` if the
    request is refused because replicas went down under it, `held` if it may be forwarded again. Times in seconds
    from the start of forward(); ttft_s: to the first content byte of the answer.
    opening: the answer's first bytes, at most 1 kB."""

    target_id: str | None = None
    status: int | None = None
    attempts: list[Attempt] = []
    ttft_s: float | None = None
    total_s: float = 0.0
    usage: Usage | None = None
    error: str | None = None
    client_gone: bool = False
    events: int = 0
    body_bytes: int = 0
    opening: bytes = b""


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
        """The first byte of the answer that goes to the client is here, seconds after on_send."""
        ...

    async def alive(self, target: Target) -> bool:
        """Whether the target, whose connection was lost, still answers: then the request did not kill it."""
        ...

    def on_end(self, target: Target, attempt: Attempt) -> None:
        """The target is done with the request, however it ended."""
        ...
