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
from router.observe import reference
from router.observe.attribution import Cause
from router.observe.breaks import BreakClass
from router.observe.metrics import STAGES


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
        async with asyncio.timeout(60):
            while (await client.get(base + "/ready")).status != 200:
                await asyncio.sleep(0.02)
        body = {"model": "sim", "messages": [{"role": "user", "content": "hello " * 100}], "max_tokens": 4}
        for _ in range(3):
            async with client.post(base + "/v1/chat/completions", json=body) as answer:
                assert answer.status == 200
                await answer.read()
        for replica in fleet:  # an answer of each kind that panels and alerts count
            replica.fault(status=500)
        async with client.post(base + "/v1/chat/completions", json=body) as answer:
            assert answer.status >= 500
        yield f"127.0.0.1:{app.admin_port}"


DECLARED = {"cause": set(Cause), "class": set(BreakClass), "stage": set(STAGES)}
"""Labels whose values are these words, whether the test's traffic made them appear or not."""
FROM_PROMETHEUS = {"namespace", "job", "instance", "le"}
SELECTOR = re.compile(r"\b(prefix_router_\w+)(?:\{([^}]*)\})?")


def documented() -> dict[str, set[str]]:
    """The labels of each series that docs/metrics.md, made from the code, names."""
    found: dict[str, set[str]] = {}
    for name, kind, labels in re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", reference.render(), re.MULTILINE):
        parts = [f"{name}_{part}" for part in ("bucket", "sum", "count")] if kind == "histogram" else [name]
        found |= {part: set(re.findall(r"\w+", labels)) for part in parts}
    return found


def wrong_filters(expression: str, page: str) -> list[str]:
    """Matchers of an expression that no value of their label satisfies."""
    wrong = []
    for name, matchers in SELECTOR.findall(expression):
        for label, operator, value in re.findall(r'(\w+)(=~|!=|!~|=)"([^"]*)"', matchers):
            if label in FROM_PROMETHEUS:
                continue
            series = re.findall(rf"^{name}\{{(.*)\}} ", page, re.MULTILINE)
            values = {found for one in series for found in re.findall(rf'{label}="([^"]*)"', one)}
            words = value.split("|") if "~" in operator else [re.escape(value)]
            wrong += [
                f"{name}: {label}={word!r}"
                for word in words
                if not any(re.fullmatch(word, each) for each in values | DECLARED.get(label, set()))
            ]
    return wrong


async def test_every_metric_label_and_value_exists(admin: str, chart: Path) -> None:
    """Names and labels are documented ones; each filter has a value that the router really gives."""
    async with aiohttp.ClientSession() as client, client.get(f"http://{admin}/metrics") as answer:
        page = await answer.text()
    known = documented()
    shown = set(re.findall(r"^(prefix_router_\w+)[{ ]", page, re.MULTILINE))
    assert set(re.findall(r'stage="(\w+)"', page)) <= set(STAGES)
    assert {name for name in shown if not name.endswith("_created")} <= set(known)
    scaling = (chart / "templates" / "scaling.yaml").read_text(encoding="utf-8")
    asked = 0
    for expression in (*expressions(chart), *re.findall(r"prefix_router_\w+", scaling)):
        names = {name for name, _ in SELECTOR.findall(expression)}
        asked += len(names)
        assert names <= set(known), expression
        labels = {label for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(", ")}
        assert labels <= FROM_PROMETHEUS.union(*(known[name] for name in names)), expression
        assert wrong_filters(expression, page) == [], expression
    assert asked > 40


def test_a_filter_on_a_value_that_never_is_gets_found() -> None:
    page = 'prefix_router_requests_total{code="200",endpoint="chat"} 3.0\n'
    assert wrong_filters('rate(prefix_router_requests_total{code=~"2.."}[1m])', page) == []
    assert wrong_filters('rate(prefix_router_requests_total{code="504"}[1m])', page) != []
    assert wrong_filters('rate(prefix_router_stage_seconds_sum{stage="prompt"}[1m])', page) != []
    assert wrong_filters('rate(prefix_router_computed_tokens_total{cause=~"evicted|nonsense"}[1m])', page) != []


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
        async with asyncio.timeout(240), aiohttp.ClientSession() as client:
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
