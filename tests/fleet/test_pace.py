"""What answers take a token is learnt from the answers: the step, and how much it grows with the context beside it."""

from __future__ import annotations

import random

import pytest

from router.fleet.load import Load
from router.fleet.pace import PRIOR_STEP_S, FleetPace


@pytest.mark.parametrize(("step_s", "token_s"), [(0.0065, 4.35e-8), (0.02, 1.6e-7), (0.03, 0.0)])
def test_the_line_is_found_among_answers_of_any_length(step_s: float, token_s: float) -> None:
    source, pace = random.Random(1), FleetPace()
    for _ in range(1500):
        context, tokens = source.uniform(0, 2e6), 8 + int(source.expovariate(1 / 200))
        seconds = (step_s + token_s * context) * (tokens - 1) * source.lognormvariate(0, 0.2)
        pace.observe(tokens, seconds, context)
    assert pace.step_s == pytest.approx(step_s, rel=0.15)
    assert pace.token_s == pytest.approx(token_s, rel=0.1, abs=1e-9)
    assert pace.wait(1e6) == pytest.approx(1.5e6 * pace.token_s)


def test_nothing_is_taken_to_slow_answers_down_before_one_is_seen() -> None:
    pace = FleetPace()
    assert (pace.step_s, pace.token_s) == (PRIOR_STEP_S, 0.0)
    pace.observe(3, 60.0, 1e6)
    assert (pace.step_s, pace.token_s) == (PRIOR_STEP_S, 0.0), "three tokens say nothing"
    pace.observe(50, -1.0, 0.0)  # prompts in between are estimated to have taken longer than all of it
    assert pace.step_s > 0.0 and pace.token_s >= 0.0


def test_a_stall_is_no_pace() -> None:
    pace = FleetPace()
    for _ in range(500):
        pace.observe(100, 0.99, 50_000.0)
    pace.observe(100, 3600.0, 60_000.0)
    assert pace.step_s + pace.token_s * 50_000.0 == pytest.approx(0.01, rel=0.05)


def test_the_context_beside_an_answer_is_its_mean_over_time() -> None:
    load = Load()
    one = load.begin(100, now=0.0, context=1_000)
    one.first_byte(1.0)
    two = load.begin(50, now=2.0, context=500)
    assert (one.among, two.among) == (0, 1_000)
    two.first_byte(3.0)
    assert one.beside(5.0) == (1_000 * 4 + 500 * 3, 50)
    two.end(5.0)
    one.end(9.0)
    assert load.context == 0
    assert two.beside(5.0)[1] == 0
