"""Retry rules alone."""

from __future__ import annotations

from router.http.errors import BadResponse, ConnectFailed, ConnectionLost, UpstreamTimeout
from router.proxy.budget import RetryBudget
from router.proxy.retry import RetryPolicy, RetryState, StatusFailure, Verdict, final_answer


def lost(stage: str = "before_head", *, reused: bool = False) -> ConnectionLost:
    return ConnectionLost("x", stage=stage, reused=reused)


def verdicts(policy: RetryPolicy, *errors) -> list[Verdict]:
    """One error per try; a new target begins unless the verdict was SAME_FRESH."""
    state = RetryState(policy)
    state.begin_target()
    found = []
    for error in errors:
        found.append(state.after(error, 0.0))
        if found[-1] is Verdict.NEXT:
            state.begin_target()
    return found


NEXT, STOP, SAME = Verdict.NEXT, Verdict.STOP, Verdict.SAME_FRESH
MANY = RetryPolicy(max_attempts=9)


def test_connect_failures_are_bounded_by_attempts_only():
    assert verdicts(RetryPolicy(max_attempts=3), *[ConnectFailed("x")] * 3) == [NEXT, NEXT, STOP]
    connect_timeout = UpstreamTimeout("x", stage="connect")
    assert verdicts(MANY, *[connect_timeout] * 4) == [NEXT] * 4


def test_lost_while_waiting_is_retried_once():
    assert verdicts(MANY, lost(), lost()) == [NEXT, STOP]
    assert verdicts(MANY, lost("in_head", reused=True), lost("before_body", reused=True)) == [NEXT, STOP]
    assert verdicts(MANY, BadResponse("x"), lost()) == [NEXT, STOP]


def test_stale_connection_is_free_but_only_once_per_target():
    stale = lost(reused=True)
    assert verdicts(MANY, stale, ConnectFailed("x"), stale, lost()) == [SAME, NEXT, SAME, STOP]


def test_engine_that_dies_of_the_request_on_a_reused_connection_counts_as_lost():
    stale = lost(reused=True)
    assert verdicts(MANY, stale, ConnectFailed("x"), stale, ConnectFailed("x")) == [SAME, NEXT, SAME, STOP]


def test_first_byte_timeout_is_retried_once():
    timeout = UpstreamTimeout("x", stage="first_byte")
    assert verdicts(MANY, timeout, timeout) == [NEXT, STOP]
    assert verdicts(RetryPolicy(max_timeouts=0), timeout) == [STOP]


def test_statuses():
    state = RetryState(RetryPolicy(max_attempts=2))
    state.begin_target()
    assert (
        state.may_retry_status(503, 0.0)
        and not state.may_retry_status(500, 0.0)
        and not state.may_retry_status(200, 0.0)
    )
    state.begin_target()
    assert not state.may_retry_status(503, 0.0)


def test_final_answers():
    assert final_answer([]) == (503, True)
    assert final_answer([ConnectFailed("x")]) == (502, False)
    assert final_answer([ConnectFailed("x"), UpstreamTimeout("x", stage="first_byte")]) == (504, False)
    assert final_answer([StatusFailure("x", 503), ConnectFailed("x")]) == (503, True)


def test_backoff_only_when_a_failure_repeats_itself():
    state = RetryState(MANY)
    pauses = []
    for error in (ConnectFailed("x"), lost(), ConnectFailed("x"), ConnectFailed("x"), ConnectFailed("x")):
        state.begin_target()
        state.after(error, 0.0)
        pauses.append(state.backoff_s())
    assert pauses[:2] == [0, 0]
    assert 0.025 <= pauses[2] <= 0.075 and 0.05 <= pauses[3] <= 0.15 and 0.1 <= pauses[4] <= 0.3


def test_a_spent_budget_stops_all_retries_but_those_after_a_refused_connection():
    budget = RetryBudget(0.0, 0.1)
    state = RetryState(MANY, budget)
    state.begin_target()
    assert state.after(UpstreamTimeout("x", stage="first_byte"), 0.0) is NEXT
    state.begin_target()
    assert state.after(BadResponse("x"), 0.0) is STOP
    other = RetryState(MANY, budget)
    other.begin_target()
    assert other.after(ConnectFailed("x"), 0.0) is NEXT
    assert not other.may_retry_status(503, 0.0) and not other.may_retry_failure(0.0)
    assert other.may_retry_status(503, 11.0)
