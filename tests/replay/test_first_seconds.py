"""What the policy does before it has seen much: the first requests of a fleet, of a crowd, of a slow replica.

Over many seeds, against the simple policies on the same requests; all in virtual time, so the figures are exact.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from itertools import count
from statistics import fmean

import pytest

from loadtest.replay.engine import Replay, Settings
from loadtest.replay.result import as_json
from loadtest.replay.workload import Call, Session, Workload, ideal
from replica.simulator.timing import time_model
from router.routing.policies import POLICIES

BLOCK, OUTPUT, SEEDS = 16, 16, 8
LIMITS = {"ttft": 0.3, "tpot": 0.06}


def blocks(ids: Iterator[int], tokens: int) -> list[int]:
    return [next(ids) for _ in range(tokens // BLOCK)]


def turns(agents: int, steps: int) -> Workload:
    """Agents with one system prompt that take turns, four requests a second: none meets another."""
    ids, gap = count(), 0.25
    head = blocks(ids, 1400)
    made = []
    for agent in range(agents):
        keys = head + blocks(ids, 300 + 440 * steps)
        calls = [Call(1700 + 440 * step, OUTPUT, offset_s=step * agents * gap, keys=keys) for step in range(steps)]
        made.append(Session(agent * gap, calls))
    return Workload("turns", BLOCK, made)


def crowd(seed: int, replicas: int) -> Workload:
    """Single requests, as many as the fleet can take; from some moment on 70 % share a new prefix of 5,000 tokens."""
    source, ids, now = random.Random(seed), count(), 0.0
    head = blocks(ids, 5000)
    made = []
    for _ in range(75 * replicas):
        now += source.expovariate(11.0 * replicas)
        hot = now > 1.5 and source.random() < 0.7
        keys = [*(head if hot else []), *blocks(ids, 480 if hot else 760)]
        made.append(Session(now, [Call(len(keys) * BLOCK - OUTPUT - 4, OUTPUT, keys=keys)]))
    return Workload("crowd", BLOCK, made)


def agents(seed: int, sessions: int, rate: float, groups: int = 2) -> Workload:
    """Agents of five steps in groups with a common system prompt; `rate` sessions a second."""
    source, ids, now = random.Random(seed), count(), 0.0
    heads = [blocks(ids, 1440) for _ in range(groups)]
    made = []
    for number in range(sessions):
        now += source.expovariate(rate)
        keys = heads[number % groups] + blocks(ids, 320 + 5 * 440)
        calls = [
            Call(1740 + 440 * step, OUTPUT, source.expovariate(1 / 0.3) if step else 0.0, keys=keys)
            for step in range(5)
        ]
        made.append(Session(now, calls, name=f"agent-{number}"))
    return Workload("agents", BLOCK, made)


Row = dict[str, float]


def row(workload: Workload, policy: str, settings: Settings) -> Row:
    done = Replay(workload, POLICIES[policy](), settings).run()
    best = ideal(workload, settings.kv_blocks * settings.replicas)
    slow = sum(done.sent[place] for place in settings.slow)
    return {**as_json(done, best, LIMITS), "moved": done.moved, "on_slow": slow / done.requests}


def mean(rows: list[Row], name: str) -> float:
    return fmean(row[name] for row in rows)


@pytest.mark.parametrize("spare", [1.25, 1.5, 1.75])
@pytest.mark.parametrize(("agents", "replicas"), [(12, 4), (13, 4), (16, 8), (24, 6)])
def test_agents_in_turn_are_dealt_to_replicas_that_will_have_room_for_them(
    agents: int, replicas: int, spare: float
) -> None:
    """Each replica has room for `spare` times its part. Nothing is in flight at any decision, and when the agents are
    placed nothing is full either."""
    room = int(1400 + 3800 * agents / replicas * spare) // BLOCK
    done = row(turns(agents, steps=8), "prefix", Settings(replicas, room, time_model("70b-4xh100")))
    assert done["moved"] == 0
    assert done["hit_rate"] >= 0.97 * done["ideal_hit_rate"]
    assert done["hotspot"] <= 1.55


@pytest.mark.parametrize("replicas", [4, 8, 16])
def test_the_first_spread_of_a_hot_prefix_keeps_nobody_waiting_longer_than_dealing_in_turn(replicas: int) -> None:
    @cache
    def rows(policy: str) -> list[Row]:
        setting = Settings(replicas, timing=time_model("70b-4xh100"))
        return [row(crowd(seed, replicas), policy, setting) for seed in range(SEEDS)]

    for policy in ("round_robin", "least_load"):
        assert mean(rows("prefix"), "p99_ttft_ms") <= mean(rows(policy), "p99_ttft_ms"), policy
        assert mean(rows("prefix"), "goodput_share") >= mean(rows(policy), "goodput_share") + 0.025, policy


@pytest.mark.parametrize(("replicas", "factor"), [(4, 2.0), (4, 4.0), (4, 8.0), (8, 4.0), (8, 8.0)])
def test_a_slow_replica_is_left_within_its_first_answers(replicas: int, factor: float) -> None:
    """Whichever it is. A hash of the session's name uses all replicas alike."""

    def rows(policy: str) -> list[Row]:
        return [
            row(
                agents(seed, 10 * replicas, 1.5 * replicas),
                policy,
                Settings(replicas, timing=time_model("70b-4xh100"), slow={seed % replicas: factor}),
            )
            for seed in range(SEEDS)
        ]

    ours, hashed = rows("prefix"), rows("session")
    assert mean(ours, "on_slow") <= {2.0: 0.12, 4.0: 0.02, 8.0: 0.02}[factor]
    assert mean(ours, "goodput_share") >= 0.98
    assert mean(ours, "p99_ttft_ms") <= min(220, 0.7 * mean(hashed, "p99_ttft_ms"))


def test_sessions_with_a_home_leave_it_for_more_than_the_difference_of_two_guesses() -> None:
    """Enough room for all, equal replicas, short queues now and then."""
    setting = Settings(4, timing=time_model("70b-4xh100"))
    done = [row(agents(seed, 40, 6.0), "prefix", setting) for seed in range(SEEDS)]
    assert mean(done, "moved") <= 1.5
