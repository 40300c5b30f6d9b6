"""A replica that starts slowly gets its share and no more."""

from __future__ import annotations

from router.fleet.replica import Replica
from router.routing.ramp import ramped
from router.routing.types import Candidate


def candidate(name: str, weight: float, running: int) -> Candidate:
    replica = Replica(name, f"http://{name}", weight=weight)
    replica.load.begin(0, running)
    return Candidate(replica)


def order(*candidates: Candidate) -> list[str]:
    return [c.replica.id for c in ramped(candidates)]


def test_over_its_share_it_comes_last() -> None:
    assert order(candidate("new", 0.2, 4), candidate("a", 1, 20), candidate("b", 1, 10)) == ["a", "b", "new"]
    assert order(candidate("new", 0.2, 3), candidate("a", 1, 20), candidate("b", 1, 10)) == ["new", "a", "b"]


def test_it_always_gets_one_and_a_fleet_of_newcomers_keeps_its_order() -> None:
    assert order(candidate("new", 0.1, 0), candidate("a", 1, 0)) == ["new", "a"]
    assert order(candidate("new", 0.1, 1), candidate("a", 1, 0)) == ["a", "new"]
    assert order(candidate("x", 0.1, 0), candidate("y", 0.1, 0)) == ["x", "y"]
