"""Why blocks are held by nobody: the last replica that had them, events that come late, silent overflows."""

from __future__ import annotations

from dataclasses import dataclass, field

from router.observe.attribution import Cause, Facts, attribute
from router.observe.doubt import Doubt
from router.observe.past import ENTRY_BYTES, PLACES, Past, Standing

CHAIN = list(range(1000, 1100))
SIZE = 16


@dataclass
class World:
    """Replicas' standings and the time, as set by a test."""

    now: float = 100.0
    standings: dict[str, Standing] = field(default_factory=dict)

    def past(self) -> Past:
        return Past(lambda replica: self.standings.get(replica, Standing()), clock=lambda: self.now)

    def restart(self, past: Past, replica: str) -> None:
        self.now += 1
        before = self.standings.get(replica, Standing())
        self.standings[replica] = before._replace(clears=before.clears + 1, restarts=before.restarts + 1)
        past.cleared(replica)


def causes(past: Past, *, held: int = 0, asked: str = "c") -> list[tuple[int, Cause]]:
    return [(lost.until, lost.cause) for lost in past.lost(CHAIN, held, asked, SIZE)]


def test_the_last_holder_counts() -> None:
    world = World()
    past = world.past()
    past.sent("a", CHAIN)
    world.now += 1
    past.sent("b", CHAIN)
    world.now += 1
    past.dropped("b", CHAIN)
    assert causes(past) == [(100, Cause.STALE)]  # `a` should have them still
    world.restart(past, "a")
    assert causes(past) == [(100, Cause.GONE)]

    world = World()
    past = world.past()
    past.sent("a", CHAIN)
    past.sent("b", CHAIN)
    world.restart(past, "a")
    world.now += 1
    past.dropped("b", CHAIN)
    assert causes(past) == [(100, Cause.EVICTED)]


def test_each_part_has_its_cause() -> None:
    world = World()
    past = world.past()
    past.sent("a", CHAIN[:40])
    past.sent("b", CHAIN)
    world.now += 1
    past.dropped("b", CHAIN)
    world.restart(past, "a")
    (first, gone), (last, evicted) = causes(past)
    assert (gone, evicted, last) == (Cause.GONE, Cause.EVICTED, 100)
    assert abs(first - 40) <= len(CHAIN) // PLACES
    assert causes(past, held=40) == [(100, Cause.EVICTED)]


def test_who_is_asked_has_answered_already() -> None:
    world = World()
    past = world.past()
    past.sent("a", CHAIN)
    assert causes(past, asked="b") == [(100, Cause.STALE)]
    assert causes(past, asked="a") == [(100, Cause.EVICTED)]


def test_what_was_refused_was_not_computed() -> None:
    world = World()
    past = world.past()
    past.sent("a", CHAIN[:40])
    world.now += 1
    at = past.sent("b", CHAIN).at
    assert past.known(CHAIN) == 100
    past.refused(CHAIN, at)
    assert past.known(CHAIN) == 40
    assert causes(past, asked="a") == [(40, Cause.EVICTED)]


def test_an_overflow_that_nobody_told_of() -> None:
    world = World(standings={"a": Standing(tokens=2000, heard=1.0)})
    past = world.past()
    past.sent("a", CHAIN, tokens=1600)
    past.computed("a", 1600)
    assert past.likely("a", CHAIN, 100, SIZE) == 100
    past.computed("a", 1200)
    assert past.likely("a", CHAIN, 100, SIZE) == (2000 - 1200) // SIZE
    world.standings["a"] = Standing(tokens=2000, heard=world.now)  # it was heard of since: what it says is taken
    assert past.likely("a", CHAIN, 100, SIZE) == 100


def test_a_removal_that_comes_late_corrects_the_record() -> None:
    world = World()
    past = world.past()
    past.sent("a", CHAIN)
    facts = Facts(prompt=1600, hittable=1584, matched=0, best=1584, known=1600, cached=0)
    assert attribute(facts).cause is Cause.SPILLED
    doubt = Doubt.of(facts, world.now, CHAIN, [("a", 1584)], 0)
    assert doubt is not None
    world.now += 10
    past.dropped("a", CHAIN)
    assert doubt.settled(past) is None  # evicted after the decision
    assert not past.told_late
    past.dropped("a", CHAIN, age_s=11)
    assert past.told_late
    settled = doubt.settled(past)
    assert settled is not None
    assert settled.tokens == {Cause.NEW: 16, Cause.STALE: 1584}


def test_what_is_remembered_is_bounded_whatever_the_number_of_replicas() -> None:
    past = Past(lambda replica: Standing(), max_bytes=1 << 20)
    bound = (1 << 20) // ENTRY_BYTES
    for step in range(400):
        keys = range(step * 100, step * 100 + 100)
        past.sent(f"r{step % 7}", list(keys))
        past.dropped(f"r{step % 50}", list(keys))
    assert bound // 4 < past.entries <= bound + 50 * 100 + 100
    assert past.dropped_at("r49", 39_999) is not None
    assert past.known(list(range(39_900, 40_000))) == 100
    assert past.dropped_at("r0", 0) is None
    assert past.known(list(range(100))) == 0
