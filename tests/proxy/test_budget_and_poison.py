"""The retry budget and the poison guard alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.proxy.budget import RetryBudget
from router.proxy.poison import PoisonGuard


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=300), st.floats(0, 1), st.floats(0, 5))
def test_the_budget_counts_the_last_ten_seconds(events: list[tuple[float, bool]], ratio: float, per_s: float) -> None:
    budget = RetryBudget(ratio, per_s)
    events = sorted(events)
    for now, failed in events:
        (budget.failed if failed else budget.began)(now)
    last = events[-1][0] if events else 0.0
    recent = [failed for now, failed in events if int(now) > int(last) - 10]
    failed = sum(recent)
    allowed = per_s * 10 + ratio * (len(recent) - failed)
    assert budget.spent(last) is (failed > 0 and failed >= allowed)
    assert not budget.spent(last + 11)


def lose(guard: PoisonGuard, number: int, *replicas: str, at: float = 0.0) -> None:
    for later, replica in enumerate(replicas):
        guard.lost(number, replica, at + 5 * later)


def test_a_request_lost_twice_is_refused_for_a_while_and_then_has_one_chance() -> None:
    guard = PoisonGuard(losses=2, refuse_s=60)
    assert not guard.watching
    lose(guard, 1, "a")
    assert guard.watching and guard.refused_for(1, 6) == 0
    lose(guard, 1, "b", at=5)
    assert guard.refused_for(1, 15) == 50 and guard.refused_for(2, 15) == 0
    assert guard.refused_for(1, 66) == 0
    guard.lost(1, "c", 70)
    assert guard.refused_for(1, 71) == 59
    guard.answered(1)
    assert not guard.watching


def test_those_who_moved_together_need_another_loss() -> None:
    guard = PoisonGuard(losses=2, refuse_s=60)
    for number in range(10):
        lose(guard, number, "a", "b")
    assert all(guard.refused_for(number, 6) == 0 for number in range(10)), "nine of them are innocent"
    guard.lost(3, "c", 8)
    assert guard.refused_for(3, 9) > 0
    assert guard.refused_for(4, 9) == 0


def test_a_failure_counts_if_the_replica_dies_of_it() -> None:
    guard = PoisonGuard(losses=2)
    guard.failed(1, "a", 0)
    guard.failed(2, "b", 0)
    guard.died("a", 2)
    guard.failed(1, "c", 3)
    guard.died("c", 4)
    assert guard.refused_for(1, 5) > 0 and guard.refused_for(2, 5) == 0
    guard.failed(2, "d", 6)
    guard.died("d", 30)
    guard.died("b", 30)
    assert guard.refused_for(2, 31) == 0, "too long ago"


def test_losses_long_ago_are_forgotten_and_the_table_is_bounded() -> None:
    guard = PoisonGuard(losses=2, memory_s=100, size=50)
    lose(guard, 1, "a")
    lose(guard, 1, "b", at=200)
    assert guard.refused_for(1, 201) == 0
    for number in range(1000):
        guard.lost(number, "a", 300)
        guard.failed(number, "a", 300)
    assert len(guard._suspects) == len(guard._failed) == 50
