"""Continuous batching in steps, without a clock: whoever owns the time calls `advance`.

One step: sequences under way first, in the order they were admitted (one token each once their prompt is computed,
else the next chunk of it), then waiting ones while token budget, sequence slots and room for the *whole* prompt last.
When a running sequence finds no block, the youngest one is preempted: freed, and recomputed later from the front of
the queue. Without I/O, so that a trace can be replayed in virtual time:

    while (at := min(next_arrival, scheduler.next_at)) ...: submit what arrived; scheduler.advance(at)
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from .cache import Cache
from .records import Event
from .sequence import Sequence
from .timing import TimeModel

LATENESS_S = 0.02
"""A step begins where the last one ended if the caller is at most this late: timers' jitter does not add up."""


class QueueFull(Exception):
    """The waiting queue is at its limit; engines answer 503."""


@dataclass(slots=True)
class Step:
    """One engine step. `emitted`: sequences with one new token each, in batch order; filled when it is finished."""

    starts: float
    ends: float
    work: list[tuple[Sequence, int]]
    prefill_tokens: int
    decodes: int
    emitted: list[Sequence] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


@dataclass(slots=True)
class Counters:
    """Totals since start, in tokens unless named otherwise."""

    steps: int = 0
    queried: int = 0
    hit: int = 0
    prefilled: int = 0
    generated: int = 0
    finished_requests: int = 0
    aborted_requests: int = 0
    preemptions: int = 0
    prefill_busy_s: float = 0.0
    ttft_sum_s: float = 0.0
    ttft_count: int = 0


class Scheduler:
    """`max_queued` 0: no limit."""

    def __init__(
        self,
        cache: Cache,
        timing: TimeModel,
        *,
        max_num_batched_tokens: int = 8192,
        max_num_seqs: int = 256,
        max_queued: int = 0,
    ) -> None:
        if max_num_batched_tokens < 1 or max_num_seqs < 1:
            raise ValueError("max_num_batched_tokens and max_num_seqs must be at least 1")
        self.cache = cache
        self.timing = timing
        self.slow = 1.0
        """Multiplies the time of every step that begins from now on."""
        self.counters = Counters()
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self._step: Step | None = None
        self._budget = max_num_batched_tokens
        self._max_seqs = max_num_seqs
        self._max_queued = max_queued

    @property
    def next_at(self) -> float:
        """When the step under way ends; infinity when there is none."""
        return self._step.ends if self._step else math.inf

    def submit(self, seq: Sequence, now: float) -> None:
        """Queue a sequence. Raises QueueFull, or ValueError when it can never fit into the cache."""
        if -(-(seq.prompt_len + seq.max_tokens) // self.cache.block_size) > self.cache.blocks:
            raise ValueError(f"{seq.prompt_len} + {seq.max_tokens} tokens do not fit into {self.cache.blocks} blocks")
        if seq.prompt_len < 1 or seq.max_tokens < 1:
            raise ValueError("a sequence needs at least one prompt token and one token to generate")
        if self._max_queued and len(self.waiting) >= self._max_queued:
            raise QueueFull
        seq.arrived = now
        self.waiting.append(seq)

    def abort(self, seq: Sequence) -> None:
        """Drop a sequence wherever it is; its blocks are free at once. Does nothing for a finished one."""
        if seq.aborted or seq.finished:
            return
        if seq in self.running:
            self.running.remove(seq)
            self.cache.release(seq, finished=False)
        elif seq in self.waiting:
            self.waiting.remove(seq)
        else:
            return
        seq.aborted = True
        self.counters.aborted_requests += 1

    def advance(self, now: float) -> Step | None:
        """Finish the step under way if it has ended by `now`, begin the next one; returns the finished step."""
        finished, start = self._step, now
        if finished is not None:
            if now < finished.ends:
                return None
            self._step = None
            self._complete(finished)
            if now - finished.ends < LATENESS_S:
                start = finished.ends
        if self.running or self.waiting:
            self._begin(start)
        return finished

    def _complete(self, step: Step) -> None:
        counters = self.counters
        counters.steps += 1
        for seq, count in step.work:
            if seq.aborted:
                continue
            seq.computed += count
            self.cache.checkpoint(seq)
            if seq.computed < seq.length:
                continue
            if seq.generated == 0:
                seq.first_token_at = step.ends
                counters.ttft_sum_s += step.ends - seq.arrived
                counters.ttft_count += 1
            if seq.tokens is not None:
                seq.tokens.append(seq.output[seq.generated])
            seq.generated += 1
            counters.generated += 1
            step.emitted.append(seq)
            if seq.finished:
                seq.finished_at = step.ends
                self.running.remove(seq)
                self.cache.release(seq, finished=True)
                counters.finished_requests += 1
        step.events = self.cache.take_events()

    def _begin(self, start: float) -> None:
        budget = self._budget
        work: list[tuple[Sequence, int]] = []
        prefill = decodes = context = preempted = 0
        pairs = 0.0
        position = 0
        while position < len(self.running) and budget > 0:
            seq = self.running[position]
            count = min(seq.length - seq.computed, budget)
            while not (fits := self.cache.grow(seq, seq.computed + count)) and self.running[-1] is not seq:
                self._preempt()
                preempted += 1
            if not fits:
                self._preempt()
                preempted += 1
                break
            work.append((seq, count))
            budget -= count
            position += 1
        while self.waiting and budget > 0 and len(self.running) < self._max_seqs and not preempted:
            seq = self.waiting[0]
            if not self.cache.admit(seq):
                break
            self.waiting.popleft()
            self._account(seq, start)
            count = min(seq.length - seq.computed, budget)
            self.running.append(seq)
            self.cache.grow(seq, seq.computed + count)
            work.append((seq, count))
            budget -= count
        for seq, count in work:
            if seq.computed >= seq.prompt_len:
                decodes += count
                context += seq.computed
            else:
                prefill += count
                pairs += count * (seq.computed + count / 2)
        if not work:
            return
        seconds = self.timing.step_seconds(prefill, pairs, decodes, context) * self.slow
        self.counters.prefilled += prefill
        if prefill:
            self.counters.prefill_busy_s += seconds
        self._step = Step(start, start + seconds, work, prefill, decodes)

    def _account(self, seq: Sequence, now: float) -> None:
        if seq.admitted:
            return
        seq.admitted = True
        seq.cached = seq.computed
        seq.started_at = now
        self.counters.queried += seq.prompt_len
        self.counters.hit += seq.computed

    def _preempt(self) -> None:
        victim = self.running.pop()
        self.cache.release(victim, finished=False)
        victim.computed = 0
        self.waiting.appendleft(victim)
        self.counters.preemptions += 1
