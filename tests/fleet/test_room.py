"""How much room a replica has, from what it says, shows and refuses."""

from __future__ import annotations

import math
from time import time

from router.engines import EngineInfo, EngineLoad
from router.fleet.fleet import Fleet
from router.fleet.outliers import Outliers
from router.fleet.replica import Health, Replica
from router.fleet.room import Room, RoomPolicy, slots, with_room


class World:
    def __init__(self, **policy: int) -> None:
        self.now = 100.0
        self.fleet = Fleet()
        self.replica = Replica("r", "http://r", info=EngineInfo(kind="vllm", models=("m",)), health=Health.UP)
        self.fleet.add(self.replica)
        self.room = Room(self.fleet, RoomPolicy(**policy), clock=lambda: self.now)
        self.outliers = Outliers(self.fleet, clock=lambda: self.now)

    def report(self, running: int, waiting: int, **fields: int) -> float:
        self.replica.reported = EngineLoad(running, waiting, **fields)  # type: ignore[arg-type]
        self.replica.reported_at = time()
        return self.tick()

    def tick(self, seconds: float = 0.1) -> float:
        self.now += seconds
        self.room.tick()
        return self.replica.limit

    @property
    def slots(self) -> float:
        return slots([self.replica], self.now)


def test_nothing_known_nothing_limited() -> None:
    world = World()
    assert world.tick() == math.inf and world.slots == math.inf and not world.fleet.bounded
    assert world.report(64, 3) == world.report(64, 3) == math.inf, "a short queue inside the engine is welcome"


def test_a_burst_the_engine_has_not_looked_at_is_not_a_full_engine() -> None:
    world = World(engine_queue=32)
    assert world.report(1, 200) == math.inf
    assert world.tick() == math.inf, "the same report again says nothing new"
    assert world.report(201, 0) == math.inf
    assert world.report(64, 50) == math.inf
    assert world.report(70, 60) == 102 and world.fleet.bounded
    world.replica.load.begin(0, 101)
    assert world.slots == 1
    world.replica.load.begin(0, 1)
    assert world.slots == 0
    assert world.report(70, 10) == math.inf


def test_an_old_report_limits_nobody() -> None:
    world = World(engine_queue=1)
    world.report(4, 9)
    assert world.report(4, 9) == 5
    world.replica.reported_at = time() - 60
    assert world.tick() == math.inf


def test_the_engine_s_own_limit_and_the_configured_one() -> None:
    assert World(engine_queue=8).report(0, 0, max_running=100) == 108
    assert World(max_running=50).tick() == 50


def test_a_full_queue_sets_a_ceiling_that_rises_and_is_forgotten() -> None:
    world = World()
    world.replica.load.begin(0, 40)
    world.outliers.full(world.replica)
    assert world.slots == 0 and world.fleet.bounded
    assert world.tick(0.4) == 40
    assert world.tick(0.2) > 40
    for _ in range(10):
        world.tick(0.1)
    assert 44 <= world.replica.limit <= 46
    for _ in range(100):
        world.tick(0.1)
    assert world.replica.limit == math.inf and not world.fleet.bounded


def test_an_idle_replica_never_makes_anybody_wait_and_a_ramp_halves_the_room() -> None:
    world = World(max_running=10)
    world.replica.weight = 0.01
    world.tick()
    assert world.slots == 1
    world.replica.weight = 0.5
    assert world.slots == 5


def test_who_is_asked() -> None:
    world = World(max_running=1)
    other = Replica("o", "http://o", info=world.replica.info, health=Health.UP)
    world.fleet.add(other)
    world.tick()
    other.load.begin(0, 1)
    both = [world.replica, other]
    assert with_room(both, world.now) == [world.replica] and slots(both, world.now) == 1
    world.replica.load.begin(0, 1)
    assert with_room(both, world.now) == both and slots(both, world.now) == 0
    other.mark(Health.PAUSED, "")
    other.limit = math.inf
    assert slots([other], world.now) == 0
