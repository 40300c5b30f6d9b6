"""The router's index equals the union of the replicas' caches, whatever happened to requests, caches and events."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MODEL = "sim"


def confirmed(system, name: str, keys: Iterable[int]) -> set[int]:
    """Those of `keys` that events have confirmed for a replica; predicted entries don't count."""
    matches = {key: system.app.index.match([key]).get(name) for key in keys}
    return {key for key, match in matches.items() if match is not None and not match.predicted}


async def sweep(system) -> None:
    while system.app.index.sweep():
        pass


@pytest.mark.parametrize(
    ("dialect", "kind", "block_size", "bytes_hashes", "replay_frames"),
    [
        ("array-0.9", "vllm", 16, False, 3),
        ("array-0.14", "vllm", 16, True, 3),
        ("array-0.22", "vllm", 32, False, 3),
        ("map", "vllm", 16, True, 4),
        ("allmap", "vllm", 64, False, 4),
        ("sglang-array", "sglang", 16, False, 3),
        ("sglang-map", "sglang", 1, False, 4),
        ("sglang-map", "sglang", 64, False, 4),
    ],
)
async def test_every_dialect_and_block_size(
    build, dialect: str, kind: str, block_size: int, bytes_hashes: bool, replay_frames: int
) -> None:
    system = await build(
        replicas=2,
        simulator={
            "dialect": dialect,
            "kind": kind,
            "block_size": block_size,
            "kv_blocks": 4096 // block_size,
            "bytes_hashes": bytes_hashes,
            "replay_frames": replay_frames,
        },
    )
    generator = random.Random(3)
    for number in range(40):
        text = f"prefix {generator.randrange(4)} " * generator.randrange(5, 60) + str(number)
        status, _, answer = await system.post(
            "/v1/completions", {"model": MODEL, "prompt": text, "max_tokens": generator.randrange(1, 40)}
        )
        assert status == 200, answer
    await system.idle()
    await system.settled()
    await sweep(system)
    for at, simulated in enumerate(system.fleet):
        name = system.replica(at).id
        truth = set(simulated.own_hashes())
        if system.app.catalog.specs[MODEL].block_size == block_size:
            # own_hashes speaks of the engine's pages; with one page a block both sides name the same keys.
            assert confirmed(system, name, truth) == truth
            assert system.app.index.replica_blocks(name) == len(truth)
        assert system.app.index.replica_blocks(name) > 0


Operation = st.one_of(
    st.tuples(st.just("request"), st.integers(0, 5), st.integers(1, 40)),
    st.tuples(st.just("burst"), st.integers(0, 5), st.integers(2, 6)),
    st.tuples(st.just("restart"), st.integers(0, 1)),
    st.tuples(st.just("reset"), st.integers(0, 1)),
    st.tuples(st.just("lose events"), st.integers(0, 1), st.integers(1, 3)),
    st.tuples(st.just("salted"), st.integers(0, 5)),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=st.lists(Operation, min_size=5, max_size=25))
async def test_after_any_history(build, operations) -> None:
    """Small caches, so that evictions are common. Lost batches are lost for the replay too: cold, never stale."""
    system = await build(replicas=2, simulator={"kv_blocks": 48})
    lost: set[int] = set()
    for operation in operations:
        match operation:
            case ("request", seed, length):
                await _complete(system, seed, length)
            case ("burst", seed, count):
                await asyncio.gather(*(_complete(system, seed, 3) for _ in range(count)))
            case ("salted", seed):
                await _complete(system, seed, 4, cache_salt=f"tenant {seed % 2}")
            case ("restart", at):
                await system.idle()
                await system.restart(at)
                await system.up()
                lost.discard(at)
            case ("reset", at):
                await system.idle()
                system.fleet[at].reset_cache()
            case ("lose events", at, count):
                system.fleet[at].fault(drop_events=count)
                lost.add(at)
    await system.idle()
    for at in range(2):
        system.fleet[at].fault(drop_events=0)
    # One more request everywhere flushes pending clears and shows gaps.
    for at in range(2):
        async with system.client.post(
            system.fleet[at].url + "/v1/completions", json={"model": MODEL, "prompt": "flush " * 30, "max_tokens": 1}
        ) as answer:
            assert answer.status == 200
    await system.idle()
    await system.settled()
    await sweep(system)
    for at, simulated in enumerate(system.fleet):
        name = system.replica(at).id
        truth = set(simulated.own_hashes())
        held = confirmed(system, name, truth)
        assert system.app.index.replica_blocks(name) == len(held), f"{name}: stale blocks"
        if at not in lost:
            assert held == truth, f"{name}: {len(truth - held)} live blocks missing"


async def _complete(system, seed: int, length: int, **fields: object) -> None:
    text = f"shared {seed % 2} " * 20 + f"own {seed} " * length
    body = {"model": MODEL, "prompt": text, "max_tokens": 1 + seed * 4, **fields}
    status, _, answer = await system.post("/v1/completions", body)
    assert status == 200, answer
