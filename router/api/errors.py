"""Errors in the client's own protocol: OpenAI's shape, and Anthropic's for /v1/messages."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from router.http.errors import OPENAI_ERRORS, ErrorFormat, Headers, error_type


class ApiError(Exception):
    """A request refused by the router. `param` names the field at fault, `code` is OpenAI's slug."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class AnthropicErrors:
    """`{"type": "error", "error": {"type", "message"}}`; a broken stream ends with an `error` event."""

    def body(self, status: int, message: str) -> tuple[Headers, bytes]:
        """A whole error answer."""
        return [(b"content-type", b"application/json")], self._json(status, message)

    def event(self, status: int, message: str) -> bytes:
        """The last event of a stream that failed."""
        return b"event: error\ndata: " + self._json(status, message) + b"\n\n"

    @staticmethod
    def _json(status: int, message: str) -> bytes:
        kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}})


ANTHROPIC_ERRORS = AnthropicErrors()


def format_at(path: str) -> ErrorFormat:
    """How errors are written to who asks for `path`."""
    return ANTHROPIC_ERRORS if path.startswith("/v1/messages") else OPENAI_ERRORS


def answer(error: ApiError, errors: ErrorFormat) -> tuple[Headers, bytes]:
    """Headers and body of the answer that says `error`."""
    if errors is OPENAI_ERRORS:
        headers: Headers = [(b"content-type", b"application/json")]
        kind = error_type(error.status)
        said = {"message": error.message, "type": kind, "param": error.param, "code": error.code or error.status}
        body = msgspec.json.encode({"error": said})
    else:
        headers, body = errors.body(error.status, error.message)
    if error.status == 401:
        headers = [*headers, (b"www-authenticate", b"Bearer")]
    if error.status == 405:
        headers = [*headers, (b"allow", b"POST, OPTIONS")]
    if error.retry_after_s is not None:
        headers = [*headers, (b"retry-after", str(error.retry_after_s).encode())]
    return headers, body


def unknown_model(name: str, known: Sequence[str]) -> ApiError:
    """The refusal of a model that no replica serves."""
    return ApiError(
        404, f"The model `{name}` does not exist. Available: {', '.join(known)}.", param="model", code="model_not_found"
    )
