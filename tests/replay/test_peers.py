"""The models of other routers' formulas: each does what its formula says, and runs whole workloads."""

from __future__ import annotations

from functools import cache

import pytest

from loadtest.replay.engine import Replay, Settings
from loadtest.replay.generate import WORKLOADS
from loadtest.replay.peers import PEERS, DynamoModel, LlmdModel, LMetricModel, ProductionStackModel, SglangModel
from loadtest.replay.result import Outcome
from loadtest.replay.router import ChainAsk
from router.engines import EngineInfo
from router.fleet.replica import Replica
from router.routing.policies import POLICIES
from router.routing.types import Candidate, Policy

INFO = EngineInfo("vllm", ("m",), block_size=16, kv_tokens=16_000)


def fleet(*held: int) -> list[Candidate]:
    return [Candidate(Replica(f"r{n}", f"http://r{n}:1", info=INFO), tokens) for n, tokens in enumerate(held)]


def ask(*blocks: int) -> ChainAsk:
    return ChainAsk(16 * len(blocks) + 1, 16 * len(blocks), chain=blocks, block=16)


def place(policy: Policy, one: ChainAsk, candidates: list[Candidate]) -> str:
    return policy.select(one, candidates).order[0].replica.id


def test_sglang_follows_the_longest_prefix_until_loads_differ_by_its_thresholds() -> None:
    policy, workers = SglangModel(balance_abs=2, balance_rel=1.5), fleet(0, 0)
    home = place(policy, ask(1, 2, 3, 4), workers)
    other = next(worker for worker in workers if worker.replica.id != home)
    assert place(policy, ask(1, 2, 8, 9), workers) == home, "half of the prompt is more than 0.3"
    assert place(policy, ask(1, 5, 6, 7, 8), workers) == other.replica.id, "a fifth is not: the smallest tree"
    busy = next(worker for worker in workers if worker is not other)
    for _ in range(2):
        busy.replica.load.begin(0)
    assert place(policy, ask(1, 2, 3, 4, 10), workers) == home, "a difference of 2 is not above 2"
    busy.replica.load.begin(0)
    assert place(policy, ask(1, 2, 3, 4, 10), workers) == other.replica.id


def test_production_stack_follows_whoever_was_sent_the_longest_prefix_whatever_its_load() -> None:
    policy, workers = ProductionStackModel(), fleet(0, 0, 0, 0)
    home = place(policy, ask(1, 2, 3), workers)
    for worker in workers:
        if worker.replica.id == home:
            worker.replica.load.begin(1_000_000)
    assert {place(policy, ask(1, 10 + n), workers) for n in range(20)} == {home}


def test_llm_d_weighs_the_matched_share_twice_against_waiting_and_kv_use() -> None:
    policy, workers = LlmdModel(), fleet(0, 160)
    prompts = [ask(*range(n, n + 10)) for n in (0, 100, 200)]
    assert place(policy, prompts[0], workers) == "r1"
    assert place(policy, prompts[1], workers) == "r1", "2 x the whole match outweighs 1 x the whole queue"
    weaker = fleet(0, 64)
    assert place(policy, prompts[2], weaker) == "r0", "2 x 0.4 does not"
    for one in prompts[:2]:
        policy.first_byte(one, workers[1].replica, 0.1)
        policy.ended(one, workers[1].replica, one.chain, 0.2)
    policy.first_byte(prompts[2], workers[0].replica, 0.1)
    assert place(policy, ask(900), fleet(0, 0)) == "r1", "r0 has less free KV"


def test_dynamo_counts_queued_prefill_and_distinct_blocks_in_use() -> None:
    policy, workers = DynamoModel(), fleet(0, 160)
    first, second = ask(*range(10)), ask(*range(10))
    assert place(policy, first, workers) == "r1"
    assert place(policy, second, workers) == "r1", "its blocks are in use there already"
    # Everything of another prompt is new; r1 has ten blocks in use.
    assert place(policy, ask(*range(20, 28)), fleet(0, 0)) == "r0"
    policy.first_byte(first, workers[1].replica, 0.1)
    for one in (first, second):
        policy.ended(one, workers[1].replica, one.chain, 0.2)
    assert place(policy, ask(30), fleet(0, 0)) == "r1"


def test_lmetric_multiplies_new_tokens_with_the_batch() -> None:
    policy, workers = LMetricModel(), fleet(0, 80)
    one = ask(*range(10))
    assert place(policy, one, workers) == "r1"
    policy.first_byte(one, workers[1].replica, 0.1)
    workers[1].replica.load.begin(0)
    assert place(policy, one, workers) == "r0", "161 x 1 < 81 x 2"


@cache
def outcome(name: str, policy: str) -> Outcome:
    workload = WORKLOADS[name](4, 600, block=64)
    settings = Settings(replicas=4, kv_blocks=workload.kv_blocks or 6_000, slow=workload.slow)
    made = {**POLICIES, **PEERS}[policy]()
    assert made.name == policy
    replay = Replay(workload, made, settings)
    done = replay.run()
    assert done.requests == workload.requests
    return done


@pytest.mark.parametrize("name", sorted(PEERS))
def test_each_model_runs_whole_workloads_and_uses_caches(name: str) -> None:
    assert outcome("agents", name).hit_rate > outcome("agents", "round_robin").hit_rate + 0.05


def test_a_hot_prefix_collapses_a_trie_without_load() -> None:
    """Of the crowd nobody ever leaves the worker that was sent the first of them."""
    assert max(outcome("flash-crowd", "production-stack-model").sent) > 2 * max(outcome("flash-crowd", "prefix").sent)
