"""Notes between routers: in order, not their own, through outages, whatever else is in the stream."""

from __future__ import annotations

from typing import Any

from router.index.redis.connect import connect
from router.index.redis.layout import Layout
from router.index.redis.notes import NoteStream, StateNote, StepNote
from router.index.redis.store import Store


def step(number: int, steps: int = 1) -> StepNote:
    return StepNote("", f"s{number}", False, None, "r0", 100, 50, steps, 3, 2**63 + number, b"\x00\x01")


class Router:
    def __init__(self, store: Store, layout: Layout, name: str) -> None:
        self.steps: list[StepNote] = []
        self.states: list[StateNote] = []
        self.notes = NoteStream(store, layout, name, interval_s=0.01)
        self.notes.learn_step = self.steps.append
        self.notes.learn_state = self.states.append


async def test_everyone_else_learns_everything_once(store: Store, layout: Layout, running: Any, until: Any) -> None:
    routers = [Router(store, layout, f"router-{number}") for number in range(3)]
    for router in routers:
        running(router.notes.run())
    for number in range(200):
        routers[number % 3].notes.step(step(number))
        if number % 10 == 0:
            routers[number % 3].notes.state(StateNote("t", "response", f"resp_{number}", "r1"))
    for place, router in enumerate(routers):
        expected = {f"s{number}" for number in range(200) if number % 3 != place}
        await until(lambda router=router, expected=expected: {one.id for one in router.steps} == expected)
        assert len(router.steps) == len(expected)
        assert router.steps[0].block >= 2**63
        assert {one.id for one in router.states} == {
            f"resp_{number}" for number in range(0, 200, 10) if number % 3 != place
        }


async def test_a_router_that_starts_reads_what_was_told(store: Store, layout: Layout, running: Any, until: Any) -> None:
    first = Router(store, layout, "a")
    running(first.notes.run())
    first.notes.step(step(1))
    late = Router(store, layout, "b")
    running(late.notes.run())
    await until(lambda: [one.id for one in late.steps] == ["s1"])


async def test_notes_survive_an_outage_and_only_the_latest_step_of_a_session_is_told(
    server: Any, layout: Layout, running: Any, until: Any
) -> None:
    store = connect(server.url, timeout_s=0.2)
    one, two = Router(store, layout, "a"), Router(store, layout, "b")
    running(one.notes.run())
    running(two.notes.run())
    one.notes.step(step(1))
    await until(lambda: len(two.steps) == 1)
    server.stop()
    for steps in range(2, 6):
        one.notes.step(step(1, steps))
    await until(lambda: one.notes.health.trouble is not None)
    server.start()
    await until(lambda: [note.steps for note in two.steps] == [1, 5])
    await until(lambda: one.notes.health.trouble is None)
    await store.close()


async def test_what_is_no_note_is_counted_and_skipped(store: Store, layout: Layout, running: Any, until: Any) -> None:
    one, two = Router(store, layout, "a"), Router(store, layout, "b")
    running(two.notes.run())
    for junk in (b"", b"\xff\xfe", b"\x93\xa1x\x90\x91\x92\x01\x02"):
        await store.execute("XADD", layout.notes, "*", "d", junk)
    await store.execute("XADD", layout.notes, "*", "other", b"x")
    running(one.notes.run())
    one.notes.step(step(7))
    await until(lambda: [note.id for note in two.steps] == ["s7"])
    assert two.notes.malformed == 4
