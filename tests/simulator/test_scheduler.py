"""Continuous batching in virtual time."""

from array import array

import pytest

from replica.simulator.cache import BlockPool
from replica.simulator.scheduler import QueueFull, Scheduler
from replica.simulator.sequence import Sequence
from replica.simulator.timing import TimeModel, time_model

SLOW_PREFILL = TimeModel(0.001, 1000.0, 0.004, 0.0, 1e12)


def sequence(start: int, length: int, generate: int) -> Sequence:
    return Sequence(length, generate, array("I", range(start, start + length)), [7] * generate)


def test_prefill_time_is_what_the_model_says() -> None:
    scheduler = Scheduler(BlockPool(64, 16), SLOW_PREFILL)
    seq = sequence(0, 100, 2)
    scheduler.submit(seq, 10.0)
    assert scheduler.advance(10.0) is None
    assert scheduler.next_at == pytest.approx(10.101)
    assert scheduler.advance(10.05) is None
    step = scheduler.advance(scheduler.next_at)
    assert step is not None
    assert step.emitted == [seq]
    assert seq.first_token_at == pytest.approx(10.101)
    scheduler.advance(scheduler.next_at)
    assert seq.finished
    assert seq.finished_at == pytest.approx(10.106)


def test_long_prompts_are_prefilled_in_chunks_beside_decodes() -> None:
    scheduler = Scheduler(BlockPool(64, 16), SLOW_PREFILL, max_num_batched_tokens=50)
    short, long = sequence(0, 10, 20), sequence(1000, 200, 1)
    scheduler.submit(short, 0.0)
    scheduler.advance(0.0)
    scheduler.submit(long, 0.001)
    chunks = []
    while not long.finished:
        step = scheduler.advance(scheduler.next_at)
        assert step is not None
        chunks.append((step.decodes, step.prefill_tokens))
    assert chunks == [(0, 10), (1, 49), (1, 49), (1, 49), (1, 49), (1, 4)]


def test_concurrent_equal_prompts_duplicate_blocks_that_are_not_there_yet() -> None:
    pool = BlockPool(64, 4)
    scheduler = Scheduler(pool, SLOW_PREFILL, max_num_batched_tokens=20)
    first, second = sequence(0, 33, 1), sequence(0, 33, 1)
    scheduler.submit(first, 0.0)
    scheduler.advance(0.0)
    scheduler.submit(second, 0.0)
    while not second.finished:
        scheduler.advance(scheduler.next_at)
    assert second.cached == 32  # admitted after the first one's last chunk was scheduled
    assert first.cached == 0


def test_preemption_recomputes_and_everyone_finishes() -> None:
    pool = BlockPool(10, 4)
    scheduler = Scheduler(pool, SLOW_PREFILL)
    group = [sequence(100 * i, 12, 20) for i in range(3)]
    for seq in group:
        scheduler.submit(seq, 0.0)
    scheduler.advance(0.0)
    for _ in range(500):
        if all(seq.finished for seq in group):
            break
        scheduler.advance(scheduler.next_at)
    assert all(seq.finished for seq in group)
    assert scheduler.counters.preemptions > 0
    assert pool.used == 0
    assert [seq.generated for seq in group] == [20, 20, 20]


def test_queue_limit_and_impossible_sequences() -> None:
    scheduler = Scheduler(BlockPool(4, 4), SLOW_PREFILL, max_queued=1)
    with pytest.raises(ValueError, match="do not fit"):
        scheduler.submit(sequence(0, 16, 1), 0.0)
    scheduler.submit(sequence(0, 4, 1), 0.0)
    with pytest.raises(QueueFull):
        scheduler.submit(sequence(0, 4, 1), 0.0)


def test_time_models() -> None:
    assert time_model("8b-h100", 0.1).step_seconds(0, 0, 1, 1000) == pytest.approx(0.00065, rel=0.05)
    assert time_model("8b-h100").step_seconds(0, 0, 64, 64 * 4096) == pytest.approx(0.018, rel=0.05)
    with pytest.raises(ValueError, match="8b-h100"):
        time_model("9b")
