"""One replay: a workload through one policy over simulated replicas, as a discrete-event simulation."""

from __future__ import annotations

import gc
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from loadtest.replay.fastforward import FastForward
from loadtest.replay.pool import IdPool
from loadtest.replay.result import Outcome
from loadtest.replay.router import Routed, VirtualRouter
from loadtest.replay.workload import Session, Workload
from replica.simulator.sequence import Sequence
from replica.simulator.timing import TimeModel, time_model
from router.index.types import Delta
from router.routing.types import Policy

PROGRESS_EVERY = 2000


@dataclass(frozen=True, slots=True)
class Settings:
    """The fleet. kv_blocks: per replica. slow: replica number -> its steps take this many times as long.
    kv_delay_s: from the end of a step to its change in the router's index. network_s: one way, router to replica."""

    replicas: int = 8
    kv_blocks: int = 25_000
    timing: TimeModel = field(default_factory=lambda: time_model("8b-h100"))
    slow: Mapping[int, float] = field(default_factory=dict)
    kv_delay_s: float = 0.005
    network_s: float = 0.0005
    overlay_ttl_s: float = 5.0
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"replicas must be at least 1, got {self.replicas}")
        for name in ("kv_delay_s", "network_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if any(not 0 <= place < self.replicas or factor <= 0 for place, factor in self.slow.items()):
            raise ValueError(
                f"slow names replicas 0 to {self.replicas - 1} with factors above 0, got {dict(self.slow)}"
            )


class _Node:
    __slots__ = ("due", "place", "pool", "scheduler")

    def __init__(self, place: int, block: int, settings: Settings) -> None:
        self.place = place
        self.pool = IdPool(settings.kv_blocks, block)
        self.scheduler = FastForward(
            self.pool,
            settings.timing,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_num_seqs=settings.max_num_seqs,
        )
        self.scheduler.slow = settings.slow.get(place, 1.0)
        self.due = math.inf


class _Live:
    """A session under way."""

    __slots__ = ("home", "keys", "session", "step")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.keys = session.keys()
        self.step = 0
        self.home = -1


@dataclass(slots=True, eq=False)
class _Job(Sequence):
    live: _Live | None = None
    routed: Routed | None = None


class Replay:
    """`run` once. `router` and `nodes` stay readable afterwards."""

    def __init__(self, workload: Workload, policy: Policy, settings: Settings) -> None:
        self.workload = workload
        self.settings = settings
        self.now = 0.0
        self.router = VirtualRouter(
            policy, settings.replicas, workload.block, lambda: self.now, settings.overlay_ttl_s, settings.kv_blocks
        )
        self.nodes = [_Node(place, workload.block, settings) for place in range(settings.replicas)]
        self.outcome = Outcome(settings.replicas)
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._count = 0
        self._sessions = iter(workload.sessions)
        self._deltas: deque[tuple[float, str, Delta]] = deque()
        self._bytes: deque[tuple[float, Routed]] = deque()

    def run(self, progress: Callable[[int], None] | None = None) -> Outcome:
        """Everything, to the last answer. Raises ValueError for a call that does not fit into a replica's cache."""
        collecting = gc.isenabled()
        gc.disable()  # nothing here is cyclic, and a collection walks every block of every cache
        try:
            self._next_session()
            heap, told = self._heap, 0
            while heap:
                self.now, _, act, item = heappop(heap)
                act(item)
                if progress is not None and self.outcome.requests - told >= PROGRESS_EVERY:
                    told = self.outcome.requests
                    progress(told)
            self._see(math.inf)
        finally:
            if collecting:
                gc.enable()
        self.outcome.evicted = sum(node.pool.evicted for node in self.nodes)
        self.outcome.prefilled = [node.scheduler.counters.prefilled for node in self.nodes]
        self.outcome.preemptions = sum(node.scheduler.counters.preemptions for node in self.nodes)
        return self.outcome

    def _push(self, at: float, act: Callable[[Any], None], item: Any) -> None:
        self._count += 1
        heappush(self._heap, (at, self._count, act, item))

    def _next_session(self) -> None:
        session = next(self._sessions, None)
        if session is not None:
            self._push(session.start_s, self._start, session)

    def _start(self, session: Session) -> None:
        self._call(_Live(session))
        self._next_session()

    def _call(self, live: _Live) -> None:
        """The next call of a session reaches the router."""
        now, call = self.now, live.session.calls[live.step]
        keys = live.keys if call.keys is None else call.keys
        self._see(now)
        routed = self.router.route(keys[: call.prompt // self.workload.block], call.prompt, live.session.name, now)
        job = _Job(call.prompt, call.output, keys=keys, live=live, routed=routed)  # type: ignore[arg-type]
        self._push(now + self.settings.network_s, self._submit, job)

    def _see(self, now: float) -> None:
        """What the router has learnt by `now`: first bytes, then KV events (ends are seen when they happen)."""
        seen = self._bytes
        while seen and seen[0][0] <= now:
            at, routed = seen.popleft()
            self.router.first_byte(routed, at)
        deltas = self._deltas
        while deltas and deltas[0][0] <= now:
            _, name, delta = deltas.popleft()
            self.router.index.apply(name, delta)

    def _submit(self, job: _Job) -> None:
        assert job.routed is not None
        node = self.nodes[job.routed.place]
        node.scheduler.submit(job, self.now)
        if node.due == math.inf:
            node.scheduler.advance(self.now)
        self._plan(node)

    def _plan(self, node: _Node) -> None:
        due = node.scheduler.next_at
        if due != node.due:
            node.due = due
            if due < math.inf:
                self._push(due, self._step, node)

    def _step(self, node: _Node) -> None:
        now = self.now
        if node.due != now:
            return  # planned before an arrival cut the run short
        step = node.scheduler.advance(now)
        if step is None:
            return
        back = now + self.settings.network_s
        for job in step.emitted:
            assert isinstance(job, _Job)
            if job.generated == 1:
                assert job.routed is not None
                self._bytes.append((back, job.routed))
            if job.finished:
                self._push(back, self._end, job)
        delta = node.pool.take_delta()
        if delta is not None:
            self._deltas.append((now + self.settings.kv_delay_s, self.router.replicas[node.place].id, delta))
        self._plan(node)

    def _end(self, job: _Job) -> None:
        """The answer's last byte passes the router."""
        live, routed, now = job.live, job.routed, self.now
        assert live is not None
        assert routed is not None
        self._see(now)
        self.router.ended(routed, job.keys[: job.computed // self.workload.block], now, job.max_tokens)  # type: ignore[arg-type]
        first = job.first_token_at + self.settings.network_s
        stayed = None if live.home < 0 else live.home == routed.place
        self.outcome.add(job.prompt_len, job.cached, job.max_tokens, routed, first - routed.sent_at, now, stayed)
        live.home = routed.place
        live.step += 1
        calls = live.session.calls
        if live.step < len(calls):
            call = calls[live.step]
            self._push(max(now + call.think_s, live.session.start_s + call.offset_s), self._call, live)
