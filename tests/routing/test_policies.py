"""What each policy chooses, and why it says it did."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.engines import EngineInfo
from router.fleet.replica import Replica
from router.fleet.speed import PRIOR_RATE, effort
from router.routing.policies import POLICIES, LeastLoad, Prefix, Random, RoundRobin, Session
from router.routing.types import Ask, Candidate


def candidates(*held: int) -> list[Candidate]:
    return [Candidate(Replica(f"r{n}", f"http://r{n}:1"), tokens) for n, tokens in enumerate(held)]


def ask(prompt: int = 1000, session: str | None = None) -> Ask:
    return Ask(prompt, (prompt - 1) // 16 * 16, session)


def chosen(decision_order: object) -> str:
    return decision_order[0].replica.id  # type: ignore[index]


def test_prefix_takes_the_replica_that_holds_most() -> None:
    decision = Prefix().select(ask(), candidates(0, 640, 320))
    assert [c.replica.id for c in decision.order] == ["r1", "r2", "r0"]
    assert decision.reason == "prefix"
    assert decision.terms is not None
    assert [term.prefill for term in decision.terms] == pytest.approx(
        [2.0 * effort(tokens, 1000 - tokens) / PRIOR_RATE for tokens in (360, 680, 1000)]
    )


def test_prefix_leaves_a_holder_exactly_when_its_queue_costs_more_than_recomputing() -> None:
    saved = int(2 * (effort(1000, 0) - effort(360, 640)))
    for queued, expected, reason in ((saved, "r1", "prefix"), (saved + 1, "r0", "spilled")):
        options = candidates(0, 640)
        options[1].replica.load.begin(queued, sequences=0)
        decision = Prefix().select(ask(), options)
        assert (chosen(decision.order), decision.reason) == (expected, reason)


def test_prefix_counts_the_room_that_a_new_copy_takes_in_a_cache_that_fills_up() -> None:
    """One session in a row of 640 shared tokens: the holder is busy enough for a copy to pay, unless it evicts."""
    for warm, expected in ((0.0, "r0"), (9_000.0, "r1")):
        options = candidates(0, 640)
        for option in options:
            option.replica.info = EngineInfo(kind="vllm", models=("m",), kv_tokens=10_000)
            option.replica.load.warm_tokens = warm
        options[1].replica.load.begin(700, sequences=0)
        wanted = Ask(1000, 992, shared_tokens=640, copy_users=6.0, steps_left=1.0)
        assert chosen(Prefix().select(wanted, options).order) == expected


def test_prefix_counts_running_sequences() -> None:
    options = candidates(0, 0)
    options[0].replica.load.begin(0).first_byte()
    assert chosen(Prefix().select(ask(), options).order) == "r1"


def test_prefix_computes_a_long_prompt_where_the_fewest_answers_stand_still_for_it() -> None:
    for prompt, expected in ((200, "r0"), (20_000, "r1")):
        options = candidates(0, 0)
        for _ in range(10):
            options[0].replica.load.begin(0).first_byte()
        options[1].replica.load.begin(1500, sequences=0)
        assert chosen(Prefix().select(ask(prompt), options).order) == expected


def test_prefix_breaks_ties_by_least_recent_use() -> None:
    options = candidates(320, 320, 320)
    for turn, candidate in zip((3, 1, 2), options, strict=True):
        candidate.replica.load.turn = turn
    decision = Prefix().select(ask(), options)
    assert [c.replica.id for c in decision.order] == ["r1", "r2", "r0"]
    assert decision.reason == "shared"


def test_prefix_never_counts_on_more_than_an_engine_can_reuse() -> None:
    # 64 tokens are four blocks, but the engine recomputes the last one: both replicas are equally good.
    options = candidates(64, 48)
    assert Prefix().select(Ask(64, 48), options).reason == "shared"


@pytest.mark.parametrize(("held", "reason"), [((0, 0), "cold"), ((0,), "only"), ((160, 160), "shared")])
def test_prefix_reasons(held: tuple[int, ...], reason: str) -> None:
    assert Prefix().select(ask(), candidates(*held)).reason == reason


def test_round_robin_visits_everyone_equally() -> None:
    policy, options = RoundRobin(), candidates(0, 0, 0)
    assert [chosen(policy.select(ask(), options).order) for _ in range(6)] == ["r0", "r1", "r2"] * 2


def test_random_visits_everyone() -> None:
    policy, options = Random(seed=1), candidates(0, 0, 0)
    counts = Counter(chosen(policy.select(ask(), options).order) for _ in range(300))
    assert min(counts.values()) > 60


def test_least_load_is_blind_to_the_cache() -> None:
    options = candidates(960, 0)
    options[0].replica.load.begin(10)
    assert chosen(LeastLoad().select(ask(), options).order) == "r1"


def test_a_session_stays_when_other_replicas_go() -> None:
    options = candidates(*[0] * 8)
    policy = Session()
    homes = {f"s{n}": chosen(policy.select(ask(session=f"s{n}"), options).order) for n in range(200)}
    assert len(set(homes.values())) == 8
    gone = options[3].replica.id
    rest = [c for c in options if c.replica.id != gone]
    for session, home in homes.items():
        now = chosen(policy.select(ask(session=session), rest).order)
        assert now == home or home == gone


def test_without_a_session_key_the_session_policy_goes_by_load() -> None:
    options = candidates(0, 0)
    options[0].replica.load.begin(10)
    assert chosen(Session().select(ask(), options).order) == "r1"


@given(
    name=st.sampled_from(sorted(POLICIES)),
    held=st.lists(st.integers(0, 5000), min_size=1, max_size=12),
    prompt=st.integers(0, 4000),
    queued=st.lists(st.integers(0, 9000), min_size=12, max_size=12),
    session=st.none() | st.text(max_size=5),
)
def test_every_policy_orders_all_candidates_once(
    name: str, held: list[int], prompt: int, queued: list[int], session: str | None
) -> None:
    options = candidates(*held)
    for option, tokens in zip(options, queued, strict=False):
        option.replica.load.begin(tokens)
    decision = POLICIES[name]().select(Ask(prompt, prompt, session), options)
    assert sorted(c.replica.id for c in decision.order) == sorted(c.replica.id for c in options)
    assert decision.reason
