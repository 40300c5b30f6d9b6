"""Who waits, who goes next, who has to leave."""

from __future__ import annotations

import asyncio
import math
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.proxy.admission import Admission, Refused
from router.proxy.queue import FairQueue, QueueFull, Waiter


def waiter(queue: FairQueue, tenant: str = "", rank: int = 0, cost: float = 1, model: str = "m") -> Waiter:
    return Waiter(rank, queue.number(), tenant, model, cost=cost)


def drain(queue: FairQueue) -> list[Waiter]:
    found = []
    while (each := queue.pop(lambda waiter: True)) is not None:
        found.append(each)
    return found


def test_priorities_then_age_within_a_tenant() -> None:
    queue = FairQueue(10)
    waiters = [waiter(queue, rank=rank) for rank in (1, 0, 1, -5, 0)]
    for each in waiters:
        queue.push(each)
    assert [waiters.index(each) for each in drain(queue)] == [3, 1, 4, 0, 2]


def test_tenants_take_turns_by_tokens() -> None:
    queue = FairQueue(1000)
    for _ in range(40):
        queue.push(waiter(queue, "heavy", cost=300))
    for _ in range(40):
        queue.push(waiter(queue, "light", cost=100))
    first = [queue.pop(lambda each: True) for _ in range(20)]
    served = [each.tenant for each in first if each is not None]
    assert served.count("light") == 15 and served.count("heavy") == 5


def test_a_newcomer_saves_nothing_up() -> None:
    queue = FairQueue(1000)
    for _ in range(100):
        queue.push(waiter(queue, "old", cost=100))
    for _ in range(50):
        queue.pop(lambda each: True)
    for _ in range(10):
        queue.push(waiter(queue, "new", cost=100))
    served = [each.tenant for _ in range(10) if (each := queue.pop(lambda each: True)) is not None]
    assert 4 <= served.count("new") <= 6


def test_a_model_without_room_holds_up_nobody_else() -> None:
    queue = FairQueue(10)
    queue.push(waiter(queue, "t", model="full"))
    free = waiter(queue, "t", model="free")
    queue.push(free)
    assert queue.pop(lambda each: each.model == "free") is free
    assert queue.pop(lambda each: each.model == "free") is None and len(queue) == 1
    assert queue.waits_for("full") and not queue.waits_for("free")


def test_when_full_the_largest_tenant_gives_way() -> None:
    queue = FairQueue(4)
    left: list[tuple[str, int]] = []
    for number in range(4):
        each = waiter(queue, "many", rank=number)
        each.wake = lambda go, number=number: left.append(("go" if go else "leave", number))
        queue.push(each)
    with pytest.raises(QueueFull) as full:
        queue.push(waiter(queue, "many"))
    assert not full.value.share, "alone: the queue is full"
    queue.push(waiter(queue, "few"))
    assert left == [("leave", 3)] and len(queue) == 4
    with pytest.raises(QueueFull) as share:
        queue.push(waiter(queue, "many"))
    assert share.value.share
    queue.push(waiter(queue, "few"))
    with pytest.raises(QueueFull):
        queue.push(waiter(queue, "few"))


@given(
    st.lists(st.tuples(st.sampled_from(["push", "pop", "remove"]), st.integers(0, 3), st.integers(0, 2)), max_size=200)
)
def test_it_keeps_count_and_loses_nobody(steps: list[tuple[str, int, int]]) -> None:
    queue = FairQueue(20)
    inside: list[Waiter] = []
    for step, tenant, model in steps:
        if step == "push":
            each = waiter(queue, str(tenant), model=str(model), rank=tenant)
            each.wake = lambda go, each=each: inside.remove(each)
            try:
                queue.push(each)
                inside.append(each)
            except QueueFull:
                assert len(inside) == 20
        elif step == "pop":
            popped = queue.pop(lambda each, model=model: each.model == str(model))
            if popped is None:
                assert not [each for each in inside if each.model == str(model)]
            else:
                inside.remove(popped)
        elif inside:
            queue.remove(inside[0])
            queue.remove(inside.pop(0))
        assert len(queue) == len(inside)
    assert sorted(each.number for each in drain(queue)) == sorted(each.number for each in inside)
    assert not queue._waiting and not queue._counts


class Slots:
    """Room that the test gives and takes."""

    def __init__(self, free: float) -> None:
        self.free = free
        self.admission = Admission(lambda model: self.free, size=3)

    async def one(self, tenant: str = "", seconds: float = 10, number: int | None = None) -> str:
        queue = self.admission.queue
        each = Waiter(0, queue.number() if number is None else number, tenant, "m")
        try:
            if not self.admission.open_to("m", 1):
                await self.admission.wait(each, monotonic() + seconds)
        except Refused as refused:
            return refused.reason
        self.free -= 1
        self.admission.landed("m", 1)
        return "in"


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_turns_are_given_as_room_appears_and_never_more() -> None:
    slots = Slots(2)
    assert [await slots.one(), await slots.one()] == ["in", "in"]
    waiting = [asyncio.create_task(slots.one()) for _ in range(3)]
    await settle()
    assert len(slots.admission.queue) == 3
    assert await slots.one() == "queue_full"
    slots.free = 2
    slots.admission.pump()
    slots.admission.pump()
    await settle()
    assert [task.done() for task in waiting] == [True, True, False] and slots.free == 0
    waiting[2].cancel()
    await settle()
    assert len(slots.admission.queue) == 0 and not slots.admission._coming


async def test_the_deadline_and_a_share_that_is_full() -> None:
    slots = Slots(0)
    assert await slots.one(seconds=0.01) == "deadline"
    many = [asyncio.create_task(slots.one("many")) for _ in range(3)]
    await settle()
    few = asyncio.create_task(slots.one("few"))
    await settle()
    assert many[2].done() and many[2].result() == "share" and not few.done()
    slots.free = math.inf
    slots.admission.pump()
    assert await asyncio.gather(*many, few) == ["in", "in", "share", "in"]
    assert slots.admission.refused == {"share": 1, "queue_full": 0, "deadline": 1} and slots.admission.waited == 3


async def test_a_client_that_leaves_in_the_moment_of_its_turn_gives_it_on() -> None:
    slots = Slots(0)
    first, second = asyncio.create_task(slots.one()), asyncio.create_task(slots.one())
    await settle()
    slots.free = 1
    slots.admission.pump()
    first.cancel()
    assert await second == "in"
    assert not slots.admission._coming and slots.free == 0
