"""The last requests, and the last quarter of an hour in buckets of five seconds: for /requests and the dashboard."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from router.observe.records import Passed, Record

BUCKET_S = 5
BUCKETS = 180
MAX_BREAKS = 100


class Recent:
    """Records of requests by id, the oldest forgotten. Records are told in the order in which they were last put."""

    def __init__(self, size: int = 2000) -> None:
        self._size = size
        self._breaks: deque[Record] = deque(maxlen=min(size, MAX_BREAKS))
        self._records: OrderedDict[tuple[str, str], Record | Passed] = OrderedDict()  # by tenant and id
        self.last_seq = 0
        """Microseconds since 1970, or one more than the last: workers' records have one order."""

    def put(self, record: Record | Passed) -> None:
        """Remember a record under its `id`, in place of an earlier one of its tenant's with the same id."""
        self.last_seq = record.seq = max(self.last_seq + 1, time.time_ns() // 1000)
        key = (record.tenant, record.id)
        self._records.pop(key, None)
        self._records[key] = record
        if len(self._records) > self._size:
            self._records.popitem(last=False)
        if isinstance(record, Record) and record.broken is not None:
            self._breaks.append(record)

    def breaks(self) -> Iterator[dict[str, Any]]:
        """The last records with a prefix break, the newest first."""
        for record in reversed(self._breaks):
            yield record.told()

    def get(self, request_id: str, tenant: str | None = None) -> dict[str, Any] | None:
        """A record, of that tenant's or (None) the newest of anyone's; None if it is not known (any more)."""
        if tenant is not None:
            record = self._records.get((tenant, request_id))
        else:
            found = (each for (_, known), each in reversed(self._records.items()) if known == request_id)
            record = next(found, None)
        return None if record is None else record.told()

    def latest(self, limit: int, *, since: int = 0) -> Iterator[dict[str, Any]]:
        """The newest records first, at most `limit`, with a `seq` above `since`."""
        for count, record in enumerate(reversed(self._records.values())):
            if count >= limit or record.seq <= since:
                return
            yield record.told()


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
