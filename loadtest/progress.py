"""Progress of a run: a bar on a terminal, a plain line every few seconds elsewhere (logs, CI)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import TextIO

BAR_WIDTH = 30
BAR_EVERY_S = 0.1
LINE_EVERY_S = 5.0


@dataclass(slots=True)
class Progress:
    """How far a run is; `total` is known beforehand. Token sums are over answers that reported cached tokens."""

    done: int
    total: int
    errors: int
    elapsed_s: float
    prompt_tokens: int
    cached_tokens: int

    @property
    def hit_rate(self) -> float | None:
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None


class ProgressBar:
    """Callable to hand to `run_workload(progress=...)`; writes to stderr unless told otherwise."""

    def __init__(self, label: str, stream: TextIO | None = None, clock: Callable[[], float] = monotonic) -> None:
        self._label = label
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._clock = clock
        self._last = clock()

    def __call__(self, state: Progress) -> None:
        now = self._clock()
        finished = state.done == state.total
        if not finished and now - self._last < (BAR_EVERY_S if self._live else LINE_EVERY_S):
            return
        self._last = now
        if self._live:
            filled = BAR_WIDTH * state.done // max(state.total, 1)
            bar = "█" * filled + "░" * (BAR_WIDTH - filled)
            self._stream.write(f"\r{self._label} {bar} {describe(state)}\x1b[K" + ("\n" if finished else ""))
        else:
            self._stream.write(f"{self._label}: {describe(state)}\n")
        self._stream.flush()


def describe(state: Progress) -> str:
    rate = "" if state.hit_rate is None else f", hit rate {state.hit_rate:.1%}"
    errors = f", {state.errors} errors" if state.errors else ""
    return f"{state.done}/{state.total} requests, {state.elapsed_s:.1f} s{rate}{errors}"
