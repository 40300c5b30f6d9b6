"""Whose step a prompt is: by where prompts ended, by names, through forks, edits and templates that add a tail."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.blocks import chain, pack, root
from router.routing.lineage import Found, Lineage, Session

BLOCK = 16
ROOT = root("m", block_size=BLOCK)


class Table:
    """A lineage fed with token ids; time moves by hand."""

    def __init__(self, max_sessions: int = 1000) -> None:
        self.now = 0.0
        self.lineage = Lineage(lambda: self.now, max_sessions)

    def find(self, ids: list[int], name: str | None = None, tenant: str = "") -> Found:
        packed = pack(ids)
        return self.lineage.find(chain(ROOT, packed, BLOCK), packed, BLOCK, name, tenant)

    def step(
        self, ids: list[int], replica: str = "r0", *, name: str | None = None, tenant: str = "", shared: int = 0
    ) -> Session:
        """Send a prompt and see its answer end."""
        packed = pack(ids)
        keys = chain(ROOT, packed, BLOCK)
        found = self.lineage.find(keys, packed, BLOCK, name, tenant)
        session = self.lineage.sent(found, replica, keys, packed, BLOCK, len(ids), shared, name, tenant, "m")
        self.lineage.ended(session)
        return session


def tokens(seed: int, count: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(1000) for _ in range(count)]


SYSTEM = tokens(0, 400)


def test_a_growing_prompt_is_one_session_and_a_shared_system_prompt_ties_nobody() -> None:
    table = Table()
    one, other = SYSTEM + tokens(1, 30), SYSTEM + tokens(2, 30)
    first, second = table.step(one), table.step(other)
    assert first is not second
    for step in range(5):
        one += tokens(10 + step, 70)
        other += tokens(20 + step, 70)
        assert table.step(one) is first
        assert table.step(other) is second
    assert (first.steps, second.steps, len(table.lineage)) == (6, 6, 2)


def test_prompts_that_differ_only_after_their_last_full_block_are_two_sessions() -> None:
    table = Table()
    one, other = [*SYSTEM, 1, 2, 3], [*SYSTEM, 1, 2, 4]
    first, second = table.step(one), table.step(other)
    assert first is not second
    assert table.step(one + tokens(1, 50)) is first
    assert table.step(other + tokens(2, 50)) is second


def test_a_generation_prompt_that_the_next_step_does_not_have_is_left_out_of_the_end() -> None:
    table = Table()
    opened = [900, 901, 902, 903, 904]  # an opened thought, which the history renders otherwise
    history = [SYSTEM + tokens(seed, 40) for seed in range(4)]
    sessions = [table.step(each + opened) for each in history]  # the tail is learnt from these
    for number, each in enumerate(history):
        each += tokens(50 + number, 60)
    again = [table.step(each + opened) for each in history]
    each = history[3] + tokens(99, 60)
    assert table.step(each + opened) is again[3]
    assert again[1:] == sessions[1:]


def test_a_second_continuation_of_a_passed_step_is_a_fork_with_a_parent() -> None:
    table = Table()
    start = SYSTEM + tokens(1, 40)
    main = table.step(start)
    table.step(start + tokens(2, 40))
    fork = table.step(start + tokens(3, 40))
    assert fork is not main
    assert fork.parent == main.id
    assert table.step(start + tokens(2, 40) + tokens(4, 40)) is main
    assert table.step(start + tokens(3, 40) + tokens(5, 40)) is fork


def test_the_same_prompt_again_is_the_same_session() -> None:
    table = Table()
    session = table.step(SYSTEM + tokens(1, 40))
    assert table.step(SYSTEM + tokens(1, 40)) is session
    assert session.growth == 0


def test_a_name_decides_where_an_edited_prompt_cannot() -> None:
    table = Table()
    session = table.step(SYSTEM + tokens(1, 100), name="a")
    edited = tokens(7, 400) + tokens(1, 200)
    assert table.find(edited) == Found(None, "new")
    found = table.find(edited, name="a")
    assert (found.session, found.how) == (session, "name")
    assert table.step(edited, name="a") is session


def test_another_name_on_the_same_history_is_another_session() -> None:
    table = Table()
    start = SYSTEM + tokens(1, 100)
    first = table.step(start, name="main")
    fork = table.step(start + tokens(2, 100), name="main/agent")
    assert fork is not first
    assert (fork.id, fork.parent) == ("main/agent", "main")


def test_tenants_never_continue_each_others_sessions() -> None:
    table = Table()
    session = table.step(SYSTEM + tokens(1, 100), tenant="a", name="s")
    assert table.find(SYSTEM + tokens(1, 100) + tokens(2, 50), tenant="b").session is None
    assert table.find(SYSTEM, name="s", tenant="b").session is None
    assert table.find(SYSTEM, name="s", tenant="a").session is session


def test_the_table_is_bounded_and_forgets_the_longest_unused() -> None:
    table = Table(max_sessions=10)
    kept = SYSTEM + tokens(0, 50)
    session = table.step(kept)
    for number in range(1, 60):
        table.step(SYSTEM + tokens(number, 50))
        kept += tokens(100 + number, 20)
        assert table.step(kept) is session
    lineage = table.lineage
    assert len(lineage) == 10
    assert sum(len(bucket) for bucket in lineage._ends.values()) == sum(len(each.ends) for each in lineage)
    assert table.find(SYSTEM + tokens(3, 50)).session is None


def test_sessions_that_stay_away_are_no_longer_warm() -> None:
    table = Table()
    for number in range(5):
        table.step(SYSTEM + tokens(number, 300), "r0", shared=400)
    warm = table.lineage.warm_tokens["r0"]
    assert warm > 0
    table.now += 10_000
    last = table.step(SYSTEM + tokens(9, 300), "r1", shared=400)
    assert table.lineage.warm_tokens == {"r1": pytest.approx(last.warm)}


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 60), st.booleans()), min_size=1, max_size=60))
def test_interleaved_agents_keep_their_own_sessions(moves: list[tuple[int, int, bool]]) -> None:
    table = Table()
    prompts: dict[int, list[int]] = {}
    sessions: dict[int, Session] = {}
    for turn, (agent, length, _) in enumerate(moves):
        # Each agent's text begins with its own number: two prompts never agree beyond the system prompt.
        prompts[agent] = prompts.get(agent, [*SYSTEM, 2000 + agent]) + tokens(turn, length)
        session = table.step(prompts[agent], f"r{agent % 3}")
        assert sessions.setdefault(agent, session) is session
    assert len(table.lineage) == len(sessions)
    lineage = table.lineage
    expected: dict[str, float] = {}
    for each in lineage:
        if each.warm:
            expected[each.warm_at] = expected.get(each.warm_at, 0.0) + each.warm
    assert lineage.warm_tokens == pytest.approx(expected)
