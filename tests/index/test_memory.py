"""What the conformance suite cannot see: slots, sweeps, the bound's counters, predicted entries, the shadow cache."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.index.memory import AT_ONCE, MemoryIndex
from router.index.overlay import PredictedOverlay
from router.index.shadow import ShadowCache
from router.index.types import Cleared, Delta, Match, Tier


def store(*keys: int, tier: Tier = Tier.DEVICE) -> Delta:
    return Delta(stored={tier: list(keys)})


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def swept(index: MemoryIndex) -> MemoryIndex:
    while index.sweep(64):
        pass
    return index


def test_a_slot_is_not_given_out_before_it_is_swept() -> None:
    index = MemoryIndex(100_000)
    assert [index.add_replica(name) for name in "ab"] == [0, 1]
    index.apply("a", store(*range(1000)))
    index.remove_replica("a")
    assert index.match(range(1000)) == {}
    assert index.add_replica("c") == 2
    assert index.blocks == 1000
    swept(index)
    assert index.blocks == 0
    assert index.add_replica("d") == 0
    assert index.match(range(1000)) == {}


def test_a_replica_removed_during_a_sweep_waits_for_the_next() -> None:
    index = MemoryIndex(100_000)
    for name in "ab":
        index.add_replica(name)
        index.apply(name, store(*range(2000)))
    index.remove_replica("a")
    assert index.sweep(1)
    index.remove_replica("b")
    swept(index)
    assert index.blocks == 0
    assert {index.add_replica("c"), index.add_replica("d")} == {0, 1}


def test_clearing_over_and_over_stays_bounded_with_sweeps() -> None:
    index = MemoryIndex(100_000)
    index.add_replica("a")
    for round_ in range(200):
        index.apply("a", Delta(cleared=Cleared.EMPTIED, stored={Tier.DEVICE: [round_]}))
        swept(index)
    assert index.blocks == 1
    assert index.add_replica("b") < 3
    assert index.replica_blocks("a") == 1


def test_an_unknown_replica_is_counted() -> None:
    index = MemoryIndex()
    index.apply("nobody", store(1))
    assert index.deltas_dropped == 1
    assert index.replica_blocks("nobody") == 0


def test_a_sweep_step_is_short() -> None:
    def longest() -> float:
        index = MemoryIndex(1_000_000)
        index.add_replica("a")
        index.apply("a", store(*range(0, 2**63, 2**63 // 100_000)))
        index.remove_replica("a")
        took, more = 0.0, True
        while more:
            start = time.thread_time()
            more = index.sweep()
            took = max(took, time.thread_time() - start)
        assert index.blocks == 0
        return took

    # Other work on the machine, and the test process's own garbage, can only make a step longer.
    assert min(longest() for _ in range(3)) < 0.02, "2 ms when idle"


def test_predictions_fill_in_where_confirmed_blocks_end() -> None:
    clock = Clock()
    index = MemoryIndex(1000, PredictedOverlay(2.0, 100, clock))
    for name in "ab":
        index.add_replica(name)
    index.apply("a", store(1, 2))
    index.predict("a", [1, 2, 3, 4])
    index.predict("nobody", [1])
    assert index.match([1, 2, 3, 4, 5]) == {"a": Match(4, 0, 2)}
    assert index.blocks == 2, "never merged into what is confirmed"
    clock.now += 1.0
    assert index.match([1, 2, 3, 4, 5]) == {"a": Match(4, 0, 2)}
    clock.now += 1.1
    assert index.match([1, 2, 3, 4, 5]) == {"a": Match(2)}


def test_predictions_end_with_their_replica_and_never_pass_to_the_next_owner_of_its_slot() -> None:
    clock = Clock()
    index = MemoryIndex(1000, PredictedOverlay(2.0, 100, clock))
    slot = index.add_replica("a")
    index.predict("a", [1, 2])
    index.apply("a", Delta(cleared=Cleared.EMPTIED))
    assert index.match([1, 2]) == {}
    index.predict("a", [1, 2])
    index.remove_replica("a")
    swept(index)
    assert index.add_replica("b") != slot
    assert index.match([1, 2]) == {}
    clock.now += 5
    swept(index)
    assert index.add_replica("c") == slot
    assert index.match([1, 2]) == {}


class Turns:
    """Each turn of the loop that others get while `work` runs."""

    async def during(self, work: Awaitable[dict[str, Match]], at: int, action: Callable[[], None]) -> dict[str, Match]:
        task = asyncio.ensure_future(work)
        self.count = 0
        while not task.done():
            if self.count == at:
                action()
            self.count += 1
            await asyncio.sleep(0)
        return await task


async def test_a_long_chain_is_looked_up_in_turns() -> None:
    index = MemoryIndex(overlay=PredictedOverlay())
    chain = list(range(1, 10 * AT_ONCE + 7))
    for name, blocks in (("a", len(chain)), ("b", 3 * AT_ONCE), ("c", 1), ("d", AT_ONCE + 5), ("e", 0)):
        index.add_replica(name)
        index.apply(name, Delta(stored={Tier.DEVICE: chain[:blocks]}))
    index.apply("d", Delta(stored={Tier.HOST: chain[AT_ONCE + 5 : 2 * AT_ONCE + 9]}))
    index.predict("b", chain[3 * AT_ONCE : 3 * AT_ONCE + 40])
    turns = Turns()
    assert await turns.during(index.lookup(chain), -1, lambda: None) == index.match(chain)
    assert turns.count >= 10
    assert index.match(chain)["d"] == Match(2 * AT_ONCE + 9, AT_ONCE + 4)
    assert index.match(chain)["b"] == Match(3 * AT_ONCE + 40, 0, 40)


@pytest.mark.parametrize("sweeps", [0, 200])
async def test_what_changes_during_a_long_lookup_is_credited_to_nobody_else(sweeps: int) -> None:
    index = MemoryIndex(max_blocks=200_000)
    chain = list(range(1, 6 * AT_ONCE))
    for name in "abc":
        index.add_replica(name)
        index.apply(name, Delta(stored={Tier.DEVICE: chain}))

    def change() -> None:
        index.remove_replica("a")
        for _ in range(sweeps):
            index.sweep()
        index.add_replica("new")
        index.apply("new", Delta(stored={Tier.DEVICE: chain[2 * AT_ONCE :]}))
        index.clear_replica("b")
        index.apply("b", Delta(stored={Tier.DEVICE: chain[4 * AT_ONCE :]}))

    assert await Turns().during(index.lookup(chain), 2, change) == {"c": Match(len(chain))}
    assert index.match(chain) == {"c": Match(len(chain))}


def test_the_overlay_is_bounded() -> None:
    overlay = PredictedOverlay(10.0, 100, Clock())
    for start in range(0, 5000, 30):
        overlay.add(1, range(start, start + 30))
        assert len(overlay) <= 100
        assert overlay.get(start)
    overlay.add(1, range(1000, 2000))
    assert len(overlay) <= 100
    with pytest.raises(ValueError, match="ttl_s"):
        PredictedOverlay(0)


@given(
    capacity=st.integers(1, 6),
    size=st.integers(1, 3),
    prompts=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), max_size=20),
)
def test_the_shadow_cache_is_an_lru_that_keeps_heads(capacity: int, size: int, prompts: list[tuple[int, int]]) -> None:
    shadow, mirror = ShadowCache(capacity * size), set[int]()
    for start, length in prompts:
        chain = list(range(10 * start, 10 * start + length))
        delta = shadow.touch(chain, size)
        new, gone = delta.stored.get(Tier.DEVICE, []), delta.dropped.get(Tier.DEVICE, [])
        assert not set(new) & mirror
        assert set(gone) <= mirror
        mirror = (mirror - set(gone)) | set(new)
        assert set(chain[:capacity]) <= mirror
        assert len(mirror) == len(shadow) <= capacity
        for key in mirror:
            assert key % 10 == 0 or key - 1 in mirror, "the tail goes before the head"
        assert shadow.tokens == len(shadow) * size
    assert set(shadow.snapshot().stored.get(Tier.DEVICE, [])) == mirror
    assert shadow.clear().cleared
    assert len(shadow) == 0


def test_the_shadow_cache_counts_blocks_by_their_size() -> None:
    shadow = ShadowCache(64)
    shadow.touch([1, 2], 16)
    assert shadow.touch([3], 32).dropped == {}
    assert shadow.touch([4], 16).dropped == {Tier.DEVICE: [2]}, "16 tokens too many: the first chain's tail goes"
    assert shadow.tokens == 64
    assert shadow.touch([5, 6], 64).stored == {Tier.DEVICE: [5]}
    assert (len(shadow), shadow.tokens) == (1, 64)
