"""Where a fleet lacks decoding and not prefill: many answers to long prompts that are cached everywhere.

Nothing then is in any queue and every replica holds the prefix; what differs is how many answers a step serves.
"""

from __future__ import annotations

import random
from functools import cache
from itertools import count
from statistics import fmean
from typing import Any

import pytest

from loadtest.replay.engine import Replay, Settings
from loadtest.replay.result import as_json
from loadtest.replay.workload import Call, Session, Workload, ideal
from router.routing.policies import POLICIES

BLOCK, REPLICAS, SEEDS = 16, 8, 2
LIMITS = {"ttft": 0.5, "tpot": 0.05}
TIMES = ("p99_ttft_ms", "mean_e2el_ms", "p99_e2el_ms")
CASES = {"long prompt": (20_000, 200, 150, 96.0), "long answers": (6_000, 300, 500, 56.0)}
"""Tokens of the shared system prompt, of a user's part, of an answer (the latter exponential); requests a second."""


def singles(seed: int, system: int, own: int, answer: int, rate: float) -> Workload:
    """Single requests with one system prompt."""
    source, ids, now = random.Random(seed), count(), 0.0
    head = [next(ids) for _ in range(system // BLOCK)]
    made = []
    for _ in range(4000):
        now += source.expovariate(rate)
        tokens = system + 1 + int(source.expovariate(1 / own))
        output = 1 + int(source.expovariate(1 / answer))
        keys = head + [next(ids) for _ in range((tokens + output) // BLOCK + 1 - len(head))]
        made.append(Session(now, [Call(tokens, output, keys=keys)]))
    return Workload("singles", BLOCK, made)


@cache
def figures(case: str, policy: str) -> dict[str, float]:
    rows: list[dict[str, Any]] = []
    for seed in range(SEEDS):
        workload = singles(seed, *CASES[case])
        done = Replay(workload, POLICIES[policy](), Settings(REPLICAS)).run()
        rows.append(as_json(done, ideal(workload, 1 << 40), LIMITS))
    return {
        name: fmean(row[name] for row in rows)
        for name in ("p99_ttft_ms", "mean_e2el_ms", "p99_e2el_ms", "goodput_share")
    }


@pytest.mark.parametrize("case", CASES)
def test_answers_are_spread_like_by_a_policy_that_counts_nothing_else(case: str) -> None:
    """Before the pace was learnt, the first token of "long prompt" came after 5.8 s (p99), 0.7 by least load."""
    ours, theirs = figures(case, "prefix"), figures(case, "least_load")
    for name in TIMES:
        assert ours[name] <= 1.05 * theirs[name], name
    assert ours["goodput_share"] >= theirs["goodput_share"] - 0.015
