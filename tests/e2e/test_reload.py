"""A changed configuration taken up by a running router process, and its stop: nothing that runs is cut."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import yaml
from support.certificates import Authority
from support.router_process import RouterProcess, router_process
from support.waiting import PATIENCE_S, until

from replica.simulator.config import ReplicaConfig
from replica.simulator.fleet import SimulatedFleet
from replica.simulator.timing import time_model
from router.api.keys import digest
from router.config import load_config
from router.reload import differences, is_fixed

BODY = {"model": "sim", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "stream": True}


@pytest.fixture
async def fleet() -> AsyncIterator[SimulatedFleet]:
    async with SimulatedFleet(2, ReplicaConfig(model="sim", timing=time_model("instant"))) as started:
        yield started


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session


def replicas(fleet: SimulatedFleet, *indices: int) -> list[dict[str, str]]:
    return [{"url": fleet[index].url} for index in indices]


async def streaming(router: RouterProcess, client: aiohttp.ClientSession, fleet: SimulatedFleet, **headers: str):
    """A stream that a paused replica holds up after it has begun to be worked on."""
    for simulated in fleet:
        simulated.fault(paused=True)
    task = asyncio.create_task(client.post(router.url + "/v1/chat/completions", json=BODY, headers=headers))
    await until(lambda: sum(simulated.in_flight for simulated in fleet) == 1, "a stream runs")
    return task


async def finished(task: asyncio.Task[aiohttp.ClientResponse], fleet: SimulatedFleet) -> None:
    for simulated in fleet:
        simulated.clear_faults()
    async with await task as answer:
        assert answer.status == 200
        assert (await answer.text()).endswith("data: [DONE]\n\n")


async def metric(router: RouterProcess, client: aiohttp.ClientSession, name: str) -> str:
    async with client.get(router.admin_url + "/metrics") as page:
        return next(line.rsplit(" ", 1)[1] for line in (await page.text()).splitlines() if line.startswith(name + " "))


@pytest.mark.parametrize("how", ["signal", "file"])
async def test_replicas_change_while_a_stream_flows(fleet, client, tmp_path: Path, how: str) -> None:
    watch = {"watch": how == "file", "interval_s": 0.05}
    async with router_process(tmp_path, {"replicas": replicas(fleet, 0), "reload": watch}) as router:
        await router.up(client, 1)
        stream = await streaming(router, client, fleet)
        router.write(replicas=replicas(fleet, 1), routing={"policy": "least_load"})
        if how == "signal":
            router.signal(signal.SIGHUP)
        await router.said("configuration taken up")
        await router.up(client, 1)
        fleet[1].clear_faults()
        async with client.post(router.url + "/v1/chat/completions", json=BODY) as answer:
            assert "http://" + answer.headers["x-prefix-router-replica"] == fleet[1].url
            assert answer.headers["x-prefix-router-reason"] == "least_load"
            await answer.text()
        await finished(stream, fleet)
        assert await metric(router, client, 'prefix_router_config_reloads_total{result="taken"}') == "1.0"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"routing": {"polcy": "x"}}, "routing.polcy: unknown key; did you mean `policy`?"),
        ({"replicas": []}, "no replicas"),
        ({"keys": {"file": "/nonexistent"}}, "keys.file: /nonexistent can't be read"),
        ({"listen": {"port": 0, "tls": {"cert_file": "/nonexistent", "key_file": "/x"}}}, "listen.tls.cert_file"),
        ({"models": [{"name": "sim", "files": "/nonexistent"}]}, "models: sim: /nonexistent"),
        (None, "not valid YAML"),
    ],
)
async def test_a_file_that_cannot_be_used_changes_nothing(fleet, client, tmp_path: Path, change, said: str) -> None:
    async with router_process(tmp_path, {"replicas": replicas(fleet, 0, 1)}) as router:
        await router.up(client, 2)
        stream = await streaming(router, client, fleet)
        good = dict(router.settings)
        if change is None:
            router.write_text("{")
        else:
            router.write_text(yaml.safe_dump(good | {"proxy": {"max_attempts": 1}} | change))
        await router.said("configuration refused, nothing has changed: ")
        line = next(line for line in router.log.splitlines() if "refused" in line)
        assert said in line and str(router.file) in line, line
        async with client.get(router.admin_url + "/ready") as answer:
            status = await answer.json()
        assert answer.status == 200 and status["replicas_up"] == 2
        assert any("the older one is in force" in trouble and said in trouble for trouble in status["degraded"])
        assert await metric(router, client, "prefix_router_config_refused") == "1.0"
        await finished(stream, fleet)
        router.write()
        await router.said("configuration taken up")
        assert await metric(router, client, "prefix_router_config_refused") == "0.0"


async def test_keys_limits_and_what_needs_a_restart(fleet, client, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps([{"name": "a", "sha256": digest("key-a")}]))
    settings = {"replicas": replicas(fleet, 0), "keys": {"file": str(keys)}}
    async with router_process(tmp_path, settings) as router:
        await router.up(client, 1)
        old, new = ({"authorization": f"Bearer key-{name}"} for name in "ab")
        stream = await streaming(router, client, fleet, **old)
        fresh = tmp_path / "fresh"
        fresh.write_text(json.dumps([{"name": "b", "sha256": digest("key-b"), "models": ["other"]}]))
        fresh.replace(keys)
        await router.said("configuration taken up")
        async with client.get(router.url + "/v1/models", headers=old) as answer:
            assert answer.status == 401
        async with client.post(router.url + "/v1/chat/completions", json=BODY, headers=new) as answer:
            assert answer.status == 403
        await finished(stream, fleet)
        router.write(listen={"port": 1}, index={"max_blocks": 1000}, limits={"max_header_kb": 1})
        await router.said("these take effect at the next restart: listen.port, index.max_blocks")
        long = {"x-long": "x" * 2000}
        async with aiohttp.ClientSession() as fresh, fresh.get(router.url + "/health", headers=long) as answer:
            assert answer.status == 431, "limits hold for new connections"
        async with client.get(router.admin_url + "/ready") as answer:
            assert "needs a restart: listen.port, index.max_blocks" in await answer.text()


async def test_certificates_are_renewed_without_a_gap(fleet, client, tmp_path: Path) -> None:
    first, second = Authority(tmp_path / "first"), Authority(tmp_path / "second")
    pair = first.issue("127.0.0.1")
    tls = {"cert_file": pair.cert, "key_file": pair.key}
    settings = {"replicas": replicas(fleet, 0), "listen": {"port": 0, "tls": tls}}
    async with router_process(tmp_path, settings) as router:
        await router.up(client, 1)
        trust, later = (ssl.create_default_context(cafile=each.file) for each in (first, second))
        for simulated in fleet:
            simulated.fault(paused=True)
        stream = asyncio.create_task(client.post(router.url + "/v1/chat/completions", json=BODY, ssl=trust))
        await until(lambda: fleet[0].in_flight == 1, "a stream runs")
        failed: list[BaseException] = []
        renewed = asyncio.Event()

        async def ask_on() -> None:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as fresh:
                while not renewed.is_set():
                    for context in (trust, later):
                        try:
                            async with fresh.get(router.url + "/health", ssl=context):
                                break
                        except aiohttp.ClientConnectorCertificateError:
                            continue
                        except aiohttp.ClientError as error:
                            failed.append(error)

        asking = [asyncio.create_task(ask_on()) for _ in range(4)]
        made = second.issue("127.0.0.1")
        Path(pair.key).write_bytes(Path(made.key).read_bytes())
        Path(pair.cert).write_bytes(Path(made.cert).read_bytes())
        await router.said("configuration taken up")
        async with aiohttp.ClientSession() as fresh, fresh.get(router.url + "/health", ssl=later) as answer:
            assert answer.status == 200
        renewed.set()
        await asyncio.gather(*asking)
        assert not failed
        await finished(stream, fleet)


async def test_sigterm_turns_readiness_off_closes_idle_connections_and_finishes_streams(
    fleet, client, tmp_path: Path
) -> None:
    settings = {"replicas": replicas(fleet, 0), "shutdown": {"grace_s": 60, "delay_s": 3.0}}
    async with router_process(tmp_path, settings) as router:
        await router.up(client, 1)
        host, port = router.url.removeprefix("http://").split(":")
        idle, sending = await asyncio.open_connection(host, int(port))
        sending.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200" in await idle.readuntil(b'{"status":"ok"}')
        stream = await streaming(router, client, fleet)
        router.signal(signal.SIGTERM)
        await router.said("stopping")
        async with aiohttp.ClientSession() as fresh:
            async with fresh.get(router.url + "/ready") as answer:
                assert answer.status == 503 and (await answer.json())["status"] == "draining"
                assert answer.headers["connection"] == "close", "clients are sent elsewhere while it still listens"
            async with fresh.get(router.admin_url + "/ready") as answer:
                assert answer.status == 503
        assert await idle.read() == b"", "the idle connection is closed"
        sending.close()

        async def refused() -> bool:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                return True
            writer.close()
            return False

        async with asyncio.timeout(PATIENCE_S):
            while not await refused():
                await asyncio.sleep(0.01)
        assert not router.ended, "it waits for the stream"
        await finished(stream, fleet)
        assert await router.stop() == 0
        assert "cut requests" not in router.log


@pytest.mark.parametrize("workers", [1, 2])
async def test_signals_while_it_winds_up_do_not_change_the_exit_status(
    fleet, client, tmp_path: Path, workers: int
) -> None:
    async with router_process(tmp_path, {"replicas": replicas(fleet, 0), "workers": workers}) as router:
        await router.up(client, 1)
        while not router.ended:
            router.signal(signal.SIGTERM)
            await asyncio.sleep(0.005)
        assert await router.stop() == 0


async def test_a_second_signal_cuts_what_still_runs(fleet, client, tmp_path: Path) -> None:
    async with router_process(tmp_path, {"replicas": replicas(fleet, 0), "shutdown": {"grace_s": 600}}) as router:
        await router.up(client, 1)
        stream = await streaming(router, client, fleet)
        router.signal(signal.SIGTERM)
        await router.said("stopping")
        router.signal(signal.SIGINT)
        with pytest.raises(aiohttp.ClientError):
            await stream
        assert await router.stop() == 0


def test_every_section_is_either_taken_up_or_named() -> None:
    plain = load_config()
    changed = load_config(
        overrides=[
            ("index.max_blocks", 5),
            ("redis.pool", "x"),
            ("proxy.max_attempts", 9),
            ("prompt.chain_cache_mb", 1),
        ]
    )
    found = list(differences(plain, changed))
    assert found == ["index.max_blocks", "redis.pool", "prompt.chain_cache_mb", "proxy.max_attempts"]
    assert [key for key in found if is_fixed(key)] == ["index.max_blocks", "redis.pool", "prompt.chain_cache_mb"]
