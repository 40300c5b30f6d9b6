"""From request records to the numbers of a report. What is unknown is None, never 0."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loadtest.record import RequestRecord
from loadtest.stats import Distribution

SLO_METRICS = ("ttft", "tpot", "e2el")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Sums over some requests, of which `counted` said how many prompt tokens were cached.

    prompt, output: over the requests that gave them; cached, prefill, hit_rate: over the counted ones alone, None where
    there is none (vLLM needs `--enable-prompt-tokens-details`, SGLang `--enable-cache-report`).
    """

    requests: int
    counted: int
    prompt: int | None
    output: int | None
    cached: int | None
    prefill: int | None
    hit_rate: float | None

    @classmethod
    def of(cls, records: Iterable[RequestRecord]) -> Tokens:
        records = list(records)
        counted = [
            (record.prompt_tokens, record.cached_tokens)
            for record in records
            if record.prompt_tokens is not None and record.cached_tokens is not None
        ]
        prompts = sum(prompt for prompt, _ in counted)
        cached = sum(hit for _, hit in counted)
        return cls(
            requests=len(records),
            counted=len(counted),
            prompt=total(record.prompt_tokens for record in records),
            output=total(record.output_tokens for record in records),
            cached=cached if counted else None,
            prefill=prompts - cached if counted else None,
            hit_rate=cached / prompts if prompts else None,
        )


@dataclass(frozen=True, slots=True)
class StepRow:
    """All sessions' k-th steps together."""

    step: int
    tokens: Tokens
    ttft: Distribution | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the router said would be cached against what the engine found, over the requests that have both."""

    requests: int
    matched_tokens: int
    cached_tokens: int
    exact_share: float
    """Requests where both numbers are equal."""
    mean_error_tokens: float
    """Mean of |matched - cached|."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of one run. Times in seconds.

    requests: all that were sent; errors: those without a complete good answer; tokens and latencies are over the
    others. stickiness: share of the steps (from the second on) that landed on the replica of the step before, None
    where no replica is known. hotspot: replicas x the largest share of the computed prefill (of the requests, where
    prefill is unknown): 1 is even, `replicas` means one does everything; replicas that got nothing count only if the
    run was told how many there are. ideal_hit_rate: see loadtest.ideal. late: how long after it was due a request was
    sent. goodput: requests a second that met every objective, None where none was set.
    """

    requests: int
    errors: int
    errors_by_kind: Mapping[str, int]
    duration_s: float
    tokens: Tokens
    ttft: Distribution | None
    tpot: Distribution | None
    itl: Distribution | None
    e2el: Distribution | None
    late: Distribution | None
    steps: Sequence[StepRow]
    replicas: Mapping[str, Tokens]
    fleet_size: int
    stickiness: float | None
    hotspot: float | None
    reasons: Mapping[str, int]
    prediction: Prediction | None
    ideal_hit_rate: float | None
    ideal_exact: bool
    goodput: float | None

    @property
    def completed(self) -> int:
        return self.requests - self.errors

    @property
    def hit_rate(self) -> float | None:
        """Cached / prompt tokens, over the requests whose engine reported both."""
        return self.tokens.hit_rate

    @property
    def prompt_tokens(self) -> int | None:
        return self.tokens.prompt

    @property
    def cached_tokens(self) -> int | None:
        return self.tokens.cached

    @property
    def prefill_tokens(self) -> int | None:
        """Prompt tokens that had to be computed."""
        return self.tokens.prefill

    @property
    def output_tokens(self) -> int | None:
        return self.tokens.output

    @property
    def replica_requests(self) -> dict[str, int]:
        """Completed requests per replica; empty where the endpoint does not name them."""
        return {name: share.requests for name, share in self.replicas.items()}


def summarize(
    records: Sequence[RequestRecord],
    duration_s: float,
    *,
    replicas: int | None = None,
    ideal: float | None = None,
    ideal_exact: bool = False,
    goodput: Mapping[str, float] | None = None,
) -> Summary:
    """The summary of a run's records. replicas: fleet size if known; goodput: objectives in seconds by SLO_METRICS."""
    good = [record for record in records if record.ok]
    shares = {
        name: Tokens.of(record for record in good if record.replica == name)
        for name in sorted({record.replica for record in good if record.replica is not None})
    }
    fleet = max(replicas or 0, len(shares))
    return Summary(
        requests=len(records),
        errors=len(records) - len(good),
        errors_by_kind=dict(Counter(record.error for record in records if record.error is not None).most_common()),
        duration_s=duration_s,
        tokens=Tokens.of(good),
        ttft=Distribution.of(record.ttft_s for record in good),
        tpot=Distribution.of(record.tpot_s for record in good),
        itl=Distribution.of(gap for record in good for gap in record.itl_s),
        e2el=Distribution.of(record.e2el_s for record in good),
        late=Distribution.of(record.late_s for record in records),
        steps=step_rows(good),
        replicas=shares,
        fleet_size=fleet,
        stickiness=stickiness(good),
        hotspot=hotspot(shares, fleet),
        reasons=dict(Counter(record.reason for record in good if record.reason is not None).most_common()),
        prediction=prediction(good),
        ideal_hit_rate=ideal,
        ideal_exact=ideal_exact,
        goodput=None if not goodput else sum(meets(record, goodput) for record in good) / max(duration_s, 1e-9),
    )


def total(values: Iterable[int | None]) -> int | None:
    """Sum of the known ones; None if none is known."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def step_rows(records: Sequence[RequestRecord]) -> list[StepRow]:
    by_step: dict[int, list[RequestRecord]] = {}
    for record in records:
        by_step.setdefault(record.step, []).append(record)
    return [
        StepRow(step, Tokens.of(same), Distribution.of(record.ttft_s for record in same))
        for step, same in sorted(by_step.items())
    ]


def stickiness(records: Sequence[RequestRecord]) -> float | None:
    """A step whose previous step failed is compared with the last one that was answered."""
    last: dict[str, str] = {}
    stayed = moved = 0
    for record in sorted(records, key=lambda record: (record.session, record.step)):
        if record.replica is None:
            continue
        before = last.get(record.session)
        if before is not None:
            stayed += before == record.replica
            moved += before != record.replica
        last[record.session] = record.replica
    return stayed / (stayed + moved) if stayed + moved else None


def hotspot(shares: Mapping[str, Tokens], fleet: int) -> float | None:
    if not shares:
        return None
    prefill = [share.prefill for share in shares.values()]
    work = [tokens for tokens in prefill if tokens is not None]
    if len(work) < len(prefill) or not sum(work):
        work = [share.requests for share in shares.values()]
    return fleet * max(work) / sum(work)


def prediction(records: Iterable[RequestRecord]) -> Prediction | None:
    pairs = [
        (record.matched_tokens, record.cached_tokens)
        for record in records
        if record.matched_tokens is not None and record.cached_tokens is not None
    ]
    if not pairs:
        return None
    return Prediction(
        requests=len(pairs),
        matched_tokens=sum(matched for matched, _ in pairs),
        cached_tokens=sum(cached for _, cached in pairs),
        exact_share=sum(matched == cached for matched, cached in pairs) / len(pairs),
        mean_error_tokens=sum(abs(matched - cached) for matched, cached in pairs) / len(pairs),
    )


def meets(record: RequestRecord, objectives: Mapping[str, float]) -> bool:
    """Whether a request met every objective. One with a single output token has no TPOT and so meets any; a TTFT or an
    E2EL that was not measured meets none."""
    measured = {"ttft": record.ttft_s, "tpot": record.tpot_s, "e2el": record.e2el_s}
    for name, limit in objectives.items():
        value = measured[name]
        if value is None and name == "tpot" and record.output_tokens == 1:
            continue
        if value is None or value > limit:
            return False
    return True
