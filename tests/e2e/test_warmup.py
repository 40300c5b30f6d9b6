"""A replica that joins is warmed with what everybody's prompts begin with, before any of them is sent there."""

from __future__ import annotations

import pytest
from e2e.conftest import Build, Stack, receipt
from support.waiting import until

from router.fleet.replica import Health, Replica

SYSTEM = {"role": "system", "content": "You are a careful agent with many rules. " * 60}


async def crowd(system: Stack, count: int) -> int:
    """Sessions that share the system prompt; tokens of the longest match."""
    matched = 0
    for number in range(count):
        headers, _ = await system.chat([SYSTEM, {"role": "user", "content": f"{number} question {number}"}])
        matched = max(matched, int(receipt(headers, "matched-tokens")))
        await system.settled(0)
    return matched


@pytest.mark.parametrize("prefixes", [4, 0])
async def test_a_replica_that_joins_is_warmed(build: Build, prefixes: int) -> None:
    system = await build(replicas=2, settings={"routing.warm_prefixes": prefixes})
    late = system.fleet[1]
    await system.app.remove(system.replica(1).id)
    shared = await crowd(system, 6)
    assert shared > 500
    replica = Replica(late.url.removeprefix("http://"), late.url)
    system.app.add(replica)
    await until(lambda: replica.health is Health.UP, "the replica is used")
    if prefixes:
        await until(lambda: len(late.own_hashes()) >= shared // 16 - 1, "the prefix is there")
    await until(lambda: not system.app.warmup._tasks, "warming is over")
    if prefixes:
        assert system.app.warmup.tokens >= shared
    else:
        assert not late.own_hashes()
    assert (replica.load.running, replica.load.pending_prefill) == (0, 0)


async def test_nothing_hot_nothing_sent(build: Build) -> None:
    system = await build(replicas=2)
    late = system.fleet[1]
    await system.app.remove(system.replica(1).id)
    await system.chat([SYSTEM, {"role": "user", "content": "only one"}])
    replica = Replica(late.url.removeprefix("http://"), late.url)
    system.app.add(replica)
    await until(lambda: replica.health is Health.UP, "the replica is used")
    await until(lambda: not system.app.warmup._tasks, "warming is over")
    assert system.app.warmup.tokens == 0


async def test_a_replica_that_refuses_is_used_all_the_same(build: Build) -> None:
    system = await build(replicas=2)
    late = system.fleet[1]
    await system.app.remove(system.replica(1).id)
    await crowd(system, 6)
    replica = Replica(late.url.removeprefix("http://"), late.url)
    late.fault(status=503)
    system.app.add(replica)
    await until(lambda: replica.health is Health.UP, "the replica is used")
    await until(lambda: not system.app.warmup._tasks, "warming is over")
    assert system.app.warmup.tokens == 0
    late.clear_faults()
    await crowd(system, 2)
    assert (replica.load.running, replica.load.pending_prefill) == (0, 0)


async def test_the_least_warm_replica_is_told(build: Build) -> None:
    """Where sessions live there is something to come back for; where none do there is not."""
    system = await build(replicas=2)
    messages = [SYSTEM, {"role": "user", "content": "hello"}]
    headers, answer = await system.chat(messages)
    messages += [answer["choices"][0]["message"], {"role": "user", "content": "go on"}]
    await system.chat(messages)
    async with system.client.get(system.admin_url + "/replicas") as told:
        warm = {one["id"]: one["warm_tokens"] for one in (await told.json())["replicas"]}
    home = receipt(headers, "replica")
    assert warm.pop(home) > 0
    assert list(warm.values()) == [0]
    async with system.client.get(system.admin_url + "/metrics") as told:
        assert f'prefix_router_replica_warm_tokens{{replica="{home}"}}' in await told.text()
