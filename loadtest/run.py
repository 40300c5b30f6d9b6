"""Running a workload against an endpoint: when sessions start, what runs at once, what came of it.

Three ways to start sessions:
* closed loop (`concurrency` alone): so many agents, each takes the next session when it has finished one;
* open loop (`request_rate`): sessions arrive at that rate whatever the endpoint does;
* recorded times (a workload whose sessions have `start_s`, no `request_rate`).
In the last two `concurrency`, if given, bounds the sessions that run at once; what waits is sent late, and counted so.
`in_flight` bounds the requests that run at once, in any of the three.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from loadtest.arrivals import arrival_times
from loadtest.client import Client
from loadtest.engines import EngineCounters, FleetCounters, scrape_all
from loadtest.ideal import ideal_hit_rate
from loadtest.progress import Progress
from loadtest.record import RequestRecord
from loadtest.summary import Summary, summarize
from loadtest.types import Session, Step, Workload, WorkloadError

DEFAULT_CONCURRENCY = 8

Sleep = Callable[[float], Awaitable[None]]
Send = Callable[[Session, Step, RequestRecord], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run: what was asked for, every request, and the summary."""

    base_url: str
    model: str
    workload: str
    settings: Mapping[str, object]
    records: Sequence[RequestRecord]
    summary: Summary
    engines: FleetCounters | None


async def run_workload(
    base_url: str,
    workload: Workload,
    *,
    model: str,
    concurrency: int | None = None,
    in_flight: int | None = None,
    request_rate: float | None = None,
    burstiness: float = 1.0,
    stream: bool = True,
    progress: Callable[[Progress], None] | None = None,
    timeout_s: float = 600.0,
    headers: Mapping[str, str] | None = None,
    session_header: str | None = None,
    extra_body: Mapping[str, Any] | None = None,
    replica_header: str = "x-prefix-router-replica",
    replicas: int | None = None,
    engine_metrics: Sequence[str] = (),
    goodput: Mapping[str, float] | None = None,
    seed: int = 0,
) -> RunResult:
    """Send a workload to `base_url` (up to, not including, `/v1`) and measure.

    concurrency: sessions at once; None: 8 in a closed loop, unbounded otherwise. in_flight: requests at once, first
    come first served; None: no bound (with 1, agents take turns and no request meets another). request_rate: sessions
    a second, `math.inf` starts all at once. session_header: name of a header that carries the session's id; None sends
    none (the router has to find the lineage itself). replica_header: response header that names the replica. replicas:
    fleet size, for the hotspot. engine_metrics: `/metrics` addresses of the engines, read before and after. goodput:
    objectives in seconds by "ttft", "tpot", "e2el".

    Failed requests are counted, not raised. Raises WorkloadError for a workload without requests, ConnectionError if an
    engine's metrics cannot be read.
    """
    if not workload.requests:
        raise WorkloadError(f"workload {workload.name!r} has no requests")
    if concurrency is not None and concurrency < 1:
        raise WorkloadError(f"concurrency must be at least 1, got {concurrency}")
    if in_flight is not None and in_flight < 1:
        raise WorkloadError(f"in_flight must be at least 1, got {in_flight}")
    before = await scrape_all(engine_metrics)
    tally = Tally(workload.requests, progress)
    client = Client(
        base_url,
        model,
        stream=stream,
        timeout_s=timeout_s,
        headers=headers,
        extra=extra_body,
        replica_header=replica_header,
    )
    async with client:

        async def send(session: Session, step: Step, record: RequestRecord) -> None:
            await client.send(step, record, {session_header: session.id} if session_header else None)
            tally.add(step, record)

        starts = start_times(workload, concurrency, request_rate, burstiness, seed)
        bound = concurrency or (DEFAULT_CONCURRENCY if starts is None else None)
        await Schedule(send, bound, in_flight).run(workload.sessions, starts)
    duration_s = tally.elapsed_s()
    after = await scrape_all(engine_metrics)
    records = [record for _, record in tally.finished]
    ideal, exact = await asyncio.to_thread(ideal_of, tally.finished)
    settings = {
        **workload.settings,
        "concurrency": bound,
        "in_flight": in_flight,
        "request_rate": request_rate,
        "burstiness": burstiness,
        "stream": stream,
        "recorded_times": starts is not None and request_rate is None,
    }
    return RunResult(
        base_url=base_url,
        model=model,
        workload=workload.name,
        settings=settings,
        records=records,
        summary=summarize(
            records,
            duration_s,
            replicas=replicas or len(engine_metrics) or None,
            ideal=ideal,
            ideal_exact=exact,
            goodput=goodput,
        ),
        engines=EngineCounters.difference(before, after) if engine_metrics else None,
    )


def start_times(
    workload: Workload, concurrency: int | None, request_rate: float | None, burstiness: float, seed: int
) -> Iterator[float] | None:
    """When each session is due, in order; None in a closed loop."""
    if request_rate is not None:
        if math.isinf(request_rate):
            return iter([0.0] * len(workload.sessions))
        return arrival_times(request_rate, burstiness, seed)
    if workload.timed:
        return iter([session.start_s or 0.0 for session in workload.sessions])
    return None


class Schedule:
    """Runs sessions in time: steps of a session strictly one after the other, sessions side by side.

    `run(sessions, starts)`: starts None is the closed loop. Time comes from `clock` and `sleep`, so that tests can
    bring their own.
    """

    def __init__(
        self,
        send: Send,
        concurrency: int | None,
        in_flight: int | None = None,
        *,
        clock: Callable[[], float] = perf_counter,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._send = send
        self._limit = asyncio.Semaphore(concurrency) if concurrency else None
        self._turn = asyncio.Semaphore(in_flight) if in_flight else contextlib.nullcontext()
        self._clock = clock
        self._sleep = sleep
        self._began = 0.0

    async def run(self, sessions: Sequence[Session], starts: Iterator[float] | None) -> None:
        self._began = self._clock()
        async with asyncio.TaskGroup() as group:
            for session in sessions:
                due = 0.0 if starts is None else next(starts)
                await self._wait_until(due)
                if self._limit is None:
                    group.create_task(self._session(session, due))
                    continue
                if starts is None:
                    await self._limit.acquire()
                    group.create_task(self._session(session, self._now(), holds=True))
                else:
                    group.create_task(self._session(session, due))

    async def _session(self, session: Session, due: float, *, holds: bool = False) -> None:
        if self._limit is not None and not holds:
            await self._limit.acquire()
        try:
            start = due
            for position, step in enumerate(session.steps):
                due = max(due + step.think_s, start + step.offset_s)
                await self._wait_until(due)
                async with self._turn:
                    now = self._now()
                    await self._send(session, step, RequestRecord(session.id, position + 1, now, max(now - due, 0.0)))
                    due = self._now()
        finally:
            if self._limit is not None:
                self._limit.release()

    async def _wait_until(self, due: float) -> None:
        wait = due - self._now()
        if wait > 0:
            await self._sleep(wait)

    def _now(self) -> float:
        return self._clock() - self._began


class Tally:
    """Collects finished requests in the order in which they were sent, and reports progress."""

    def __init__(self, total: int, progress: Callable[[Progress], None] | None) -> None:
        self._finished: list[tuple[Step, RequestRecord]] = []
        self._progress = progress
        self._state = Progress(0, total, 0, 0.0, 0, 0)
        self._began = perf_counter()

    def add(self, step: Step, record: RequestRecord) -> None:
        self._finished.append((step, record))
        state = self._state
        state.done += 1
        state.errors += not record.ok
        state.elapsed_s = self.elapsed_s()
        if record.prompt_tokens is not None and record.cached_tokens is not None:
            state.prompt_tokens += record.prompt_tokens
            state.cached_tokens += record.cached_tokens
        if self._progress is not None:
            self._progress(state)

    def elapsed_s(self) -> float:
        return perf_counter() - self._began

    @property
    def finished(self) -> list[tuple[Step, RequestRecord]]:
        return sorted(self._finished, key=lambda pair: pair[1].start_s)


def ideal_of(finished: Sequence[tuple[Step, RequestRecord]]) -> tuple[float | None, bool]:
    """Ideal hit rate of the answered requests, and whether it is exact."""
    answered = [(step.prompt, record.prompt_tokens) for step, record in finished if record.ok]
    exact = bool(answered) and answered[0][0].chain().exact
    return ideal_hit_rate((prompt.chain(), tokens) for prompt, tokens in answered), exact
