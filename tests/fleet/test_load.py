"""Load counters return to zero whatever happens to a request."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.fleet.load import RECENT_S, Load


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 4), st.lists(st.booleans(), max_size=3)), max_size=20))
def test_counters_are_the_sum_of_what_is_unfinished_and_end_at_zero(
    requests: list[tuple[int, int, list[bool]]],
) -> None:
    load = Load()
    tickets = []
    for tokens, sequences, calls in requests:
        ticket = load.begin(tokens, sequences)
        tickets.append(ticket)
        for ended in calls:
            ticket.end() if ended else ticket.first_byte()
        assert load.pending_prefill >= 0 and load.running >= 0
    waiting = sum(tokens for tokens, _, calls in requests if not calls)
    assert load.pending_prefill == waiting
    for ticket in tickets:
        ticket.end()
    assert (load.pending_prefill, load.running) == (0, 0)


@given(st.lists(st.tuples(st.floats(0.01, 400), st.integers(0, 50_000), st.booleans()), min_size=1, max_size=30))
def test_recent_work_is_what_was_sent_each_faded_by_its_age(moves: list[tuple[float, int, bool]]) -> None:
    """Against the definition, over many epochs: the mean of the past, weighted by exp(-age / RECENT_S)."""
    load, now, sent, tickets = Load(), 0.0, [], []
    spans: list[tuple[float, float, int]] = []
    for wait, work, ends in moves:
        spans.append((now, now + wait, load.running))
        now += wait
        if ends and tickets:
            tickets.pop().end(now)
        else:
            tickets.append(load.begin(work, 1, now))
            sent.append((now, work))
    rate, sequences = load.recent(now)
    assert rate == pytest.approx(sum(work * math.exp((at - now) / RECENT_S) for at, work in sent) / RECENT_S, abs=1e-3)
    usual = sum(n * (math.exp((end - now) / RECENT_S) - math.exp((start - now) / RECENT_S)) for start, end, n in spans)
    assert sequences == pytest.approx(usual, abs=1e-6)
