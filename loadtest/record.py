"""What is known about one request after it ended."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field


@dataclass(slots=True)
class RequestRecord:
    """One request of a run. Times in seconds; None means unknown, and is never replaced by 0.

    step: 1-based place in its session. start_s: when it was sent, from the start of the run. late_s: how long after it
    was due (a client that cannot keep up shows here).
    ttft_s: sent to first content (streams only). itl_s: gaps between chunks with content. decode_s: first to last
    content. e2el_s: sent to the answer's last byte.
    prompt_tokens, cached_tokens, output_tokens: the engine's `usage`.
    replica, reason, matched_tokens, routed_tokens: the router's receipt headers (matched_tokens is what it predicted
    to be cached, routed_tokens its own count of the prompt).
    error: None, or its kind: `http_<status>`, `connect`, `disconnected`, `timeout`, `truncated`, `stream_error`,
    `bad_answer`; detail: the first characters of what was said about it.
    """

    session: str
    step: int
    start_s: float
    late_s: float = 0.0
    ttft_s: float | None = None
    itl_s: array[float] = field(default_factory=lambda: array("d"))
    decode_s: float | None = None
    e2el_s: float | None = None
    status: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    replica: str | None = None
    reason: str | None = None
    matched_tokens: int | None = None
    routed_tokens: int | None = None
    error: str | None = None
    detail: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def prefill_tokens(self) -> int | None:
        """Prompt tokens the engine had to compute; None where it did not say how many were cached."""
        if self.prompt_tokens is None or self.cached_tokens is None:
            return None
        return self.prompt_tokens - self.cached_tokens

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first: needs the engine's count, chunks may hold several tokens."""
        if self.decode_s is None or self.output_tokens is None or self.output_tokens < 2:
            return None
        return self.decode_s / (self.output_tokens - 1)
