"""What predicted and actual cached tokens say about a replica, over time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.catalog import Catalog
from router.fleet.feeds import Feeds
from router.fleet.replica import Feed, Replica
from router.index.memory import MemoryIndex
from router.index.overlay import PredictedOverlay
from router.index.types import Match
from router.observe.agreement import Agreement
from router.prompt.stage import Prompt, PromptStage
from router.proxy.plan import Outcome
from router.proxy.watch import Usage
from router.trust import Trust

PROMPT = Prompt(tokens=1000, chain=list(range(62)), block_size=16, exact=True)


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), max_size=60))
def test_drift_is_a_share_and_equal_pairs_have_none(pairs: list[tuple[int, int]]) -> None:
    mixed, equal, apart = Agreement(), Agreement(), Agreement()
    for expected, seen in pairs:
        mixed.note(expected, seen)
        equal.note(expected, expected)
        apart.note(expected + 1, 0)
    assert 0 <= mixed.drift <= 1
    assert equal.drift == 0
    assert apart.drift == (1 if pairs else 0)
    assert apart.samples == len(pairs)


def test_what_is_long_past_doesn_t_count() -> None:
    agreement = Agreement(half_life=5)
    for _ in range(50):
        agreement.note(100, 0)
    for _ in range(50):
        agreement.note(100, 100)
    assert agreement.drift < 0.01


@pytest.fixture
async def trust() -> AsyncIterator[Trust]:
    prompts = PromptStage({})
    feeds = Feeds(MemoryIndex(1000, PredictedOverlay(5)), shadow_blocks=10)
    trust = Trust(prompts, Catalog([], None, 1 << 20, 1 << 20), feeds, interval_s=300, drift_alert=0.25)
    yield trust
    await trust.close()
    prompts.close()


def answer(trust: Trust, replica: Replica, predicted_blocks: int, cached: int | None, times: int = 1) -> None:
    usage = Usage(prompt_tokens=1000, completion_tokens=5, cached_tokens=cached)
    for _ in range(times):
        trust.answered(replica, PROMPT, Match(predicted_blocks), Outcome(replica.id, 200, usage=usage))


def followed(trust: Trust) -> Replica:
    replica = Replica("r", "http://127.0.0.1:9", feed=Feed.EVENTS)
    trust.watch(replica)
    return replica


async def test_predictions_that_come_true_say_nothing(trust: Trust) -> None:
    replica = followed(trust)
    answer(trust, replica, 62, 992, 100)
    answer(trust, replica, 0, 0, 100)
    assert (trust.alerts(), replica.distrust) == ([], "")
    drifts = {name: value for name, _, value in trust.samples()}
    assert drifts["prediction_drift"] == 0


async def test_predictions_that_are_off_raise_an_alert_until_they_are_right_again(
    trust: Trust, caplog: pytest.LogCaptureFixture
) -> None:
    replica = followed(trust)
    answer(trust, replica, 50, 480, 15)
    assert trust.alerts() == []
    answer(trust, replica, 50, 480, 15)
    assert len(trust.alerts()) == 1
    assert "replica r" in trust.alerts()[0]
    assert replica.distrust == "", "off, but not hopeless"
    assert "differ by 40 %" in caplog.text
    answer(trust, replica, 50, 800, 60)
    assert trust.alerts() == []


@pytest.mark.parametrize(("predicted", "cached"), [(0, 960), (60, 0)])
async def test_predictions_that_are_never_right_end_in_quarantine_and_it_ends(
    trust: Trust, predicted: int, cached: int
) -> None:
    replica = followed(trust)
    answer(trust, replica, 1, 16)  # it reports cached tokens at all
    answer(trust, replica, predicted, cached, 40)
    assert "cached_tokens differ" in replica.distrust
    answer(trust, replica, 60, 960, 20)
    assert replica.distrust, "not yet: too much was wrong a moment ago"
    answer(trust, replica, 60, 960, 60)
    assert replica.distrust == ""


async def test_an_engine_that_does_not_report_is_not_judged(trust: Trust) -> None:
    replica = followed(trust)
    answer(trust, replica, 60, None, 100)
    assert (trust.alerts(), replica.distrust) == ([], "")
    answer(trust, replica, 60, 960)
    answer(trust, replica, 60, None, 100)  # now its silence means 0
    assert replica.distrust


async def test_other_feeds_and_approximate_prompts_are_no_evidence(trust: Trust) -> None:
    replica = followed(trust)
    replica.feed = Feed.SHADOW
    answer(trust, replica, 60, 0, 100)
    replica.feed = Feed.EVENTS
    approximate = Prompt(1000, PROMPT.chain, 16, False, "multimodal")
    usage = Usage(1000, 5, 16)
    for _ in range(100):
        trust.answered(replica, approximate, Match(60), Outcome("r", 200, usage=usage))
    assert (trust.alerts(), replica.distrust) == ([], "")
    trust.unwatch("r")
    answer(trust, replica, 60, 0, 100)
    assert replica.distrust == ""
