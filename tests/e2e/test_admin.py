"""The admin API: who may use it, and replicas added, drained and removed under load without a failed request."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from typing import Any

import pytest
from support.waiting import until

from router.fleet.replica import Health

TOKEN = {"authorization": "Bearer t0ken"}


@pytest.fixture(autouse=True)
def token(monkeypatch) -> None:
    monkeypatch.setenv("ADMIN_TOKEN", "t0ken")


async def admin(system, method: str, path: str, body: Any = None, headers: dict[str, str] = TOKEN) -> tuple[int, Any]:
    async with system.client.request(method, system.admin_url + path, json=body, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_without_a_token_nothing_can_be_changed(build) -> None:
    system = await build(replicas=1)
    name = system.replica(0).id
    for method, path in (("POST", "/replicas"), ("DELETE", f"/replicas/{name}"), ("POST", f"/replicas/{name}/drain")):
        status, answer = await admin(system, method, path)
        assert status == 403 and "admin.token_file" in answer["error"]["message"]
    status, answer = await admin(system, "GET", "/replicas", headers={})
    assert status == 200 and answer["replicas"][0]["sources"] == ["configuration"]
    for path in ("/metrics", "/replicas", "/replicas/x/drain"):
        async with system.client.post(system.url + path, json={}) as public:
            assert public.status in (404, 405), "the public port has none of it"
            assert "sources" not in await public.text()


async def test_with_a_token_reading_needs_it_too(build) -> None:
    system = await build(replicas=1, settings={"admin.token_env": "ADMIN_TOKEN"})
    assert (await admin(system, "GET", "/replicas", headers={}))[0] == 401
    assert (await admin(system, "GET", "/replicas", headers={"authorization": "Bearer wrong"}))[0] == 401
    assert (await admin(system, "GET", "/ready", headers={}))[0] == 200
    browser = {"authorization": "Basic " + base64.b64encode(b"me:t0ken").decode()}
    assert (await admin(system, "GET", "/replicas", headers=browser))[0] == 200
    assert (await admin(system, "POST", f"/replicas/{system.replica(0).id}/drain", headers=browser))[0] == 401
    async with system.client.get(system.admin_url + "/metrics") as page:
        assert page.status == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"),
        ({"url": "nonsense"}, "url"),
        ({"url": "http://127.0.0.1:99999"}, "url"),
        ({"url": "http://127.0.0.1:1", "engine": "x"}, "engine"),
        ({"url": "http://127.0.0.1:1", "labels": {"a": 1}}, "labels"),
        ({"url": "http://127.0.0.1:1", "ID": "x"}, "ID"),
        ([], None),
    ],
)
async def test_a_replica_that_makes_no_sense_is_refused_by_field(build, body: Any, field: str | None) -> None:
    system = await build(replicas=1, settings={"admin.token_env": "ADMIN_TOKEN"})
    status, answer = await admin(system, "POST", "/replicas", body)
    assert status == 400
    assert field is None or answer["error"]["field"].startswith(field), answer
    assert len(system.app.fleet) == 1


async def test_conflicts_and_unknown_replicas(build) -> None:
    system = await build(replicas=2, settings={"admin.token_env": "ADMIN_TOKEN"})
    url, name = system.fleet[0].url, system.replica(0).id
    assert (await admin(system, "POST", "/replicas", {"url": url}))[0] == 409
    status, answer = await admin(system, "POST", "/replicas", {"url": url, "id": "other"})
    assert (status, answer["error"]["field"]) == (409, "url")
    assert (await admin(system, "DELETE", "/replicas/nobody"))[0] == 404
    assert (await admin(system, "POST", "/replicas/nobody/undrain"))[0] == 404
    assert (await admin(system, "DELETE", f"/replicas/{name}"))[0] == 200
    status, answer = await admin(system, "GET", "/replicas")
    assert answer["removed"] == [name] and name not in [each["id"] for each in answer["replicas"]]
    status, answer = await admin(system, "POST", "/replicas", {"url": url})
    assert status == 201 and answer["sources"] == ["configuration", "admin API"], "what was removed may join again"
    assert (await admin(system, "GET", "/replicas"))[1]["removed"] == []


async def test_add_drain_and_remove_under_load_fail_nothing(build) -> None:
    system = await build(
        replicas=4, settings={"admin.token_env": "ADMIN_TOKEN", "routing.policy": "round_robin", "replicas": []}
    )
    urls = [simulated.url for simulated in system.fleet]
    names = [url.removeprefix("http://") for url in urls]
    for url in urls[:2]:
        status, answer = await admin(system, "POST", "/replicas", {"url": url})
        assert status == 201 and answer["sources"] == ["admin API"]

    def up() -> set[str]:
        return {r.id for r in system.app.fleet if r.health is Health.UP}

    await until(lambda: up() == set(names[:2]), "two joined")
    done: Counter[int] = Counter()
    stop = asyncio.Event()

    async def agent(number: int) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            body = {
                "model": "sim", "messages": [{"role": "user", "content": f"{number} {turn} " * 20}], "max_tokens": 20,
                "stream": True,
            }  # fmt: skip
            async with system.client.post(system.url + "/v1/chat/completions", json=body) as answer:
                text = await answer.text()
                done[answer.status if text.endswith("data: [DONE]\n\n") and '"error"' not in text else 0] += 1

    agents = [asyncio.create_task(agent(number)) for number in range(8)]

    async def more(count: int) -> None:
        target = done[200] + count
        await until(lambda: done[200] >= target, f"{count} more answers: {done}")

    await more(40)
    for url in urls[2:]:
        assert (await admin(system, "POST", "/replicas", {"url": url}))[0] == 201
    await until(lambda: up() == set(names), "four are up")
    await more(40)
    status, answer = await admin(system, "POST", f"/replicas/{names[0]}/drain")
    assert (status, answer["health"], answer["reason"]) == (200, "draining", "drained by the admin API")
    await until(lambda: system.fleet[0].in_flight == 0, "it finishes what it has")
    finished = system.fleet[0].counters.finished_requests
    await more(40)
    assert system.fleet[0].in_flight == 0
    assert system.fleet[0].counters.finished_requests == finished, "and gets nothing new"
    assert (await admin(system, "DELETE", f"/replicas/{names[1]}"))[0] == 200
    assert names[1] not in {r.id for r in system.app.fleet}
    await more(40)
    assert (await admin(system, "POST", f"/replicas/{names[0]}/undrain"))[0] == 200
    await until(lambda: up() == {names[0], names[2], names[3]}, "it is back")
    await more(40)
    stop.set()
    await asyncio.gather(*agents)
    assert set(done) == {200}, done
    await system.idle()
