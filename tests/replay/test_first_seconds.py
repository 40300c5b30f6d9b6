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


def session(ids: Iterator[int], start: float, head: list[int], prompts: list[int], pauses: list[float]) -> Session:
    """Prompts of so many tokens, each the continuation of the one before; the first at `start`, in seconds."""
    keys = head + [next(ids) for _ in range((prompts[-1] + OUTPUT) // BLOCK - len(head))]
    calls = [Call(tokens, OUTPUT, pause, keys=keys) for tokens, pause in zip(prompts, pauses, strict=True)]
    return Session(start, calls)


def turns(agents: int, steps: int) -> Workload:
    """Agents with one system prompt that take turns, four requests a second: none meets another."""
    ids, gap = count(), 0.25
    head = [next(ids) for _ in range(1400 // BLOCK)]
    made = []
    for agent in range(agents):
        keys = head + [next(ids) for _ in range((1700 + 440 * steps) // BLOCK)]
        calls = [Call(1700 + 440 * step, OUTPUT, offset_s=step * agents * gap, keys=keys) for step in range(steps)]
        made.append(Session(agent * gap, calls))
    return Workload("turns", BLOCK, made)


def crowd(seed: int, replicas: int) -> Workload:
    """Single requests, as many as the fleet can take; from some moment on 70 % share a new prefix of 5,000 tokens."""
    source, ids, now = random.Random(seed), count(), 0.0
    head = [next(ids) for _ in range(5000 // BLOCK)]
    made = []
    for _ in range(75 * replicas):
        now += source.expovariate(11.0 * replicas)
        hot = now > 1.5 and source.random() < 0.7
        shared = head if hot else []
        made.append(session(ids, now, shared, [len(shared) * BLOCK + (460 if hot else 740)], [0.0]))
    return Workload("crowd", BLOCK, made)


Row = dict[str, float]


def row(workload: Workload, policy: str, settings: Settings) -> Row:
    done = Replay(workload, POLICIES[policy](), settings).run()
    best = ideal(workload, settings.kv_blocks * settings.replicas)
    return {**as_json(done, best, LIMITS), "moved": done.moved}


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
        assert mean(rows("prefix"), "goodput_share") >= mean(rows(policy), "goodput_share"), policy
