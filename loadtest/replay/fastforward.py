"""The simulator's scheduler, many decode steps at once.

While every running sequence decodes and nobody can be admitted, step i takes

    overhead + max(B / prefill_rate, weights + (context + i B) kv_s_per_token)        B: sequences that decode

so the end of n steps is a sum in closed form. Such a run ends with the first sequence that finishes, before memory runs
out, or with the step under way when something arrives that might be admitted. Times and the cache's content are
those of stepping one by one (to rounding); evictions caused by growing answers are told at the run's end.
"""

from __future__ import annotations

import math

from replica.simulator.scheduler import Scheduler, Step
from replica.simulator.sequence import Sequence
from replica.simulator.timing import TimeModel


class DecodeRun:
    """`steps` decode steps of the same `batch` sequences from `starts` on; `context` tokens in the first step."""

    __slots__ = ("_compute", "_factor", "_grow", "_memory", "_overhead", "ends", "starts", "steps")

    def __init__(self, starts: float, steps: int, batch: int, context: int, timing: TimeModel, slow: float) -> None:
        self.starts = starts
        self.steps = steps
        self._factor = timing.scale * slow
        self._overhead = timing.overhead_s
        self._compute = batch / timing.prefill_rate
        self._memory = timing.weights_s + context * timing.kv_s_per_token
        self._grow = batch * timing.kv_s_per_token
        self.ends = starts + self.seconds(steps)

    def seconds(self, steps: int) -> float:
        """Time the first `steps` steps take."""
        bound = 0
        if self._memory < self._compute:
            bound = steps
            if self._grow:
                bound = min(steps, math.ceil((self._compute - self._memory) / self._grow))
        rest = steps - bound
        memory = rest * self._memory + self._grow * (steps * (steps - 1) - bound * (bound - 1)) / 2
        return self._factor * (steps * self._overhead + bound * self._compute + memory)

    def cut(self, now: float) -> None:
        """End with the step that is under way at `now`."""
        if now >= self.ends:
            return
        low, high = 1, self.steps
        while low < high:
            middle = (low + high) // 2
            if self.starts + self.seconds(middle) >= now:
                high = middle
            else:
                low = middle + 1
        self.steps = low
        self.ends = self.starts + self.seconds(low)


class FastForward(Scheduler):
    """A Scheduler for virtual time; `advance` must be called at `next_at`, `abort` must not be called.

    The step returned for a run of decode steps names in `emitted` only the sequences that finished.
    """

    _run: DecodeRun | None = None
    _stuck = False
    """The head of the queue found no room, and will find none before a sequence finishes."""

    @property
    def next_at(self) -> float:
        return self._run.ends if self._run is not None else super().next_at

    def submit(self, seq: Sequence, now: float) -> None:
        super().submit(seq, now)
        if self._run is not None and not self._stuck:
            self._run.cut(now)

    def advance(self, now: float) -> Step | None:
        run = self._run
        if run is None:
            return super().advance(now)
        if now < run.ends:
            return None
        self._run = None
        step = self._end_run(run)
        if self.running or self.waiting:
            self._begin(run.ends)
        return step

    def _begin(self, start: float) -> None:
        if not self.waiting or self._stuck:
            steps, context = self._decodable()
            if steps > 1:
                self._run = DecodeRun(start, steps, len(self.running), context, self.timing, self.slow)
                return
        queued, preempted = len(self.waiting), self.counters.preemptions
        super()._begin(start)
        step = self._step
        self._stuck = (
            len(self.waiting) == queued > 0
            and step is not None
            and not step.prefill_tokens
            and self.counters.preemptions == preempted
        )

    def _complete(self, step: Step) -> None:
        super()._complete(step)
        if self._stuck and any(seq.finished for seq in step.emitted):
            self._stuck = False

    def _decodable(self) -> tuple[int, int]:
        """Steps until the first sequence finishes, as far as memory lasts, and the context now; 0: not all decode."""
        running, cache = self.running, self.cache
        if not running or len(running) > self._budget:
            return 0, 0
        steps, context = running[0].max_tokens, 0
        for seq in running:
            computed = seq.computed
            if not seq.generated or computed != seq.prompt_len + seq.generated - 1:
                return 0, 0
            context += computed
            left = seq.max_tokens - seq.generated
            if left < steps:
                steps = left
        size = cache.block_size
        free = cache.blocks - cache.used
        while steps > 1 and len(running) * (steps // size + 1) > free:
            if sum(max(0, -(-(seq.computed + steps) // size) - len(seq.blocks)) for seq in running) <= free:
                break
            steps //= 2
        return steps, context

    def _end_run(self, run: DecodeRun) -> Step:
        running, cache, counters, steps = self.running, self.cache, self.counters, run.steps
        size = cache.block_size
        finished = []
        for seq in running:
            computed = seq.computed + steps
            if computed >= (seq.registered + 1) * size or computed > len(seq.blocks) * size:
                grown = cache.grow(seq, computed)
                assert grown, "a run is no longer than memory lasts"
            seq.computed = computed
            seq.generated += steps
            if seq.generated >= seq.max_tokens:
                finished.append(seq)
        counters.steps += steps
        counters.generated += steps * len(running)
        for seq in finished:
            seq.finished_at = run.ends
            running.remove(seq)
            cache.release(seq, finished=True)
        counters.finished_requests += len(finished)
        if finished:
            self._stuck = False
        return Step(run.starts, run.ends, [], 0, steps, finished)
