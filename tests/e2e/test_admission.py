"""The queue of the whole system: room, turns, refusals, engines that say they are full, fleets that are away."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from support.waiting import until

from router.api.turn import client_timeout_s, rank
from router.fleet.replica import Health
from router.http.message import Request
from router.prompt.requests import parse_request


def ask(number: int, **fields: object) -> dict[str, object]:
    return {"model": "sim", "messages": [{"role": "user", "content": f"question {number}"}], "max_tokens": 4, **fields}


def send(system, number: int, headers: dict[str, str] | None = None, **fields: object) -> asyncio.Task:
    return asyncio.create_task(system.post("/v1/chat/completions", ask(number, **fields), **(headers or {})))


async def test_no_replica_gets_more_than_it_can_run(build) -> None:
    system = await build(replicas=2, settings={"admission.max_running": 3})
    for simulated in system.fleet:
        simulated.fault(paused=True)
    tasks = [send(system, number) for number in range(20)]
    await until(lambda: len(system.app.admission.queue) == 14, "14 wait in the router")
    await until(lambda: [simulated.in_flight for simulated in system.fleet] == [3, 3], "three run on each")
    for simulated in system.fleet:
        simulated.clear_faults()
    peak = 0
    while not all(task.done() for task in tasks):
        peak = max(peak, *(replica.load.running for replica in system.app.fleet))
        await asyncio.sleep(0)
    assert Counter(task.result()[0] for task in tasks) == {200: 20}
    assert peak <= 3
    await system.idle()
    assert len(system.app.admission.queue) == 0 and not system.app.admission._coming


async def test_an_engine_that_says_it_is_full_makes_requests_wait_not_fail(build) -> None:
    system = await build(replicas=2, simulator={"max_num_seqs": 2, "max_queued": 2})
    for simulated in system.fleet:
        simulated.fault(paused=True)
    tasks = [send(system, number) for number in range(30)]
    await until(lambda: len(system.app.admission.queue) > 10, "the rest waits in the router")
    assert not any(task.done() for task in tasks)
    for simulated in system.fleet:
        simulated.clear_faults()
    statuses = Counter(status for status, _, _ in await asyncio.gather(*tasks))
    assert statuses == {200: 30}
    await system.idle()


async def test_tenants_take_turns(build) -> None:
    system = await build(replicas=1, settings={"admission.max_running": 1})
    system.fleet[0].fault(paused=True)
    order: list[str] = []

    async def one(number: int, tenant: str) -> None:
        status, _, _ = await system.post("/v1/chat/completions", ask(number, cache_salt=tenant))
        assert status == 200
        order.append(tenant)

    tasks = [asyncio.create_task(one(number, "flood")) for number in range(20)]
    await until(lambda: len(system.app.admission.queue) == 19, "the flood waits")
    tasks += [asyncio.create_task(one(number, "quiet")) for number in range(3)]
    await until(lambda: len(system.app.admission.queue) == 22, "all wait")
    system.fleet[0].clear_faults()
    await asyncio.gather(*tasks)
    assert max(place for place, tenant in enumerate(order) if tenant == "quiet") <= 8


@pytest.mark.parametrize("absurd", [10**400, 10**300, -(10**400)], ids=["no float", "huge", "negative"])
async def test_an_absurd_max_tokens_neither_breaks_the_queue_nor_its_fairness(build, absurd: int) -> None:
    system = await build(replicas=1, settings={"admission.max_running": 1})
    system.fleet[0].fault(paused=True)
    first = send(system, 0, cache_salt="other")
    await until(lambda: system.fleet[0].in_flight == 1, "it runs")
    tasks = [send(system, 1, cache_salt="absurd", max_tokens=absurd)]
    await until(lambda: len(system.app.admission.queue) == 1, "it waits")
    tasks += [send(system, number, cache_salt="absurd") for number in (2, 3)]
    tasks += [send(system, number, cache_salt="other", max_tokens=200_000) for number in range(4, 12)]
    await until(lambda: len(system.app.admission.queue) == 11, "all wait")
    system.fleet[0].clear_faults()
    order: list[int] = []
    for number, task in enumerate(tasks):
        task.add_done_callback(lambda _, number=number: order.append(number))
    async with asyncio.timeout(20):
        assert {status for status, _, _ in await asyncio.gather(first, *tasks[1:3])} == {200}
        status, _, _ = await tasks[0]
    assert order.index(2) < 10, "its tenant's others take their turns"
    for task in tasks:
        task.cancel()
    assert status in (200, 400)
    await until(lambda: len(system.app.admission.queue) == 0, "the queue is empty")
    await system.idle()


async def test_refusals_say_why_and_when_to_come_again(build) -> None:
    system = await build(replicas=1, settings={"admission.max_running": 1, "admission.max_queue": 2})
    system.fleet[0].fault(paused=True)
    running = send(system, 0)
    await until(lambda: system.fleet[0].in_flight == 1, "one runs")
    flood = [send(system, number, cache_salt="flood") for number in (1, 2)]
    await until(lambda: len(system.app.admission.queue) == 2, "two wait")
    status, headers, answer = await send(system, 3, cache_salt="flood")
    assert (status, answer["error"]["code"]) == (503, "queue_full") and int(headers["retry-after"]) >= 1
    other = send(system, 4, cache_salt="other")
    status, headers, answer = (await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED))[0].pop().result()
    assert (status, answer["error"]["code"]) == (429, "queue_share_full") and int(headers["retry-after"]) >= 1
    assert answer["error"]["type"] == "rate_limit_error"
    async with system.client.get(system.admin_url + "/metrics") as page:
        text = await page.text()
    for line in ('queue_refusals_total{reason="share"} 1.0', 'queue_refusals_total{reason="queue_full"} 1.0'):
        assert f"prefix_router_{line}" in text
    system.fleet[0].clear_faults()
    statuses = [status for status, _, _ in await asyncio.gather(running, other, *flood)]
    assert Counter(statuses) == {200: 3, 429: 1}
    await system.idle()


async def test_a_turn_that_does_not_come_is_a_refusal_that_says_so(build) -> None:
    system = await build(replicas=1, settings={"admission.max_running": 1, "admission.timeout_s": 0.5})
    system.fleet[0].fault(paused=True)
    running = send(system, 0)
    await until(lambda: system.fleet[0].in_flight == 1, "one runs")
    status, _, answer = await send(system, 1)
    assert (status, answer["error"]["code"]) == (503, "queue_timeout")
    status, _, answer = await send(system, 2, {"x-request-timeout": "0.1"})
    assert (status, answer["error"]["code"]) == (504, "timeout"), "the client's own patience"
    system.fleet[0].clear_faults()
    assert (await running)[0] == 200
    await system.idle()


async def test_a_client_that_leaves_the_queue_leaves_nothing(build) -> None:
    system = await build(replicas=1, settings={"admission.max_running": 1})
    system.fleet[0].fault(paused=True)
    running = send(system, 0)
    await until(lambda: system.fleet[0].in_flight == 1, "one runs")
    tasks = [send(system, number) for number in range(1, 6)]
    await until(lambda: len(system.app.admission.queue) == 5, "five wait")
    for task in tasks:
        task.cancel()
    await until(lambda: len(system.app.admission.queue) == 0, "nobody waits")
    system.fleet[0].clear_faults()
    assert (await running)[0] == 200
    await system.idle()


async def test_a_client_s_timeout_ends_the_work_for_it(build) -> None:
    system = await build(replicas=1)
    system.fleet[0].fault(paused=True)
    status, _, answer = await send(system, 0, {"x-stainless-read-timeout": "0.2"})
    assert status == 504, answer
    system.fleet[0].clear_faults()
    await system.idle()


async def test_requests_outlive_a_fleet_that_restarts(build) -> None:
    system = await build(replicas=1)
    await system.fleet[0].kill()
    tasks = [send(system, number) for number in range(10)]
    await until(lambda: system.replica(0).health is Health.DOWN, "down")
    await system.fleet[0].restart()
    assert Counter(status for status, _, _ in await asyncio.gather(*tasks)) == {200: 10}
    await system.idle()


async def test_requests_wait_for_a_paused_fleet(build) -> None:
    system = await build(replicas=1)
    async with system.client.post(system.fleet[0].url + "/pause") as answer:
        assert answer.status == 200
    await until(lambda: system.replica(0).health is Health.PAUSED, "paused")
    tasks = [send(system, number) for number in range(5)]
    await until(lambda: len(system.app.admission.queue) == 5, "they wait in the router")
    async with system.client.post(system.fleet[0].url + "/resume") as answer:
        assert answer.status == 200
    assert Counter(status for status, _, _ in await asyncio.gather(*tasks)) == {200: 5}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([(b"X-Stainless-Read-Timeout", b"600")], 600),
        ([(b"x-request-timeout", b"2.5"), (b"x-envoy-expected-rq-timeout-ms", b"1500")], 1.5),
        ([(b"x-request-timeout", b"nan")], float("inf")),
        ([(b"x-request-timeout", b"-1"), (b"x-request-timeout-ms", b"soon")], float("inf")),
        ([], float("inf")),
    ],
)
def test_what_clients_say_of_their_patience(headers, seconds) -> None:
    assert client_timeout_s(Request("POST", b"/", headers)) == seconds


def test_priorities_go_the_engine_s_way() -> None:
    plain = Request("POST", b"/", [])
    header = Request("POST", b"/", [(b"X-Vllm-Priority", b"-7")])
    body = parse_request("/v1/chat/completions", b'{"model":"m","messages":[],"priority":3}')
    assert rank(plain, body, "vllm") == 3 and rank(plain, body, "sglang") == -3
    assert rank(header, body, "vllm") == -7 and rank(header, body, "sglang") == -3
    odd = parse_request("/v1/chat/completions", b'{"model":"m","messages":[],"priority":"high"}')
    assert rank(plain, odd, "vllm") == 0
