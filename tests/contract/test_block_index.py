"""What every BlockIndex does. `make_index` (conftest.py) names the backends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.index.types import BlockIndex, Cleared, Delta, Match, Tier

MakeIndex = Callable[[int], BlockIndex]


@pytest.fixture
def index(make_index: MakeIndex) -> BlockIndex:
    made = make_index(10_000)
    for name in ("a", "b"):
        made.add_replica(name)
    return made


def store(*keys: int, tier: Tier = Tier.DEVICE) -> Delta:
    return Delta(stored={tier: list(keys)})


def drop(*keys: int, tier: Tier = Tier.DEVICE) -> Delta:
    return Delta(dropped={tier: list(keys)})


async def test_counts_leading_blocks_per_replica(index: BlockIndex) -> None:
    index.apply("a", store(1, 2, 3, 4))
    index.apply("b", store(1, 2, 4))
    assert await index.lookup([1, 2, 3, 4, 5]) == {"a": Match(4), "b": Match(2)}
    assert await index.lookup([2]) == {"a": Match(1), "b": Match(1)}
    assert await index.lookup([3, 1]) == {"a": Match(2)}
    assert await index.lookup([5, 1]) == {}
    assert await index.lookup([]) == {}


async def test_hashes_use_all_64_bits(index: BlockIndex) -> None:
    keys = [0, 2**63, 2**64 - 1, 2**63 - 1]
    index.apply("a", store(*keys))
    assert await index.lookup(keys) == {"a": Match(4)}


async def test_a_dropped_block_ends_the_match_and_can_come_back(index: BlockIndex) -> None:
    index.apply("a", store(1, 2, 3))
    index.apply("a", drop(2))
    assert await index.lookup([1, 2, 3]) == {"a": Match(1)}
    index.apply("a", store(2))
    assert await index.lookup([1, 2, 3]) == {"a": Match(3)}


async def test_applying_twice_changes_nothing(index: BlockIndex) -> None:
    delta = Delta(stored={Tier.DEVICE: [1, 2]}, dropped={Tier.DEVICE: [3]})
    for _ in range(2):
        index.apply("a", delta)
        assert await index.lookup([1, 2, 3]) == {"a": Match(2)}
    index.apply("a", drop(1))
    index.apply("a", drop(1))
    assert await index.lookup([1]) == {}


async def test_a_clearing_delta_clears_first(index: BlockIndex) -> None:
    index.apply("a", store(1, 2))
    index.apply("a", store(1, tier=Tier.HOST))
    index.apply("b", store(1))
    delta = Delta(cleared=Cleared.EMPTIED, stored={Tier.DEVICE: [7]})
    for _ in range(2):
        index.apply("a", delta)
        assert await index.lookup([1, 2]) == {"b": Match(1)}
        assert await index.lookup([7]) == {"a": Match(1)}


async def test_tiers(index: BlockIndex) -> None:
    index.apply("a", store(1, 2, 5))
    index.apply("a", store(2, 3, tier=Tier.HOST))
    index.apply("a", store(4, tier=Tier.DISK))
    index.apply("b", store(1, tier=Tier.DISK))
    assert await index.lookup([1, 2, 3, 4, 5, 6]) == {"a": Match(5, lower=2), "b": Match(1, lower=1)}
    index.apply("a", drop(2))
    assert await index.lookup([1, 2, 3]) == {"a": Match(3, lower=2), "b": Match(1, lower=1)}
    index.apply("a", drop(2, tier=Tier.HOST))
    assert await index.lookup([1, 2, 3]) == {"a": Match(1), "b": Match(1, lower=1)}


async def test_a_cleared_replica_starts_empty_and_goes_on(index: BlockIndex) -> None:
    index.apply("a", store(1, 2))
    index.apply("b", store(1))
    index.clear_replica("a")
    assert await index.lookup([1, 2]) == {"b": Match(1)}
    index.apply("a", store(2))
    assert await index.lookup([1, 2]) == {"b": Match(1)}
    assert await index.lookup([2]) == {"a": Match(1)}


async def test_a_removed_replica_is_gone_and_its_place_is_clean(index: BlockIndex) -> None:
    index.apply("a", store(1, 2))
    index.remove_replica("a")
    assert await index.lookup([1, 2]) == {}
    for name in ("c", "d", "e"):
        index.add_replica(name)
    assert await index.lookup([1, 2]) == {}
    index.add_replica("a")
    assert await index.lookup([1, 2]) == {}
    index.apply("a", store(1))
    assert await index.lookup([1, 2]) == {"a": Match(1)}


async def test_a_delta_for_an_unknown_replica_is_dropped(index: BlockIndex) -> None:
    index.apply("nobody", store(1))
    index.remove_replica("nobody")
    index.clear_replica("nobody")
    index.add_replica("nobody")
    assert await index.lookup([1]) == {}


async def test_adding_twice_keeps_the_slot_and_the_blocks(index: BlockIndex) -> None:
    slot = index.add_replica("a")
    index.apply("a", store(1))
    assert index.add_replica("a") == slot
    assert await index.lookup([1]) == {"a": Match(1)}
    assert index.add_replica("b") != slot


async def test_more_replicas_than_a_machine_word_has_bits(make_index: MakeIndex) -> None:
    index = make_index(10_000)
    for number in range(100):
        index.add_replica(f"r{number}")
        index.apply(f"r{number}", store(*range(1, number + 2)))
    matches = await index.lookup(list(range(1, 101)))
    assert matches == {f"r{number}": Match(number + 1) for number in range(100)}


@pytest.mark.parametrize("make_index", ["memory", "mirror"], indirect=True)  # Redis: maxmemory, tests/redis/test_faults
async def test_the_bound_refuses_new_blocks_only(make_index: MakeIndex) -> None:
    index = make_index(3)
    for name in ("a", "b"):
        index.add_replica(name)
    index.apply("a", store(1, 2, 3, 4))
    assert await index.lookup([1, 2, 3, 4]) == {"a": Match(3)}
    index.apply("b", store(1, 2))
    assert await index.lookup([1, 2, 3]) == {"a": Match(3), "b": Match(2)}
    index.apply("a", drop(3))
    index.apply("b", store(3))
    assert await index.lookup([1, 2, 3]) == {"a": Match(2), "b": Match(3)}


KEYS = st.lists(st.integers(0, 7), max_size=6, unique=True)
OPERATION = st.tuples(
    st.sampled_from(["apply"] * 6 + ["clear", "remove", "add"]),
    st.sampled_from("abcd"),
    st.booleans(),
    st.sampled_from(list(Tier)),
    KEYS,
    KEYS,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=st.lists(OPERATION, max_size=30), chain=st.lists(st.integers(0, 7), max_size=8))
def test_like_a_plain_model(make_index: MakeIndex, operations: list[tuple[str, str, bool, Tier, list[int], list[int]]],
                            chain: list[int]) -> None:  # fmt: skip
    index = make_index(10_000)
    sweep: Callable[[int], bool] | None = getattr(index, "sweep", None)
    model: dict[str, dict[Tier, set[int]]] = {}
    for name, replica, cleared, tier, stored, dropped in operations:
        known = model.get(replica)
        if name == "add":
            index.add_replica(replica)
            model.setdefault(replica, {each: set() for each in Tier})
        elif name == "remove":
            index.remove_replica(replica)
            model.pop(replica, None)
        elif name == "clear":
            index.clear_replica(replica)
            if known is not None:
                model[replica] = {each: set() for each in Tier}
        else:
            dropped = [key for key in dropped if key not in stored]
            cleared = cleared and len(stored) > 3
            index.apply(replica, Delta(cleared, {tier: stored}, {tier: dropped}))
            if known is not None:
                if cleared:
                    model[replica] = known = {each: set() for each in Tier}
                known[tier] = (known[tier] - set(dropped)) | set(stored)
        if sweep is not None:
            sweep(16)
        expected = {}
        for owner, tiers in model.items():
            anywhere = set().union(*tiers.values())
            depth = next((at for at, key in enumerate(chain) if key not in anywhere), len(chain))
            lower = sum(key not in tiers[Tier.DEVICE] for key in chain[:depth])
            if depth:
                expected[owner] = Match(depth, lower)
        assert asyncio.run(index.lookup(chain)) == expected
