"""Replicas that fail under requests: nothing that had sent no byte fails, and every counter returns to zero."""

from __future__ import annotations

import asyncio
from collections import Counter

import aiohttp
import pytest
from support.waiting import until

from router.fleet.replica import Health


def ask(number: int) -> dict[str, object]:
    return {
        "model": "sim",
        "messages": [{"role": "user", "content": f"question {number} " * 30}],
        "max_tokens": 8,
    }


async def statuses(system, count: int, **fields: object) -> Counter[int]:
    answers = await asyncio.gather(
        *(system.post("/v1/chat/completions", ask(number) | fields) for number in range(count))
    )
    return Counter(status for status, _, _ in answers)


@pytest.mark.parametrize(
    "fault",
    [
        {"close_before_head": 5},
        {"half_head": 5},
        {"status": 503, "status_times": 20},
        {"status": 500, "status_times": 20},
    ],
)
async def test_a_failing_replica_fails_no_request(build, fault) -> None:
    system = await build(replicas=3)
    system.fleet[0].fault(**fault)
    assert await statuses(system, 40) == {200: 40}
    await system.idle()


async def test_a_killed_replica_fails_no_request_and_comes_back_cold(build) -> None:
    system = await build(replicas=3)
    await statuses(system, 30)
    await system.settled()
    victim = system.replica(0)
    assert system.app.index.replica_blocks(victim.id) > 0
    await system.fleet[0].kill()
    assert await statuses(system, 30) == {200: 30}
    await until(lambda: victim.health is Health.DOWN, "a request or a probe has found it dead")
    await system.fleet[0].restart()
    await system.up()
    await system.settled()
    assert system.app.index.replica_blocks(victim.id) == len(system.fleet[0].own_hashes())
    assert await statuses(system, 30) == {200: 30}
    await system.idle()


async def test_requests_in_flight_on_a_killed_replica_are_answered_elsewhere(build) -> None:
    system = await build(replicas=2)
    system.fleet[0].fault(paused=True)
    system.fleet[1].fault(paused=True)
    running = asyncio.create_task(statuses(system, 20))
    await until(lambda: sum(r.load.running for r in system.app.fleet) == 20, "20 run")
    await system.fleet[0].kill()
    system.fleet[1].clear_faults()
    assert await running == {200: 20}
    await system.idle()


async def test_a_stream_cut_after_its_first_byte_ends_in_an_error_event_and_is_not_repeated(build) -> None:
    system = await build(replicas=2, simulator={"record_requests": 10_000})
    for simulated in system.fleet:
        simulated.fault(reset_after_events=3)
    async with system.client.post(system.url + "/v1/chat/completions", json=ask(1) | {"stream": True}) as answer:
        text = await answer.text()
    events = [line for line in text.split("\n\n") if line]
    assert '"error"' in events[-2] and events[-1] == "data: [DONE]"
    sent = sum(request.path == "/v1/chat/completions" for simulated in system.fleet for request in simulated.requests)
    assert sent == 1
    await system.idle()
    async with system.client.get(system.admin_url + "/metrics") as page:
        assert 'prefix_router_broken_streams_total{replica="' in await page.text()


async def test_an_engine_that_dies_before_its_first_token_is_replaced(build) -> None:
    system = await build(replicas=2, settings={"routing.policy": "round_robin"})
    system.fleet[0].fault(error_after_events=0)
    for number in range(4):
        async with system.client.post(
            system.url + "/v1/chat/completions", json=ask(number) | {"stream": True}
        ) as answer:
            assert '"error"' not in await answer.text()
    await system.idle()


async def test_a_client_that_leaves_stops_the_work_on_the_replica(build) -> None:
    system = await build(replicas=2)
    for stream in (True, False):
        for simulated in system.fleet:
            simulated.fault(paused=True)
        async with aiohttp.ClientSession() as client:
            request = asyncio.create_task(
                client.post(system.url + "/v1/chat/completions", json=ask(1) | {"stream": stream})
            )
            await until(lambda: sum(simulated.in_flight for simulated in system.fleet) == 1, "it runs")
            request.cancel()
        for simulated in system.fleet:
            simulated.clear_faults()
        await system.idle()


async def test_idle_connections_closed_by_the_engine_never_surface(build) -> None:
    # The engine closes idle connections after 50 ms, the router would keep them for 4 s.
    system = await build(replicas=1, simulator={"keep_alive": 0.05})
    for number in range(6):
        status, _, answer = await system.post("/v1/chat/completions", ask(number))
        assert status == 200, answer
        await asyncio.sleep(0.06)  # the fault itself: longer than the engine's idle limit
    await system.idle()


async def test_all_replicas_gone_is_an_answer_not_a_hang(build) -> None:
    system = await build(replicas=2)
    for simulated in system.fleet:
        await simulated.kill()
    status, _, answer = await system.post("/v1/chat/completions", ask(1))
    assert status in (502, 503)
    assert "no replica answered" in answer["error"]["message"] or "No replica" in answer["error"]["message"]


async def test_a_hanging_replica_costs_one_timeout(build) -> None:
    system = await build(replicas=2, settings={"proxy.first_byte_timeout_s": 2, "routing.policy": "round_robin"})
    system.fleet[0].fault(hang=True)
    assert await statuses(system, 6) == {200: 6}
    await system.idle()


async def test_stopping_lets_running_answers_finish(build) -> None:
    system = await build(replicas=1)
    system.fleet[0].fault(paused=True)
    request = asyncio.create_task(system.post("/v1/chat/completions", ask(1)))
    await until(lambda: system.fleet[0].in_flight == 1, "it runs")
    stopping = asyncio.create_task(system.app.stop())
    await until(lambda: system.app.server.draining, "it stops")
    assert system.app.ready()[0] is False
    system.fleet[0].clear_faults()
    status, _, _ = await request
    assert status == 200
    await stopping
