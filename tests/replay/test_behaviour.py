"""What the policy does on whole workloads, in virtual time: deterministic, with the router's own routing code."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from loadtest.replay.engine import Replay, Settings
from loadtest.replay.generate import WORKLOADS
from loadtest.replay.result import Outcome, as_json
from loadtest.replay.workload import ideal
from router.routing.policies import POLICIES

REPLICAS, REQUESTS = 8, 4000
DECODING = {"shared-prompt", "long-answers"}
"""See test_decoding."""
GROWING = sorted(set(WORKLOADS) - {"documents"} - DECODING)
"""Where the best hit rate and the shortest waits go together."""


@cache
def outcome(name: str, policy: str = "prefix") -> tuple[Outcome, float, Replay]:
    """The outcome, the hit rate that one cache as large as all together would have, and the replay."""
    workload = WORKLOADS[name](REPLICAS, REQUESTS)
    setting = Settings(replicas=REPLICAS, kv_blocks=workload.kv_blocks or 25_000, slow=workload.slow)
    replay = Replay(workload, POLICIES[policy](), setting)
    return replay.run(), ideal(workload, setting.kv_blocks * REPLICAS).pooled, replay


@pytest.mark.parametrize("name", GROWING)
def test_the_hit_rate_is_near_the_ideal(name: str) -> None:
    done, possible, _ = outcome(name)
    assert done.hit_rate >= 0.97 * possible


@pytest.mark.parametrize("name", GROWING)
def test_tail_latency_and_goodput_are_at_least_those_of_the_simple_policies(name: str) -> None:
    limits = {"ttft": 0.5, "tpot": 0.05}
    ours = as_json(outcome(name)[0], ideal_of(name), limits)
    for policy in ("round_robin", "least_load", "session"):
        theirs = as_json(outcome(name, policy)[0], ideal_of(name), limits)
        assert ours["p99_ttft_ms"] <= 1.05 * theirs["p99_ttft_ms"], policy
        assert ours["goodput_share"] >= theirs["goodput_share"] - 0.001, policy


@cache
def ideal_of(name: str):  # type: ignore[no-untyped-def]
    return ideal(WORKLOADS[name](REPLICAS, REQUESTS), 1 << 40)


def test_a_shared_system_prompt_neither_pins_nor_scatters() -> None:
    done, _, _ = outcome("agents")
    assert done.hotspot < 2.0
    assert min(done.sent) > 0.4 * REQUESTS / REPLICAS
    assert done.stayed / (done.stayed + done.moved) > 0.95


def test_agents_in_turn_use_the_whole_fleet_although_nothing_is_ever_in_flight() -> None:
    done, _, _ = outcome("sequential")
    assert max(done.sent) < 0.35 * sum(done.sent)
    assert done.stayed / (done.stayed + done.moved) > 0.95


def test_a_slow_replica_is_found_out_and_left() -> None:
    done, _, replay = outcome("slow-replica")
    assert done.sent[0] < 0.1 * REQUESTS / REPLICAS
    assert all(0.8 < replica.speed.slowness < 1.25 for replica in replay.router.replicas[1:])


def test_a_flash_crowd_spreads_over_the_fleet() -> None:
    done, _, _ = outcome("flash-crowd")
    assert done.hotspot < 1.6


def test_a_rare_prefix_is_not_copied_without_need() -> None:
    """Two sessions a minute under one system prompt, on an idle fleet: one replica is enough."""
    workload = WORKLOADS["agents"](REPLICAS, 200, rate=0.05, groups=1)
    done = Replay(replace(workload, name="rare"), POLICIES["prefix"](), Settings(replicas=REPLICAS)).run()
    assert sum(sent > 0 for sent in done.sent) <= 3


def test_light_requests_leave_the_warm_alone() -> None:
    """Mixed with agents whose caches are nearly full, single questions cost the agents nothing."""
    workload = WORKLOADS["mixed"](4, 2000)
    done = Replay(workload, POLICIES["prefix"](), Settings(replicas=4, kv_blocks=6000)).run()
    assert done.hit_rate >= 0.97 * ideal(workload, 24_000).pooled


def test_long_documents_are_computed_where_few_answers_stand_still_for_them() -> None:
    """A replica that got long prompts was once taken for a fast one and got more of them: answers as slow as least
    load's, with a third of its prefill less."""
    workload = WORKLOADS["documents"](REPLICAS, REQUESTS, block=64)
    setting = Settings(replicas=REPLICAS, kv_blocks=workload.kv_blocks or 0)
    best = ideal(workload, setting.kv_blocks * REPLICAS)
    ours, theirs = (
        as_json(Replay(workload, POLICIES[policy](), setting).run(), best, {}) for policy in ("prefix", "least_load")
    )
    assert ours["hit_rate"] >= 0.92 * best.pooled
    assert ours["hotspot"] < 1.1
    for what, share in (("mean_ttft_ms", 0.65), ("p99_ttft_ms", 0.75), ("mean_e2el_ms", 0.85), ("p99_e2el_ms", 0.85)):
        assert ours[what] <= share * theirs[what], what
