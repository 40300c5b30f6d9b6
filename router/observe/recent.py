"""The last requests, and the last quarter of an hour in buckets of five seconds: for /requests and the dashboard."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from router.prompt.stage import UNREAD
from router.proxy.plan import Outcome

BUCKET_S = 5
BUCKETS = 180
MAX_BREAKS = 100


@dataclass(slots=True)
class Passed:
    """A request that was passed on with its prompt unread; its record is made when somebody asks for it."""

    id: str
    path: str
    model: str
    tenant: str
    reason: str
    seconds: dict[str, float]
    at: float = 0.0
    status: int = 0
    outcome: Outcome = field(default_factory=Outcome)
    seq: int = 0

    def told(self) -> dict[str, Any]:
        """As JSON, with the fields of every record; None where only reading the prompt would tell."""
        outcome, usage = self.outcome, self.outcome.usage
        return {
            "id": self.id,
            "at": round(self.at, 3),
            "path": self.path,
            "model": self.model,
            "tenant": self.tenant,
            "session": None,
            "step": None,
            "relation": None,
            "status": self.status,
            "replica": outcome.target_id,
            "reason": self.reason,
            "prompt_tokens": None,
            "matched_tokens": None,
            "best_matched_tokens": None,
            "cached_tokens": usage.cached_tokens if usage is not None else None,
            "engine_prompt_tokens": usage.prompt_tokens if usage is not None else None,
            "completion_tokens": usage.completion_tokens if usage is not None else None,
            "tokens": UNREAD,
            "cause": None,
            "computed_tokens": {},
            "break": None,
            **timing(outcome, self.seconds),
            "candidates": [],
            "seq": self.seq,
        }


def timing(outcome: Outcome, seconds: Mapping[str, float]) -> dict[str, Any]:
    """The part of a record that says how long what took, and what went wrong."""
    return {
        "ttft_ms": None if outcome.ttft_s is None else round(outcome.ttft_s * 1000, 2),
        "total_ms": round(outcome.total_s * 1000, 2),
        "stages_ms": {stage: round(taken * 1000, 3) for stage, taken in seconds.items()},
        "tries": [[attempt.target_id, attempt.error] for attempt in outcome.attempts],
        "error": outcome.error,
    }


class Recent:
    """Records of requests by id, the oldest forgotten. Records are told in the order in which they were last put."""

    def __init__(self, size: int = 2000) -> None:
        self._size = size
        self._breaks: deque[dict[str, Any]] = deque(maxlen=min(size, MAX_BREAKS))
        self._records: OrderedDict[tuple[str, str], dict[str, Any] | Passed] = OrderedDict()  # by tenant and id
        self.last_seq = 0
        """Microseconds since 1970, or one more than the last: workers' records have one order."""

    def put(self, record: dict[str, Any] | Passed) -> None:
        """Remember a record under its `id`, in place of an earlier one of its tenant's with the same id."""
        self.last_seq = max(self.last_seq + 1, time.time_ns() // 1000)
        if isinstance(record, Passed):
            record.seq, key = self.last_seq, (record.tenant, record.id)
        else:
            record["seq"], key = self.last_seq, (record["tenant"], record["id"])
        self._records.pop(key, None)
        self._records[key] = record
        if len(self._records) > self._size:
            self._records.popitem(last=False)
        if isinstance(record, dict) and record.get("break") is not None:
            self._breaks.append(record)

    def breaks(self) -> Iterator[dict[str, Any]]:
        """The last records with a prefix break, the newest first."""
        yield from reversed(self._breaks)

    def get(self, request_id: str, tenant: str | None = None) -> dict[str, Any] | None:
        """A record, of that tenant's or (None) the newest of anyone's; None if it is not known (any more)."""
        if tenant is not None:
            record = self._records.get((tenant, request_id))
        else:
            found = (each for (_, known), each in reversed(self._records.items()) if known == request_id)
            record = next(found, None)
        return record.told() if isinstance(record, Passed) else record

    def latest(self, limit: int, *, since: int = 0) -> Iterator[dict[str, Any]]:
        """The newest records first, at most `limit`, with a `seq` above `since`."""
        for count, record in enumerate(reversed(self._records.values())):
            told = record.told() if isinstance(record, Passed) else record
            if count >= limit or told["seq"] <= since:
                return
            yield told


@dataclass(slots=True)
class Bucket:
    """Five seconds."""

    at: int
    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    breaks: int = 0
    answered: int = 0
    ttft_s: float = 0.0


class Timeline:
    """Fifteen minutes of traffic. `clock`: seconds since 1970."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._buckets: deque[Bucket] = deque(maxlen=BUCKETS)

    def now(self) -> Bucket:
        """The bucket to count in."""
        at = int(self._clock()) // BUCKET_S * BUCKET_S
        if not self._buckets or self._buckets[-1].at != at:
            self._buckets.append(Bucket(at))
        return self._buckets[-1]

    def told(self) -> list[dict[str, Any]]:
        """As JSON, oldest first; times without traffic are left out."""
        oldest = int(self._clock()) - BUCKET_S * BUCKETS
        return [asdict(bucket) for bucket in self._buckets if bucket.at >= oldest]
