"""What placement learns: speed, habits, recent load, hot prefixes, state that is in one replica, classes."""

from __future__ import annotations

import random

import pytest

from router.fleet.load import Load
from router.fleet.replica import Replica
from router.fleet.speed import FleetSpeed, Speed, effort
from router.routing.habits import Habits
from router.routing.lineage import Lineage
from router.routing.placement import Facts, Placement
from router.routing.policies import Prefix
from router.routing.pools import Pools
from router.routing.popularity import HotPrefix, Popularity
from router.routing.sticky import StickyTable
from router.routing.types import Candidate


def test_the_fleets_line_is_found_and_a_slow_replica_stands_out() -> None:
    fleet, fast, slow = FleetSpeed(), Speed(), Speed()
    for number in range(400):
        work = 100 + number * 37 % 3000
        for speed, factor in ((fast, 1.0), (fast, 1.0), (fast, 1.0), (slow, 3.0)):
            speed.observe(fleet, work, factor * (0.01 + work / 20_000), 0.0)
    assert fleet.rate == pytest.approx(20_000, rel=0.1), "of those that are alike, not of the slow one"
    assert slow.slowness / fast.slowness == pytest.approx(3.0, rel=0.25)


def test_replicas_that_get_longer_prompts_are_not_taken_for_slow_ones() -> None:
    """The same engine, other prompts: ten in a queue are computed in half the time of one as long as all of them."""
    fleet, queue, long = FleetSpeed(), Speed(), Speed()
    for number in range(400):
        tokens = 10_000 + number * 3_777 % 90_000
        for speed, prompts in ((queue, 10), (long, 1)):
            each = tokens // prompts
            seconds = 0.007 + prompts * each * (1 + each / 2 / 30_000) / 28_000
            speed.observe(fleet, prompts * effort(each, 0), seconds, 0.0)
    assert long.slowness / queue.slowness == pytest.approx(1.0, abs=0.1)


def test_chance_makes_no_replica_fast_or_slow() -> None:
    source, fleet, speeds = random.Random(1), FleetSpeed(), [Speed() for _ in range(32)]
    furthest = 0.0
    for _ in range(60):
        for speed in speeds:
            speed.observe(fleet, 2000, 0.1 * source.lognormvariate(0, 0.4), 0.0)
        furthest = max(furthest, *(abs(speed.slowness - 1) for speed in speeds))
    assert furthest < 0.1


def test_a_single_stall_is_not_a_speed() -> None:
    fleet, speed = FleetSpeed(), Speed()
    for _ in range(100):
        speed.observe(fleet, 500, 0.05, 0.0)
    speed.observe(fleet, 500, 60.0, 0.0)
    assert speed.slowness < 1.2


def answers(fleet: FleetSpeed, factors: dict[Speed, float], count: int, now: float, seed: int = 0) -> float:
    """Each replica answers `count` requests of all sizes, one every 50 ms, this many times slower; the time after."""
    source = random.Random(seed)
    for _ in range(count):
        for speed, factor in factors.items():
            now += 0.05
            work = source.randint(300, 4000)
            seconds = factor * source.lognormvariate(0, 0.2) * (0.015 + work / 12_500)
            speed.observe(fleet, work, seconds, now)
    return now


def test_one_or_two_answers_show_a_slow_replica_and_ten_that_it_recovered() -> None:
    for seed in range(20):
        fleet, slow, rest = FleetSpeed(), Speed(), [Speed() for _ in range(3)]
        alike = dict.fromkeys(rest, 1.0)
        now = answers(fleet, alike, 5, 0.0, seed)
        now = answers(fleet, {slow: 4.0}, 2, now, seed)
        assert slow.slowness > 1.5
        now = answers(fleet, {slow: 4.0, **alike}, 20, now, seed)
        assert slow.slowness == pytest.approx(4.0, rel=0.35)
        assert all(other.slowness == pytest.approx(1.0, abs=0.2) for other in rest)
        now = answers(fleet, {slow: 1.0, **alike}, 15, now, seed)
        assert slow.slowness == pytest.approx(1.0, abs=0.3)
        now = answers(fleet, {slow: 4.0, **alike}, 5, now, seed)
        assert slow.slowness > 1.5, "it became slow again"


def test_a_fleet_that_slows_down_altogether_is_not_one_of_slow_replicas() -> None:
    fleet, speeds = FleetSpeed(), [Speed() for _ in range(4)]
    now = answers(fleet, dict.fromkeys(speeds, 1.0), 200, 0.0)
    before = fleet.predict(2000)
    answers(fleet, dict.fromkeys(speeds, 2.0), 400, now)
    assert fleet.predict(2000) == pytest.approx(2 * before, rel=0.1)
    assert all(speed.slowness == pytest.approx(1.0, abs=0.1) for speed in speeds)


def test_what_is_known_of_a_replica_fades_so_that_it_is_tried_again() -> None:
    fleet, slow, other = FleetSpeed(), Speed(), Speed()
    now = answers(fleet, {slow: 4.0, other: 1.0}, 10, 0.0)
    assert slow.slowness > 2 * other.slowness
    slow.look(fleet, now + 600)
    assert slow.slowness == 1.0


def test_an_overdue_answer_shows_a_slow_replica_before_it_comes() -> None:
    now = [0.0]
    placement = Placement(Prefix(), lambda: now[0])
    options = [Candidate(Replica(f"r{number}", f"http://r{number}:1")) for number in range(3)]
    for number in range(10):
        sent = placement.sent(placement.look(Facts([number + 1], None, 16, 2000), 0), options[number % 2])
        now[0] += 0.2
        sent.first_byte(now[0])
        sent.ended(now[0])
    late = placement.sent(placement.look(Facts([100], None, 16, 2000), 0), options[2])
    for waited, slow in ((0.2, False), (0.7, True)):
        now[0] = 10 * 0.2 + waited
        placement.refresh([one.replica for one in options])
        assert (options[2].replica.speed.slowness > 1.5) is slow
    late.ended(now[0])
    placement.refresh([one.replica for one in options])
    assert options[2].replica.speed.slowness == 1.0, "its client left: nothing was observed"


def test_a_prompt_under_way_is_counted_by_the_time_it_takes() -> None:
    load = Load()
    first = load.begin(4000, 1, 10.0)
    load.begin(1000, 1, 10.125)
    assert load.left(10.125, 10_000) == 3750
    assert load.left(13.0, 10_000) == 3000, "half of the first at most: it hasn't answered"
    first.first_byte(13.0)
    assert load.left(13.0, 10_000) == 1000
    assert load.left(13.0625, 10_000) == 500


def test_recent_work_outlives_requests_and_fades() -> None:
    load = Load()
    for second in range(60):
        ticket = load.begin(3000, 1, float(second))
        ticket.first_byte()
        ticket.end(second + 0.5)
    assert (load.pending_prefill, load.running) == (0, 0)
    tokens, sequences = load.recent(60.0)
    assert tokens == pytest.approx(3000 * 0.86, rel=0.1)
    assert sequences == pytest.approx(0.5 * 0.86, rel=0.1)
    assert load.recent(360.0)[0] < 1


def test_an_answer_in_one_piece_leaves_the_queue_when_its_prompt_should_be_done() -> None:
    load = Load()
    ticket = load.begin(4000, 1, 10.0, due=10.5, told=False)
    load.settle(10.4)
    assert load.queued_tokens == 4000
    load.settle(10.5)
    assert (load.queued_tokens, load.sequences) == (0, 1)
    ticket.end(12.0)
    assert (load.queued_tokens, load.sequences) == (0, 0)


def test_single_questions_and_agents_have_habits_of_their_own() -> None:
    habits = Habits()
    single, agent = habits.kind(100, 0), habits.kind(3000, 2000)
    for _ in range(300):
        habits.ended(single)
        habits.ended(agent)
        for _ in range(9):
            habits.continued(agent, 400, 1.0)
    assert habits.steps_left(single) < 1
    assert habits.steps_left(agent) == pytest.approx(9, rel=0.15)
    assert habits.growth(agent) == pytest.approx(400, rel=0.1)
    assert habits.returns(single) < 0.5 < habits.returns(agent)


def test_sessions_under_way_do_not_count_as_never_coming_back() -> None:
    now = [0.0]
    lineage = Lineage(lambda: now[0])
    kind = lineage.habits.kind(64, 0)

    def step(name: str, blocks: int) -> None:
        found = lineage.find(list(range(blocks)), None, 16, name, "")
        session = lineage.sent(found, "r0", list(range(blocks)), None, 16, 16 * blocks, 0, name, "")
        lineage.ended(session)

    before = lineage.habits.steps_left(kind)
    for number in range(100):
        step(f"agent-{number}", 4)
    assert lineage.habits.steps_left(kind) == before
    for number in range(100):
        step(f"agent-{number}", 8)
    assert lineage.habits.steps_left(kind) > before
    now[0] = 3600.0
    step("another", 4)
    assert lineage.habits.steps_left(kind) < 1.1, "each of a hundred came back once, and no more"


def test_prefixes_are_counted_faded_and_bounded() -> None:
    popularity = Popularity(max_prefixes=3)
    for second in range(10):
        popularity.note(1, second)
    popularity.note(2, 10)
    assert popularity.expected(1, 10) == pytest.approx(60, rel=0.05), "one a second"
    assert popularity.expected(2, 10) == 0, "one is no rate yet"
    assert popularity.expected(1, 1000) == pytest.approx(1, rel=0.01), "the one who asks"
    first, second = HotPrefix("m", "", b"1"), HotPrefix("m", "salt", b"2")
    for key, prefix in ((1, first), (2, second)):
        popularity.note(key, 10, prefix)
    assert [prefix for prefix, _ in popularity.hottest(2, 10)] == [first, second]
    for key in range(3, 9):
        popularity.note(key, 11)
    assert len(popularity) == 3
    assert popularity.hottest(5, 11) == []


def test_a_burst_is_no_rate_and_a_crowd_is_one_within_its_first_moments() -> None:
    burst, crowd = Popularity(), Popularity()
    for number in range(8):
        burst.note(1, 5.0 + number * 0.0005)
        crowd.note(1, 5.0 + number * 0.03)
    assert burst.expected(1, 5.004) < 3
    assert crowd.expected(1, 5.24) > 60


def test_state_is_remembered_within_bounds() -> None:
    table = StickyTable(max_entries=2)
    table.keep(("", "response", "a"), "r0")
    table.keep(("", "response", "b"), "r1")
    assert table.home(("", "response", "a")) == "r0"
    table.keep(("", "response", "c"), "r1")
    assert table.home(("", "response", "b")) is None
    assert table.home(("other", "response", "a")) is None
    assert table.home(None) is None


def test_a_failed_try_moves_the_session_and_books_nothing_twice() -> None:
    now = [0.0]
    placement = Placement(Prefix(), lambda: now[0])
    candidates = [Candidate(Replica(name, f"http://{name}:1")) for name in ("a", "b")]
    facts = Facts(list(range(1, 11)), None, 16, 170)
    past = placement.look(facts, 0)
    first = placement.sent(past, candidates[0])
    first.ended(0.1)
    second = placement.sent(past, candidates[1])
    second.first_byte(0.2)
    second.ended(0.3)
    (session,) = placement.lineage
    assert (session.steps, session.home, session.active) == (1, "b", 0)
    assert all(c.replica.load.running == 0 == c.replica.load.pending_prefill for c in candidates)
    assert list(placement.lineage.warm_tokens) == ["b"]
    assert candidates[0].replica.speed.slowness == 1.0


def test_classes_go_to_their_pools_and_to_anyone_while_those_are_away() -> None:
    placement = Placement(Prefix(), lambda: 0.0)
    big = Candidate(Replica("big", "http://big:1", labels={"tier": "big"}))
    small = Candidate(Replica("small", "http://small:1", labels={"tier": "small"}))
    pools = Pools(512, {"tier": "small"}, {"tier": "big"})
    light = placement.look(Facts([1, 2], None, 16, 40), 0)
    heavy = placement.look(Facts(list(range(1, 200)), None, 16, 3200), 0)
    assert pools.is_light(light)
    assert not pools.is_light(heavy)
    assert list(pools.select(light, [big, small])) == [small]
    assert list(pools.select(heavy, [big, small])) == [big]
    assert list(pools.select(light, [big])) == [big]
    placement.sent(light, small)
    again = placement.look(Facts([1, 2, 3], None, 16, 55), 32)
    assert not pools.is_light(again), "it continues a session"
