"""Every alert fires on series that show its trouble, and on none that don't: promtool's unit tests of rules."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

AT = 'namespace="n",job="j",instance="i"'
STAGE = f'prefix_router_stage_seconds_bucket{{{AT},stage="%s",le="%s"}}'


def series(name: str, values: str, labels: str = "") -> dict[str, str]:
    """One series of samples a minute, in promtool's notation."""
    return {"series": f"prefix_router_{name}{{{AT}{labels}}}", "values": values}


def slow(stage: str) -> list[dict[str, str]]:
    """A stage that takes between 0.1 and 0.5 s, 60 times a minute."""
    counts = {"0.05": "0x60", "0.1": "0x60", "0.5": "0+60x60", "+Inf": "0+60x60"}
    return [{"series": STAGE % (stage, bound), "values": values} for bound, values in counts.items()]


REPLICA = ',replica="r1"'
PROMPTS = series("prompt_tokens_total", "0+6000x90", REPLICA)
ALERTS: dict[str, tuple[list[dict[str, str]], list[dict[str, str]], str]] = {
    "PrefixRouterReplicaDown": (
        [series("replica_up", "1x5 0x60", REPLICA)],
        [series("replica_up", "1x5 0 1x60", REPLICA)],
        "10m",
    ),
    "PrefixRouterNoReplicaUp": (
        [series("replica_up", "0x60", REPLICA), series("replica_up", "0x60", ',replica="r2"')],
        [series("replica_up", "0x60", REPLICA), series("replica_up", "1x60", ',replica="r2"')],
        "10m",
    ),
    "PrefixRouterErrors": (
        [series("requests_total", "0+3x60", ',code="502"'), series("requests_total", "0+97x60", ',code="200"')],
        [series("requests_total", "0+1x60", ',code="502"'), series("requests_total", "0+99x60", ',code="200"')],
        "30m",
    ),
    "PrefixRouterBrokenStreams": (
        [series("broken_streams_total", "0+1x60", REPLICA)],
        [series("broken_streams_total", "0 0 1x60", REPLICA)],
        "40m",
    ),
    "PrefixRouterEventLag": (
        [series("event_lag_seconds", "6x60", REPLICA)],
        [series("event_lag_seconds", "0.5x60", REPLICA)],
        "10m",
    ),
    "PrefixRouterEventsLost": (
        [series("event_clears_total", "0+1x60", REPLICA), series("event_gaps_total", "0+1x60", REPLICA)],
        [series("event_clears_total", "0+1x60", REPLICA), series("event_gaps_total", "1x60", REPLICA)],
        "20m",
    ),
    "PrefixRouterEventsMalformed": (
        [series("event_malformed_total", "0+1x60", REPLICA)],
        [series("event_malformed_total", "7x60", REPLICA)],
        "40m",
    ),
    "PrefixRouterIndexFull": (
        [series("index_blocks_refused_total", "0+100x60")],
        [series("index_blocks_refused_total", "100x60")],
        "40m",
    ),
    "PrefixRouterApproximate": (
        [series("approximate_prompts_total", "0+6x90", ',reason="no-model-files"'),
         series("decisions_total", "0+10x90", f'{REPLICA},reason="prefix"')],
        [series("approximate_prompts_total", "0+4x90", ',reason="no-model-files"'),
         series("decisions_total", "0+10x90", f'{REPLICA},reason="prefix"')],
        "80m",
    ),
    "PrefixRouterSlow": (slow("tokenize"), slow("queue"), "30m"),
    "PrefixRouterQuarantined": (
        [series("replica_quarantined", "1x60", REPLICA)],
        [series("replica_quarantined", "0x60", REPLICA)],
        "10m",
    ),
    "PrefixRouterIndexWrong": (
        [PROMPTS, series("computed_tokens_total", "0+500x90", ',cause="index_stale"'),
         series("computed_tokens_total", "0+500x90", ',cause="token_mismatch"')],
        [PROMPTS, series("computed_tokens_total", "0+500x90", ',cause="index_stale"'),
         series("computed_tokens_total", "0+5000x90", ',cause="new"')],
        "50m",
    ),
    "PrefixRouterPrefixBreaks": (
        [PROMPTS, series("prefix_break_tokens_total", "0+2000x90", ',class="timestamp_or_counter"')],
        [PROMPTS, series("prefix_break_tokens_total", "0+600x90", ',class="timestamp_or_counter"')],
        "70m",
    ),
    "PrefixRouterNoRoom": (
        [series("queue_refusals_total", "0+1x60", ',reason="full"')],
        [series("queue_refusals_total", "5x60", ',reason="full"')],
        "20m",
    ),
    "PrefixRouterRedisDown": ([series("redis_up", "1 0x60")], [series("redis_up", "1 0 1x60")], "10m"),
    "PrefixRouterWorkerDown": (
        [series("worker_up", "1 0x60", ',worker="1"'), series("worker_up", "1x60", ',worker="2"')],
        [series("worker_up", "1 0 1x60", ',worker="1"'), series("worker_up", "1x60", ',worker="2"')],
        "10m",
    ),
    "PrefixRouterWorkersEnd": (
        [series("worker_restarts_total", "0+1x60")],
        [series("worker_restarts_total", "0x10 1x60")],
        "20m",
    ),
    "PrefixRouterReplicaSlow": (
        [series("replica_slowness", "3x60", REPLICA)],
        [series("replica_slowness", "1.5x60", REPLICA)],
        "20m",
    ),
    "PrefixRouterConfigRefused": ([series("config_refused", "1x60")], [series("config_refused", "0x60")], "10m"),
}  # fmt: skip


def case(given: list[dict[str, str]], alert: str, at: str, firing: bool) -> dict[str, Any]:
    query = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
    samples = [{"labels": "{}", "value": 1}] if firing else []
    return {
        "name": f"{alert} {'fires' if firing else 'is quiet'}",
        "interval": "1m",
        "input_series": given,
        "promql_expr_test": [{"expr": query, "eval_time": at, "exp_samples": samples}],
    }


def test_every_alert_has_its_cases(chart: Path) -> None:
    rules = yaml.safe_load((chart / "files" / "rules.yaml").read_text(encoding="utf-8"))
    assert {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule} == set(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_it_fires_when_it_should_and_only_then(
    alert: str, chart: Path, tool: Callable[[str], str], tmp_path: Path
) -> None:
    fires, quiet, at = ALERTS[alert]
    cases = [case(fires, alert, at, True), case(quiet, alert, at, False)]
    settings = {"rule_files": [str(chart / "files" / "rules.yaml")], "evaluation_interval": "1m", "tests": cases}
    path = tmp_path / "test.yml"
    path.write_text(json.dumps(settings), encoding="utf-8")
    done = subprocess.run([tool("promtool"), "test", "rules", str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
