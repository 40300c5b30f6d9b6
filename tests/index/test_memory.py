"""What the conformance suite cannot see: slots, sweeps, the bound's counters, predicted entries, the shadow cache."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.index.memory import MemoryIndex
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
    index = MemoryIndex(1_000_000)
    index.add_replica("a")
    index.apply("a", store(*range(0, 2**63, 2**63 // 100_000)))
    index.remove_replica("a")
    longest, more = 0.0, True
    while more:
        start = time.thread_time()
        more = index.sweep()
        longest = max(longest, time.thread_time() - start)
    assert index.blocks == 0
    assert longest < 0.02, "2 ms when idle"


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
