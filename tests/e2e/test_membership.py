"""Replicas come and go at run time, by a discovery file, and nobody's answer is cut."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
from support.waiting import until

from replica.simulator.config import ReplicaConfig
from replica.simulator.fleet import SimulatedFleet
from replica.simulator.timing import time_model
from router.fleet.replica import Health


async def test_replicas_join_and_leave_by_a_file_without_a_lost_answer(build, tmp_path: Path) -> None:
    file = tmp_path / "replicas.yaml"
    file.write_text("[]")
    system = await build(
        replicas=3, settings={"replicas": [], "discovery.files": [{"path": str(file), "interval_s": 0.02}]}
    )
    assert len(system.app.fleet) == 0
    assert system.app.ready()[0] is False

    def write(urls: list[str]) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(json.dumps([{"url": url} for url in urls]))
        fresh.replace(file)

    def up() -> list[str]:
        return sorted(r.url for r in system.app.fleet if r.health is Health.UP)

    urls = sorted(system.fleet.urls)
    write(urls[:2])
    await until(lambda: up() == urls[:2], "two replicas joined")
    for simulated in system.fleet:
        simulated.fault(paused=True)
    body = {"model": "sim", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "stream": True}
    running = [
        asyncio.create_task(system.client.post(system.url + "/v1/chat/completions", json=body)) for _ in range(4)
    ]
    await until(lambda: sum(simulated.in_flight for simulated in system.fleet) == 4, "four streams run")
    write(urls[2:])
    await until(lambda: up() == urls[2:], "the first two left, the third joined")
    for simulated in system.fleet:
        simulated.clear_faults()
    for answer in await asyncio.gather(*running):
        assert (await answer.text()).endswith("data: [DONE]\n\n")
    status, headers, _ = await system.post("/v1/chat/completions", body | {"stream": False})
    assert status == 200
    assert "http://" + headers["x-prefix-router-replica"] == urls[2]
    file.write_text("{")
    await until(lambda: any("discovery" in line for line in system.app.ready()[1]["degraded"]), "/ready names the file")
    assert up() == urls[2:], "what can't be read changes nothing"


async def test_an_upload_goes_to_a_replica_of_the_model_its_form_names(build, tmp_path: Path) -> None:
    file = tmp_path / "replicas.yaml"
    system = await build(
        replicas=2, settings={"replicas": [], "discovery.files": [{"path": str(file), "interval_s": 0.02}]}
    )
    async with SimulatedFleet(1, ReplicaConfig(model="whisper", timing=time_model("instant"))) as other:
        fresh = tmp_path / "fresh"
        fresh.write_text(json.dumps([{"url": url} for url in [*system.fleet.urls, *other.urls]]))
        fresh.replace(file)
        await until(lambda: [r.health for r in system.app.fleet] == [Health.UP] * 3, "all joined")
        seen = set()
        for model in ("whisper", "whisper", "whisper", "sim", "sim", "sim", "unknown"):
            form = aiohttp.FormData({"model": model})
            form.add_field("file", b"RIFF" * 40_000, filename="a.wav")
            async with system.client.post(system.url + "/v1/audio/transcriptions", data=form) as answer:
                seen.add((model, "http://" + answer.headers["x-prefix-router-replica"] in other.urls))
        assert {("whisper", True), ("sim", False)} <= seen, "an unknown one is any engine's to judge"
        assert not {("whisper", False), ("sim", True)} & seen


async def test_one_impossible_address_does_not_stop_the_others(build, tmp_path: Path) -> None:
    file = tmp_path / "replicas.yaml"
    file.write_text("[]")
    system = await build(
        replicas=1, settings={"replicas": [], "discovery.files": [{"path": str(file), "interval_s": 0.02}]}
    )
    bad = {"id": "bad", "url": "http://127.0.0.1:99999"}
    fresh = tmp_path / "fresh"
    fresh.write_text(json.dumps([bad, {"id": "good", "url": system.fleet[0].url}]))
    fresh.replace(file)
    await until(
        lambda: (
            [r.id for r in system.app.fleet if r.health is Health.UP] == ["good"]
            or any("99999" in line for line in system.app.ready()[1]["degraded"])
        ),
        "the good one joined, or the file was refused by name",
    )
