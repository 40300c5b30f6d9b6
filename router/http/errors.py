"""Errors of the data plane and the shape in which clients see them."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Protocol

Headers = list[tuple[bytes, bytes]]


class HttpError(Exception):
    """A request that is refused. `status` goes to the client with `message`, and with Retry-After if it is 503."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class ErrorFormat(Protocol):
    """How one protocol family writes its errors. A handler may set `Response.errors` to another family's format."""

    def body(self, status: int, message: str) -> tuple[Headers, bytes]:
        """Headers (content type) and body of a whole error answer."""
        ...

    def event(self, status: int, message: str) -> bytes:
        """SSE bytes that end a stream which failed after its first byte, with the family's end marker if it has one."""
        ...


class OpenAIErrors:
    """`{"error": {"message", "type", "param", "code"}}`, as vLLM and OpenAI write it; streams end with `[DONE]`."""

    def body(self, status: int, message: str) -> tuple[Headers, bytes]:
        return [(b"content-type", b"application/json")], self._json(status, message)

    def event(self, status: int, message: str) -> bytes:
        return b"data: " + self._json(status, message) + b"\n\ndata: [DONE]\n\n"

    @staticmethod
    def _json(status: int, message: str) -> bytes:
        error = {"message": message, "type": error_type(status), "param": None, "code": status}
        return json.dumps({"error": error}, separators=(",", ":")).encode()


OPENAI_ERRORS = OpenAIErrors()

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable",
    504: "timeout_error",
}


def error_type(status: int) -> str:
    """OpenAI's `error.type` for an HTTP status."""
    if status in _TYPES:
        return _TYPES[status]
    return "server_error" if status >= 500 else "invalid_request_error"


def reason_phrase(status: int) -> bytes:
    """`b"Not Found"` for 404; empty for a status without a registered phrase."""
    return _PHRASES.get(status, b"")


_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


class UpstreamError(Exception):
    """A try that brought no (whole) answer. The message names the origin, never the request's content."""


class ConnectFailed(UpstreamError):
    """No connection: nothing of the request was sent."""


class PoolFull(UpstreamError):
    """As many connections are open to the origin as may be: nothing of the request was sent."""


class ConnectionLost(UpstreamError):
    """The connection ended while an answer was due.

    stage: `before_head` (no byte of the answer), `in_head`, `before_body` (head complete, no body byte yet), `in_body`.
    reused: the connection had served a request before, so `before_head` may only mean that it was stale.
    """

    def __init__(self, message: str, *, stage: str, reused: bool) -> None:
        super().__init__(message)
        self.stage = stage
        self.reused = reused


class UpstreamTimeout(UpstreamError):
    """stage: `connect`, `first_byte` (no byte of the body in time), `idle` (a stalled body)."""

    def __init__(self, message: str, *, stage: str) -> None:
        super().__init__(message)
        self.stage = stage


class BadResponse(UpstreamError):
    """The upstream does not speak HTTP/1.x as RFC 9112 wants it. in_body: the answer's head was already accepted."""

    def __init__(self, message: str, *, in_body: bool = False) -> None:
        super().__init__(message)
        self.in_body = in_body
