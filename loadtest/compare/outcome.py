"""From runs to the numbers of a comparison: medians over the repeats with their range, and where a contender stands."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from loadtest.compare.contenders import Contender
from loadtest.compare.runs import Run
from loadtest.compare.scenarios import Scenario
from loadtest.stats import Distribution

ENOUGH = 0.97
"""Share of the possible hit rate that counts as reached."""


@dataclass(frozen=True, slots=True)
class Value:
    """Median, lowest and highest of the repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Value | None:
        """None unless every repeat has a value."""
        listed = list(values)
        known = [value for value in listed if value is not None]
        if not known or len(known) < len(listed):
            return None
        return cls(statistics.median(known), min(known), max(known))

    def overlaps(self, other: Value) -> bool:
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True, slots=True)
class Row:
    """One contender in one scenario. Seconds and shares; None: unknown.

    goodput: share of the requests that met the objectives. All contenders get the same requests at the same times, so
    it compares as requests a second would, without the noise of how long the last answers took.
    """

    contender: Contender
    runs: Sequence[Run]
    hit_rate: Value | None
    of_possible: Value | None
    prefill: Value | None
    ttft_p50: Value | None
    ttft_p99: Value | None
    e2el_p99: Value | None
    goodput: Value | None
    stickiness: Value | None
    hotspot: Value | None
    cpu_ms: Value | None
    """Router's CPU per request, in milliseconds."""
    errors: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """One scenario's rows, in the order asked for."""

    scenario: Scenario
    rows: Sequence[Row]

    @property
    def fleet_busy(self) -> float | None:
        """Largest share of a core that the simulated engines took in a run: near 1, latencies measure Python."""
        shares = [
            run.fleet_cpu_s / run.result.summary.duration_s
            for row in self.rows
            for run in row.runs
            if run.fleet_cpu_s is not None
        ]
        return max(shares, default=None)


def outcome(scenario: Scenario, runs: Sequence[Run]) -> Outcome:
    labels = dict.fromkeys(run.contender.label for run in runs)
    return Outcome(scenario, [_row([run for run in runs if run.contender.label == label]) for label in labels])


def _row(runs: Sequence[Run]) -> Row:
    def each(read: Callable[[Run], float | None]) -> Value | None:
        return Value.of(read(run) for run in runs)

    def percentile(read: Callable[[Run], Distribution | None], wanted: float) -> Value | None:
        values = [read(run) for run in runs]
        return Value.of(None if value is None else value.percentile(wanted) for value in values)

    return Row(
        contender=runs[0].contender,
        runs=runs,
        hit_rate=each(hit_rate),
        of_possible=each(of_possible),
        prefill=each(_prefill),
        ttft_p50=percentile(lambda run: run.result.summary.ttft, 50),
        ttft_p99=percentile(lambda run: run.result.summary.ttft, 99),
        e2el_p99=percentile(lambda run: run.result.summary.e2el, 99),
        goodput=each(good_share),
        stickiness=each(lambda run: run.result.summary.stickiness),
        hotspot=each(lambda run: run.result.summary.hotspot),
        cpu_ms=each(lambda run: run.router_cpu_s * 1000 / max(run.result.summary.requests, 1)),
        errors=sum(run.result.summary.errors for run in runs),
    )


def hit_rate(run: Run) -> float | None:
    """The engines' own counters, the answers' cached_tokens where they have none."""
    engines = run.result.engines
    counted = None if engines is None else engines.hit_rate
    return run.result.summary.hit_rate if counted is None else counted


def of_possible(run: Run) -> float | None:
    hit, possible = hit_rate(run), run.possible
    return None if hit is None or not possible else hit / possible


def good_share(run: Run) -> float | None:
    summary = run.result.summary
    return None if summary.goodput is None else round(summary.goodput * summary.duration_s) / summary.requests


def _prefill(run: Run) -> float | None:
    engines = run.result.engines
    counted = None if engines is None else engines.computed
    return run.result.summary.prefill_tokens if counted is None else counted


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the first contender stands in a scenario. verdict: "yes", "no" or "tie" (the ranges overlap)."""

    question: str
    verdict: str
    detail: str


def standings(result: Outcome, write: Callable[[str, Value | None], str]) -> list[Standing]:
    """The three questions of a comparison about its first row. `write(metric, value)` formats a number."""
    if len(result.rows) < 2:
        return []
    mine, others = result.rows[0], result.rows[1:]
    share = mine.of_possible
    answers = []
    if share is not None:
        verdict = "yes" if share.median >= ENOUGH else "no"
        answers.append(
            Standing(f"at least {ENOUGH:.0%} of the possible hit rate", verdict, write("of_possible", share))
        )
    for metric, name, better in (("ttft_p99", "TTFT p99", -1), ("goodput", "goodput", 1)):
        own: Value | None = getattr(mine, metric)
        # A router that loses requests cannot win by answering fewer of them.
        rivals = [(row, getattr(row, metric)) for row in others if not row.errors]
        known = [(row, value) for row, value in rivals if value is not None]
        if own is None or not known:
            continue
        row, best = max(known, key=lambda pair: better * pair[1].median)
        ahead = better * (own.median - best.median) >= 0
        verdict = "yes" if ahead else "tie" if own.overlaps(best) else "no"
        answers.append(
            Standing(
                f"{name} at least as good as the best other",
                verdict,
                f"{write(metric, own)}; {row.contender.label} {write(metric, best)}",
            )
        )
    return answers
