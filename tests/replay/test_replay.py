"""The replay engine: exact times on tiny cases, fast-forward against stepping, conservation."""

from __future__ import annotations

import random

import pytest

from loadtest.replay.engine import Replay, Settings
from loadtest.replay.fastforward import FastForward
from loadtest.replay.generate import WORKLOADS
from loadtest.replay.pool import IdPool
from loadtest.replay.workload import Call, Session, Workload, ideal
from replica.simulator.scheduler import Scheduler
from replica.simulator.sequence import Sequence
from replica.simulator.timing import TimeModel, time_model
from router.routing.policies import POLICIES, Prefix

COMPUTE_BOUND_FIRST = TimeModel(0.001, 2000.0, 0.004, 1e-6, 30_000)


def drive(scheduler: Scheduler, arrivals: list[tuple[float, Sequence]]) -> None:
    """Submit each sequence at its time, advance whenever a step ends."""
    left = list(arrivals)
    while left or scheduler.running or scheduler.waiting:
        if left and left[0][0] < scheduler.next_at:
            at, seq = left.pop(0)
            idle = not scheduler.running and not scheduler.waiting
            scheduler.submit(seq, at)
            if idle:
                scheduler.advance(at)
        else:
            scheduler.advance(scheduler.next_at)


@pytest.mark.parametrize("timing", [time_model("8b-h100"), COMPUTE_BOUND_FIRST])
@pytest.mark.parametrize("blocks", [4000, 90])
@pytest.mark.parametrize("seed", range(4))
def test_many_steps_at_once_give_the_times_of_single_steps(timing: TimeModel, blocks: int, seed: int) -> None:
    def arrivals() -> list[tuple[float, Sequence]]:
        source, made, now = random.Random(seed), [], 0.0
        for number in range(60):
            now += source.expovariate(8.0)
            prompt, output = source.randint(1, 600), source.randint(1, 120)
            head = list(range(source.choice([0, 5, 20])))
            keys = head + [1000 * (number + 1) + i for i in range(60)]
            made.append((now, Sequence(prompt, output, keys=keys)))
        return made

    slow, fast = arrivals(), arrivals()
    stepped = Scheduler(IdPool(blocks, 16), timing, max_num_seqs=12)
    jumped = FastForward(IdPool(blocks, 16), timing, max_num_seqs=12)
    drive(stepped, slow)
    drive(jumped, fast)
    for (_, one), (_, other) in zip(slow, fast, strict=True):
        assert other.cached == one.cached
        assert other.first_token_at == pytest.approx(one.first_token_at, abs=1e-6)
        assert other.finished_at == pytest.approx(one.finished_at, abs=1e-6)
    assert jumped.counters.steps == stepped.counters.steps
    assert jumped.counters.preemptions == stepped.counters.preemptions
    assert jumped.cache.used == 0


def test_two_requests_one_after_the_other_take_what_the_time_model_says() -> None:
    timing = TimeModel(0.001, 1000.0, 0.004, 0.0, 1e12)
    workload = Workload("two", 16, [Session(0.0, [Call(160, 16), Call(320, 2, think_s=1.0)], (), 0, 20)])
    settings = Settings(replicas=1, kv_blocks=100, timing=timing, network_s=0.5)
    outcome = Replay(workload, Prefix(), settings).run()
    # 160 tokens computed; then 320, of which 160 are cached: the answer's 16th token, the last of block 11, has no KV.
    # Both times half a second of network each way.
    assert list(outcome.ttft) == pytest.approx([1 + 0.161, 1 + 0.161])
    assert outcome.e2e[0] == pytest.approx(1 + 0.161 + 15 * 0.005)
    assert outcome.cached_tokens == 160
    assert outcome.hit_rate == pytest.approx(ideal(workload, 100).infinite)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_every_request_finishes_and_the_books_are_balanced(name: str, policy: str) -> None:
    workload = WORKLOADS[name](3, 150, block=64)
    settings = Settings(replicas=3, kv_blocks=workload.kv_blocks or 4000, slow=workload.slow)
    replay = Replay(workload, POLICIES[policy](), settings)
    outcome = replay.run()
    assert outcome.requests == workload.requests == sum(outcome.sent)
    assert all(r.load.running == 0 == r.load.pending_prefill for r in replay.router.replicas)
    assert all(node.pool.used == 0 for node in replay.nodes)
    # No preemption: every prompt token is either cached or computed once.
    assert outcome.preemptions or outcome.cached_tokens + sum(outcome.prefilled) == outcome.prompt_tokens
    index = {r.id: replay.router.index.replica_blocks(r.id) for r in replay.router.replicas}
    assert list(index.values()) == [len(node.pool._cached) for node in replay.nodes]
    if policy != "random":
        again = Replay(workload, POLICIES[policy](), settings).run()
        assert (again.ttft, again.sent) == (outcome.ttft, outcome.sent)
