"""What an answer says about itself, read from its bytes as they pass: usage, errors, first token. No I/O."""

from __future__ import annotations

import re

import msgspec

from router.http.framing import events_end

_MARK = re.compile(rb'"(?:usage|meta_info)":\s*\{')
_FIELDS = re.compile(
    rb'"(prompt_tokens|completion_tokens|cached_tokens|input_tokens|output_tokens|cache_read_input_tokens)":\s*(\d{1,12})'
)
_ERROR = re.compile(rb'(?:^|\n)data:\s*\{\s*(?:"error":\s*[{"]|"type":\s*"error")')
_FAILED = re.compile(rb'\s*(?:event:\s*error\s+)?data:\s*\{\s*(?:"error":\s*[{"]|"type":\s*"error")')
_REQUEST_AT_FAULT = re.compile(rb'"code":\s*"?4\d\d\b|"type":\s*"(?:BadRequestError|invalid_request_error)"')
_WINDOW_BYTES = 4096
_CARRY_BYTES = 64
_OPENING_BYTES = 1024


def failed_before_first_token(content_type: bytes, payload: bytes) -> bool:
    """Whether a stream's first piece is an engine's error event: status 200, yet nothing was generated.

    Not one that blames the request (a 4xx code): another replica would say the same.
    """
    if content_type[:17].lower() != b"text/event-stream" or _FAILED.match(payload) is None:
        return False
    return _REQUEST_AT_FAULT.search(payload) is None


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts as the engine reports them; None: not reported.

    prompt_tokens: `usage.prompt_tokens`, or `input_tokens` (Anthropic, Responses). cached_tokens:
    `usage.prompt_tokens_details.cached_tokens`, `input_tokens_details.cached_tokens`, `meta_info.cached_tokens`
    (SGLang's /generate) or `cache_read_input_tokens` (Anthropic).
    """

    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None


class ResponseWatcher:
    """Fed an answer's payload. Memory: at most 8 kB + 64 bytes, whatever the answer's size.

    Nothing is parsed while the answer runs: three substring tests for each piece, and a window of 4 kB from the last
    `"usage":{` is kept (and from the first, where Anthropic reports the prompt). Quotes inside the model's text are
    escaped in JSON, so text cannot be mistaken for these marks.
    """

    __slots__ = (
        "_carry",
        "_first",
        "_last",
        "_open",
        "bytes",
        "encoded",
        "engine_at_fault",
        "error_seen",
        "events",
        "first_at",
        "opening",
        "sse",
    )

    def __init__(self, content_type: bytes, content_encoding: bytes) -> None:
        self.sse = content_type[:17].lower() == b"text/event-stream"
        # A compressed body is counted, not read.
        self.encoded = content_encoding.lower() not in (b"", b"identity")
        self._carry = b""
        self._first: bytes | None = None
        self._last: bytes | None = None
        self._open = False  # the last window is not full yet
        self.first_at: float | None = None  # when the first content (no SSE comment) came
        self.events = 0
        self.bytes = 0
        self.opening = b""  # the answer's first bytes, at most 1 kB: where ids of new state are
        self.error_seen = False  # an error event in a stream whose status said 200
        self.engine_at_fault = False  # one that does not blame the request

    def feed(self, payload: bytes, now: float) -> None:
        """Next piece of the payload at monotonic time `now`."""
        self.bytes += len(payload)
        if self.first_at is None and payload and not (self.sse and payload[0] == 0x3A and b"data:" not in payload):
            self.first_at = now
        if self.encoded:
            return
        if not self.opening:
            self.opening = bytes(payload[:_OPENING_BYTES])
        if self._open and self._last is not None:
            self._last += payload[: _WINDOW_BYTES - len(self._last)]
            self._open = len(self._last) < _WINDOW_BYTES
        if self._carry:
            payload = self._carry + payload
        if self.sse:
            self.events += payload.count(b"\n\n") or payload.count(b"\n\r\n")
            if b'"error"' in payload and (error := _ERROR.search(payload)) is not None:
                self.error_seen = True
                if _REQUEST_AT_FAULT.search(payload, error.start()) is None:
                    self.engine_at_fault = True
        if b'"usage"' in payload or b'"meta_info"' in payload:
            self._take_mark(payload)
        # Only a piece that ends within an event can hide half a mark; no event's end is counted twice.
        if payload.endswith(b"\n\n"):
            self._carry = b""
        else:
            end = payload[-_CARRY_BYTES:]
            self._carry = end[events_end(end) :]

    def usage(self) -> Usage | None:
        """The last usage reported, None if there was none."""
        if self._last is None:
            return None
        found: dict[bytes, int] = {}
        for window in (self._last, self._first):
            if window is not None:
                for name, value in _FIELDS.findall(window):
                    found.setdefault(name, int(value))
        if not found:
            return None
        return Usage(
            prompt_tokens=found.get(b"prompt_tokens", found.get(b"input_tokens")),
            completion_tokens=found.get(b"completion_tokens", found.get(b"output_tokens")),
            cached_tokens=found.get(b"cached_tokens", found.get(b"cache_read_input_tokens")),
        )

    def _take_mark(self, payload: bytes) -> None:
        start = max(payload.rfind(b'"usage":'), payload.rfind(b'"meta_info":'))
        mark = _MARK.match(payload, start) if start >= 0 else None
        if mark is None or mark.end() <= len(self._carry):
            return  # null, or already seen in the piece before
        if self._first is None:
            first = payload.find(b'"usage":', len(self._carry), start)
            if self._last is not None:
                self._first = self._last
            elif first >= 0:
                self._first = payload[first : first + _WINDOW_BYTES]
        self._last = payload[start : start + _WINDOW_BYTES]
        self._open = len(self._last) < _WINDOW_BYTES
