"""Rules and dashboard against the router's real /metrics: every name exists, and Prometheus runs every expression."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from replica.simulator.config import MODEL_DIR, ReplicaConfig
from replica.simulator.fleet import SimulatedFleet
from replica.simulator.timing import time_model
from router.app import App
from router.config import load_config


def expressions(chart: Path) -> Iterator[str]:
    """Every PromQL expression the chart ships, with Grafana's variables filled in."""
    for group in yaml.safe_load((chart / "files" / "rules.yaml").read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            yield rule["expr"]
    dashboard = json.loads((chart / "files" / "dashboard.json").read_text(encoding="utf-8"))
    panels = [inner for panel in dashboard["panels"] for inner in (panel, *panel.get("panels", []))]
    for panel in panels:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$__rate_interval", "1m")
            yield re.sub(r"\$\w+", ".*", expression)


@pytest.fixture
async def admin() -> AsyncIterator[str]:
    """The admin address (host:port) of a router that answered requests over two simulated replicas."""
    async with AsyncExitStack() as stack:
        fleet = SimulatedFleet(2, ReplicaConfig(model_dir=MODEL_DIR, timing=time_model("instant"), port=0))
        await fleet.start()
        stack.push_async_callback(fleet.stop)
        config = load_config(
            overrides=[
                ("replicas", [{"url": replica.url} for replica in fleet]),
                ("listen.port", 0),
                ("admin.port", 0),
                ("health.interval_s", 0.05),
            ]
        )
        app = App(config, model_files=str(MODEL_DIR))
        await app.start()
        stack.push_async_callback(app.stop)
        client = await stack.enter_async_context(aiohttp.ClientSession())
        base = f"http://127.0.0.1:{app.server.port}"
        async with asyncio.timeout(20):
            while (await client.get(base + "/ready")).status != 200:
                await asyncio.sleep(0.02)
        body = {"model": "sim", "messages": [{"role": "user", "content": "hello " * 100}], "max_tokens": 4}
        for _ in range(3):
            async with client.post(base + "/v1/chat/completions", json=body) as answer:
                assert answer.status == 200
                await answer.read()
        yield f"127.0.0.1:{app.admin_port}"


async def test_every_metric_exists(admin: str, chart: Path) -> None:
    async with aiohttp.ClientSession() as client, client.get(f"http://{admin}/metrics") as answer:
        page = await answer.text()
    known = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", page, re.MULTILINE):
        known |= {name} if kind != "histogram" else {f"{name}_{part}" for part in ("bucket", "sum", "count")}
    scaling = (chart / "templates" / "scaling.yaml").read_text(encoding="utf-8")
    asked = {name for text in (*expressions(chart), scaling) for name in re.findall(r"\b(prefix_router_\w+)", text)}
    assert len(asked) > 20
    assert asked <= known


async def test_prometheus_runs_every_expression(
    admin: str, chart: Path, tool: Callable[[str], str], tmp_path: Path
) -> None:
    path = tmp_path / "prometheus.yml"
    job: dict[str, Any] = {"job_name": "router", "static_configs": [{"targets": [admin], "labels": {"namespace": "n"}}]}
    rules = str(chart / "files" / "rules.yaml")
    settings = {"global": {"scrape_interval": "200ms"}, "rule_files": [rules], "scrape_configs": [job]}
    path.write_text(json.dumps(settings), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        tool("prometheus"),
        f"--config.file={path}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        "--web.listen-address=127.0.0.1:0",
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(30), aiohttp.ClientSession() as client:
            url = ""
            while not url:
                line = (await process.stderr.readline()).decode()
                assert line, "prometheus ended"
                if found := re.search(r'"?Listening on"? address=(127\.0\.0\.1:\d+)', line):
                    url = f"http://{found[1]}/api/v1/query"
            drained = asyncio.create_task(process.stderr.read())
            value: list[Any] = []
            while not value:
                async with client.get(url, params={"query": "sum(rate(prefix_router_requests_total[1m]))"}) as answer:
                    # 503 while it starts.
                    if answer.status == 200:
                        value = (await answer.json())["data"]["result"]
                await asyncio.sleep(0.1)
            for expression in expressions(chart):
                async with client.get(url, params={"query": expression}) as answer:
                    said = await answer.json()
                assert said["status"] == "success", f"{expression}: {said}"
                assert not said.get("warnings"), f"{expression}: {said['warnings']}"
    finally:
        process.terminate()
        await process.wait()
    await drained
