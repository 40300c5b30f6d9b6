"""Load counters return to zero whatever happens to a request."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.fleet.load import Load


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
