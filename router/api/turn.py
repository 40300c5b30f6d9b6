"""One request's way through the admission queue, as often as it has to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import monotonic

from router.api.errors import ApiError
from router.api.keys import Grant
from router.engines import EngineKind
from router.fleet.fleet import Fleet
from router.fleet.replica import Health, Replica
from router.http.message import Request
from router.prompt.requests import ApiRequest, Endpoint
from router.proxy.admission import Admission, Refused
from router.proxy.plan import Attempt, Outcome
from router.proxy.queue import Waiter

DEFAULT_ANSWER_TOKENS = 256
MAX_ANSWER_TOKENS = 1 << 17
"""What a request asks for beyond it does not count: a number no engine generates would cost its tenant all turns."""
_SECONDS = (b"x-request-timeout", b"x-stainless-read-timeout")
_MILLISECONDS = (b"x-request-timeout-ms", b"x-envoy-expected-rq-timeout-ms")
_TIMEOUTS = frozenset(_SECONDS + _MILLISECONDS)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long requests wait: queue_s for room, down_s for a replica to come up when all are down."""

    queue_s: float = 300.0
    down_s: float = 5.0


class Turns:
    """Makes a Turn for each request."""

    def __init__(self, fleet: Fleet, admission: Admission, patience: Patience) -> None:
        self.fleet = fleet
        self.admission = admission
        self.patience = patience

    def turn(self, request: Request, parsed: ApiRequest, grant: Grant, tokens: int, replicas: list[Replica]) -> Turn:
        """tokens: of the prompt. replicas: the model's, whose kind gives priorities their sense."""
        info = replicas[0].info
        return Turn(self, request, parsed, grant, tokens, "vllm" if info is None else info.kind)


class Turn:
    """`wait`, forward within `left_s`, and `again` as long as nobody did anything for the request; at last `end`."""

    __slots__ = (
        "_admission",
        "_asked",
        "_attempts",
        "_began",
        "_coming",
        "_deadline",
        "_down_until",
        "_gives_up",
        "_last",
        "_made",
        "_number",
        "_turns",
        "bypasses",
        "waited_s",
    )

    def __init__(
        self, turns: Turns, request: Request, parsed: ApiRequest, grant: Grant, tokens: int, kind: EngineKind
    ) -> None:
        self._turns = turns
        self._admission = turns.admission
        self._began = now = monotonic()
        self._gives_up = now + client_timeout_s(request)
        self._deadline = min(now + turns.patience.queue_s, self._gives_up)
        self._down_until = math.inf
        self._attempts: list[Attempt] = []
        self._coming = False
        self._last = False
        self.waited_s = 0.0
        self.bypasses = parsed.endpoint is Endpoint.OTHER
        self._number = turns.admission.queue.number()
        self._asked = request, parsed, grant.tenant, tokens, kind
        self._made: Waiter | None = None

    @property
    def _waiter(self) -> Waiter:
        """Its place in the queue, the same each time; most requests never need one."""
        if self._made is None:
            request, parsed, tenant, tokens, kind = self._asked
            wanted = DEFAULT_ANSWER_TOKENS if parsed.max_tokens is None else min(parsed.max_tokens, MAX_ANSWER_TOKENS)
            self._made = Waiter(
                rank=rank(request, parsed, kind),
                number=self._number,
                tenant=tenant or parsed.salt,
                model=parsed.model,
                sequences=parsed.n * max(1, len(parsed.prompts)),
                cost=max(1.0, tokens + parsed.n * wanted),
            )
        return self._made

    async def wait(self, replicas: list[Replica]) -> bool:
        """Until it may be sent to one of `replicas`, the model's candidates; True if time passed. Raises ApiError."""
        turns, admission = self._turns, self._admission
        up = replicas[0].health is Health.UP
        if self.bypasses or (up and not turns.fleet.bounded and not admission.queue):
            return False
        waiter, begun = self._waiter, monotonic()
        deadline = self._deadline
        if replicas[0].health is Health.DOWN:
            self._down_until = min(self._down_until, begun + turns.patience.down_s, deadline)
            deadline = self._down_until
            if begun >= deadline:
                self._last = True
                return False
        if admission.open_to(waiter.model, waiter.sequences):
            self._coming = True
            return False
        try:
            await admission.wait(waiter, deadline)
        except Refused as refused:
            if refused.reason == "deadline" and deadline == self._down_until:
                self._last = True  # nobody came up: whoever is there gets a last chance
                return True
            raise refusal(refused, self._gives_up <= monotonic()) from None
        finally:
            self.waited_s += monotonic() - begun
        self._coming = True
        return True

    def landed(self) -> None:
        """It was sent, or never will be."""
        if self._coming:
            self._coming = False
            self._admission.landed(self._waiter.model, self._waiter.sequences)

    @property
    def hold(self) -> bool:
        """Whether it could wait once more."""
        return not (self.bypasses or self._last) and monotonic() < self._deadline

    @property
    def left_s(self) -> float:
        """Until the client gives up."""
        return max(0.0, self._gives_up - monotonic())

    def again(self, outcome: Outcome) -> bool:
        """Whether the request has to wait and be forwarded once more. Else the outcome is completed with the past."""
        self.landed()
        if outcome.error == "held":
            self._attempts += outcome.attempts
            return True
        if self._attempts or self.waited_s:
            outcome.attempts[:0] = self._attempts
            passed = monotonic() - self._began - outcome.total_s
            outcome.total_s += passed
            outcome.ttft_s = None if outcome.ttft_s is None else outcome.ttft_s + passed
        return False


def refusal(refused: Refused, client_gave_up: bool) -> ApiError:
    """What the client is told."""
    if refused.reason == "share":
        message, status, code = "Your share of the waiting requests is full.", 429, "queue_share_full"
    elif refused.reason == "queue_full":
        message, status, code = "All replicas are busy and too many requests wait already.", 503, "queue_full"
    elif client_gave_up:
        message, status, code = "No replica had room within the request's own timeout.", 504, "timeout"
    else:
        message, status, code = "No replica had room in time.", 503, "queue_timeout"
    return ApiError(status, message, code=code, retry_after_s=refused.retry_after_s)


def client_timeout_s(request: Request) -> float:
    """How long the client waits for the first byte, as it says: X-Request-Timeout and the OpenAI client's
    X-Stainless-Read-Timeout in seconds, X-Request-Timeout-Ms and Envoy's X-Envoy-Expected-Rq-Timeout-Ms; else inf."""
    found = math.inf
    if _TIMEOUTS.isdisjoint(request.names):
        return found
    for names, unit in ((_SECONDS, 1.0), (_MILLISECONDS, 0.001)):
        for name in names:
            text = request.header(name)
            if text:
                try:
                    value = float(text) * unit
                except ValueError:
                    continue
                if value > 0:  # NaN is not
                    found = min(found, value)
    return found


def rank(request: Request, parsed: ApiRequest, kind: EngineKind) -> int:
    """Smaller goes first: vLLM's priority as it is (header before body), SGLang's negated."""
    header = request.header(b"x-vllm-priority") if kind == "vllm" else None
    try:
        value = int(header) if header else parsed.body.get("priority")
    except ValueError:
        value = None
    if not isinstance(value, int) or isinstance(value, bool):
        return 0
    return -value if kind == "sglang" else value
