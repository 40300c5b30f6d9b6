"""The numbers of a replay."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from loadtest.replay.router import Routed
from loadtest.replay.workload import Ideal
from loadtest.stats import Distribution

OBJECTIVES = ("ttft", "tpot", "e2el")


class Outcome:
    """Filled by a replay: one entry per finished request, times in seconds, and totals."""

    def __init__(self, replicas: int) -> None:
        self.ttft = array("d")
        self.e2e = array("d")
        self.output = array("q")
        self.sent = [0] * replicas
        self.prefilled = [0] * replicas
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.matched_tokens = 0
        self.stayed = 0
        self.moved = 0
        self.evicted = 0
        self.preemptions = 0
        self.duration_s = 0.0
        self.reasons: Counter[str] = Counter()

    @property
    def requests(self) -> int:
        return len(self.ttft)

    def add(
        self, prompt: int, cached: int, output: int, routed: Routed, ttft: float, ended: float, stayed: bool | None
    ) -> None:
        """One finished request; `stayed`: on the replica of its session's last one, None: the first of its session."""
        self.ttft.append(ttft)
        self.e2e.append(ended - routed.sent_at)
        self.output.append(output)
        self.sent[routed.place] += 1
        self.prompt_tokens += prompt
        self.cached_tokens += cached
        self.matched_tokens += routed.matched
        self.reasons[routed.reason] += 1
        if stayed is not None:
            self.stayed += stayed
            self.moved += not stayed
        self.duration_s = max(self.duration_s, ended)

    @property
    def hit_rate(self) -> float:
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def hotspot(self) -> float:
        """Replicas x the largest share of the computed prefill: 1 is even."""
        total = sum(self.prefilled)
        return len(self.prefilled) * max(self.prefilled) / total if total else 1.0

    def good(self, limits: Mapping[str, float]) -> int:
        """Requests that met every objective (seconds by OBJECTIVES); one with a single token has no TPOT."""
        ttft, tpot, e2e = (limits.get(name, float("inf")) for name in OBJECTIVES)
        return sum(
            first <= ttft and whole <= e2e and (tokens < 2 or (whole - first) / (tokens - 1) <= tpot)
            for first, whole, tokens in zip(self.ttft, self.e2e, self.output, strict=True)
        )


def as_json(outcome: Outcome, ideal: Ideal, limits: Mapping[str, float]) -> dict[str, Any]:
    """One policy's numbers, milliseconds where a name says so; null where nothing was measured."""
    steps = outcome.stayed + outcome.moved
    row: dict[str, Any] = {
        "requests": outcome.requests,
        "duration_s": outcome.duration_s,
        "hit_rate": outcome.hit_rate,
        "ideal_hit_rate": ideal.infinite,
        "pooled_hit_rate": ideal.pooled,
        "prefill_tokens": sum(outcome.prefilled),
        "goodput_share": outcome.good(limits) / outcome.requests if outcome.requests else None,
        "goodput_rps": outcome.good(limits) / outcome.duration_s if outcome.duration_s else None,
        "hotspot": outcome.hotspot,
        "stickiness": outcome.stayed / steps if steps else None,
        "evicted_blocks": outcome.evicted,
        "preemptions": outcome.preemptions,
        "predicted_cached_tokens": outcome.matched_tokens,
        "requests_per_replica": outcome.sent,
        "reasons": dict(outcome.reasons.most_common()),
    }
    for name, values in (("ttft", outcome.ttft), ("e2el", outcome.e2e)):
        known = Distribution.of(values)
        for what in ("mean", "p50", "p90", "p99"):
            row[f"{what}_{name}_ms"] = None if known is None else getattr(known, what) * 1000
    return row


COLUMNS = (
    ("hit %", "hit_rate", 100, 1),
    ("ideal %", "ideal_hit_rate", 100, 1),
    ("pooled %", "pooled_hit_rate", 100, 1),
    ("prefill k", "prefill_tokens", 1e-3, 0),
    ("TTFT mean", "mean_ttft_ms", 1, 0),
    ("p50", "p50_ttft_ms", 1, 0),
    ("p99", "p99_ttft_ms", 1, 0),
    ("E2E mean", "mean_e2el_ms", 1, 0),
    ("p99", "p99_e2el_ms", 1, 0),
    ("good %", "goodput_share", 100, 1),
    ("hotspot", "hotspot", 1, 2),
    ("sticky", "stickiness", 1, 2),
)


def table(title: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """One line per policy; times in milliseconds."""
    wide = max([len(name) for name, _ in rows] + [8])
    lines = [title, f"{'policy':<{wide}} " + " ".join(f"{head:>9}" for head, *_ in COLUMNS)]
    for name, row in rows:
        cells = ["-" if row[key] is None else f"{row[key] * scale:.{digits}f}" for _, key, scale, digits in COLUMNS]
        lines.append(f"{name:<{wide}} " + " ".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)
