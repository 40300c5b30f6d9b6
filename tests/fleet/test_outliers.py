"""Ejection, half-open trials, panic and slow start, on a clock of the test's own."""

from __future__ import annotations

import pytest

from router.engines import EngineInfo
from router.fleet.breaker import Circuit
from router.fleet.fleet import Fleet
from router.fleet.judge import Judge
from router.fleet.outliers import OutlierPolicy, Outliers
from router.fleet.replica import Health, Replica

INFO = EngineInfo(kind="vllm", models=("m",))


class World:
    def __init__(self, count: int, **policy: float) -> None:
        self.now = 1000.0
        self.fleet = Fleet()
        self.refused: list[str] = []
        self.checked: list[str] = []
        self.outliers = Outliers(
            self.fleet,
            OutlierPolicy(**policy),  # type: ignore[arg-type]
            unreachable=lambda replica, reason: self.refused.append(replica.id),
            check=lambda replica: self.checked.append(replica.id),
            clock=lambda: self.now,
        )
        self.replicas = [Replica(f"r{n}", f"http://r{n}", info=INFO, health=Health.UP) for n in range(count)]
        for replica in self.replicas:
            self.fleet.add(replica)

    def fail(self, index: int, times: int = 5) -> None:
        for _ in range(times):
            self.outliers.failed(self.replicas[index], "lost")

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.outliers.tick()

    @property
    def used(self) -> list[str]:
        return [replica.id for replica in self.fleet.candidates("m")]


def test_five_failures_in_a_row_eject_a_success_between_does_not() -> None:
    world = World(3)
    world.fail(0, 4)
    world.outliers.succeeded(world.replicas[0])
    world.fail(0, 4)
    assert world.used == ["r0", "r1", "r2"]
    world.fail(0, 1)
    assert world.used == ["r1", "r2"] and world.outliers.ejections == 1
    assert set(world.checked) == {"r0"}, "every failure asks for a probe"


def test_half_open_lets_one_request_pass_at_a_time() -> None:
    world = World(3, eject_s=5)
    world.fail(0)
    world.pass_time(4.9)
    assert "r0" not in world.used
    world.pass_time(0.2)
    assert "r0" in world.used
    first = Judge(world.outliers)
    first.sent(world.replicas[0])
    assert "r0" not in world.used, "the trial is under way"
    first.ended(world.replicas[0], "client_gone", None, "", full=False)
    assert "r0" in world.used, "it said nothing: another trial"
    second = Judge(world.outliers)
    second.sent(world.replicas[0])
    second.answered(world.replicas[0], 200)
    second.ended(world.replicas[0], None, 200, "", full=False)
    assert "r0" in world.used and world.replicas[0].breaker.circuit is Circuit.CLOSED
    assert world.replicas[0].weight == pytest.approx(0.1)
    world.pass_time(2.5)
    assert world.replicas[0].weight == pytest.approx(0.5) and world.fleet.ramping
    world.pass_time(3)
    assert world.replicas[0].weight == 1.0 and not world.fleet.ramping


def test_each_ejection_lasts_twice_as_long_until_the_replica_was_well_for_as_long() -> None:
    world = World(3, eject_s=5, eject_max_s=15)
    replica = world.replicas[0]
    world.fail(0)
    lengths = []
    for _ in range(4):
        begun = world.now
        while "r0" not in world.used:
            world.pass_time(0.5)
        lengths.append(world.now - begun)
        world.outliers.sent(replica)
        world.outliers.failed(replica, "lost")
    assert lengths == [5, 10, 15, 15]
    world.pass_time(15)
    world.outliers.succeeded(replica)
    world.pass_time(20)
    world.fail(0)
    world.pass_time(5.1)
    assert "r0" in world.used, "forgiven"


def test_never_more_than_half_are_ejected_and_panic_uses_all() -> None:
    world = World(4)
    for index in range(4):
        world.fail(index, 9)
    assert len(world.used) == 2
    alone = World(1)
    alone.fail(0, 50)
    assert alone.used == ["r0"]
    # Two of four are ejected; the other two go down: better those than none.
    world.replicas[2].mark(Health.DOWN, "")
    world.replicas[3].mark(Health.DOWN, "")
    assert world.used == ["r0", "r1"]


def test_a_high_share_of_failures_ejects_unless_all_fare_so() -> None:
    world = World(3)
    for _ in range(20):
        for replica in world.replicas[1:]:
            world.outliers.succeeded(replica)
        world.outliers.failed(world.replicas[0], "x")
        world.outliers.succeeded(world.replicas[0])
    world.outliers.failed(world.replicas[0], "x")
    assert world.used == ["r1", "r2"]
    same = World(3)
    for _ in range(20):
        for replica in same.replicas:
            same.outliers.failed(replica, "x")
            same.outliers.succeeded(replica)
    assert len(same.used) == 3


def test_a_request_that_fails_everywhere_is_to_blame_itself() -> None:
    world = World(3)
    for _ in range(20):
        judge = Judge(world.outliers)
        for replica in world.replicas[:2]:
            judge.sent(replica)
            judge.ended(replica, "status", 500, "answered 500", full=False)
    assert len(world.used) == 3
    for _ in range(5):
        judge = Judge(world.outliers)
        judge.sent(world.replicas[0])
        judge.ended(world.replicas[0], "status", 500, "answered 500", full=False)
        judge.sent(world.replicas[1])
        judge.answered(world.replicas[1], 200)
        judge.ended(world.replicas[1], None, 200, "", full=False)
    assert world.used == ["r1", "r2"]


def test_a_full_queue_is_no_fault_and_a_refused_connection_is_told_the_prober() -> None:
    world = World(3)
    for _ in range(20):
        judge = Judge(world.outliers)
        judge.sent(world.replicas[0])
        judge.ended(world.replicas[0], "status", 503, "answered 503", full=True)
    assert len(world.used) == 3 and world.replicas[0].full_until > world.now
    judge.sent(world.replicas[1])
    judge.ended(world.replicas[1], "connect", None, "refused", full=False)
    assert world.refused == ["r1"]


def test_a_newcomer_to_a_fleet_at_work_starts_slowly_a_whole_fleet_does_not() -> None:
    world = World(2)
    newcomer = Replica("new", "http://new", info=INFO)
    world.fleet.add(newcomer)
    world.outliers.joined(newcomer)
    assert newcomer.weight == 1.0, "the others have only just come up"
    for replica in world.replicas:
        replica.since -= 60
    world.outliers.joined(newcomer)
    newcomer.mark(Health.UP, "")
    assert newcomer.weight == pytest.approx(0.1)
    world.pass_time(15)
    assert newcomer.weight == pytest.approx(0.5)
    world.pass_time(16)
    assert newcomer.weight == 1.0
    # A short absence needs a short start.
    newcomer.mark(Health.DOWN, "")
    newcomer.since -= 2
    world.outliers.joined(newcomer)
    world.pass_time(1)
    assert newcomer.weight == pytest.approx(0.5, abs=0.05)


def test_a_half_open_replica_that_nobody_chooses_is_believed_after_a_while() -> None:
    world = World(3, eject_s=5)
    world.fail(0)
    world.pass_time(5.1)
    world.pass_time(5.1)
    assert world.replicas[0].breaker.circuit is Circuit.CLOSED


def test_paused_replicas_are_used_before_dead_ones() -> None:
    world = World(3)
    world.replicas[0].mark(Health.DOWN, "")
    world.replicas[1].mark(Health.PAUSED, "")
    assert world.used == ["r2"]
    world.replicas[2].mark(Health.DOWN, "")
    assert world.used == ["r1"]
    world.replicas[1].mark(Health.DOWN, "")
    assert len(world.used) == 3
