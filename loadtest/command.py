"""`prefix-router loadtest`: send a workload to an OpenAI endpoint and report latency and cache hit rate."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop

from loadtest.client import served_models
from loadtest.datasets import add_dataset_arguments, workload_from
from loadtest.html import html_report
from loadtest.progress import ProgressBar
from loadtest.report import METRICS, json_result, text_report
from loadtest.run import RunResult, run_workload
from loadtest.summary import SLO_METRICS
from loadtest.types import Workload, WorkloadError

EXAMPLES = """examples:
  recorded agent sessions (shipped, real text), 16 agents at once:
    prefix-router loadtest --base-url http://127.0.0.1:8000 --max-concurrency 16
  synthetic agents in 4 groups with a shared system prompt, 2 sessions a second:
    prefix-router loadtest --dataset agents --groups 4 --system-tokens 2000 --request-rate 2 --num-sessions 200
  a Mooncake trace at four times its speed, with 32 instead of 512 tokens a block:
    prefix-router loadtest --dataset hash-trace --dataset-path trace.jsonl --tokens-per-block 32 --speed-up 4
  goodput, engine counters, and both reports in files:
    prefix-router loadtest --goodput ttft:200 e2el:5000 --engine-metrics-url http://10.0.0.1:8001/metrics \\
      --save-result --html report.html

An engine says how many prompt tokens were cached only if told to: vLLM --enable-prompt-tokens-details, SGLang
--enable-cache-report. Without it the hit rate is "unknown", or taken from --engine-metrics-url.
OPENAI_API_KEY, if set, is sent as a bearer token."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    target = parser.add_argument_group("endpoint")
    target.add_argument(
        "--base-url", default="http://127.0.0.1:8000", metavar="URL", help="without /v1 (default %(default)s)"
    )
    target.add_argument("--model", help="default: the only one of GET /v1/models")
    target.add_argument("--header", action="append", default=[], metavar="NAME=VALUE", help="sent with every request")
    target.add_argument("--session-header", metavar="NAME", help="send the session's id in this header (default: none)")
    target.add_argument("--extra-body", metavar="JSON", help="fields added to every body, as '{\"temperature\": 0}'")
    target.add_argument("--ignore-eos", action="store_true", help="ask for exactly max_tokens (vLLM, SGLang)")
    target.add_argument("--no-stream", action="store_true", help="whole answers: no TTFT, TPOT, ITL")
    target.add_argument("--timeout", type=float, default=600.0, metavar="S", help="per request (default 600)")
    target.add_argument(
        "--replica-header",
        default="x-prefix-router-replica",
        metavar="NAME",
        help="response header that names the replica (default %(default)s)",
    )
    add_dataset_arguments(parser)
    load = parser.add_argument_group("load")
    load.add_argument("--max-concurrency", type=int, metavar="N", help="sessions at once (closed loop: default 8)")
    load.add_argument("--max-in-flight", type=int, metavar="N", help="requests at once (1: agents take turns)")
    load.add_argument("--request-rate", type=float, metavar="R", help="open loop: sessions a second, or inf")
    load.add_argument(
        "--burstiness", type=float, default=1.0, help="of arrivals: 1 Poisson, below burstier (default 1)"
    )
    load.add_argument("--closed-loop", action="store_true", help="ignore the workload's own start times")
    report = parser.add_argument_group("report")
    report.add_argument("--goodput", nargs="+", default=[], metavar="METRIC:MS", help="as ttft:200 tpot:50 e2el:5000")
    report.add_argument("--percentile-metrics", default=",".join(METRICS), metavar="LIST", help="default %(default)s")
    report.add_argument("--metric-percentiles", default="99", metavar="LIST", help="as 50,90,99 (default 99)")
    report.add_argument(
        "--engine-metrics-url", action="append", default=[], metavar="URL", help="of each engine; repeat"
    )
    report.add_argument("--replicas", type=int, metavar="N", help="fleet size, for the hotspot")
    report.add_argument("--save-result", action="store_true", help="write a JSON file")
    report.add_argument("--save-detailed", action="store_true", help="with every request in it")
    report.add_argument("--result-filename", metavar="FILE", help="default loadtest-DATASET-DATE.json")
    report.add_argument("--html", metavar="FILE", help="write a self-contained HTML page with plots")
    report.add_argument("--no-progress", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if the endpoint cannot be used or no request succeeded; 2 for bad flags or files."""
    try:
        checked = Checked(args)
        workload = workload_from(args)
        if args.closed_loop:
            workload = workload.untimed()
    except WorkloadError as error:
        return _say(f"prefix-router loadtest: {error}", 2)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(_measure(args, checked, workload))
    except WorkloadError as error:
        return _say(f"prefix-router loadtest: {error}", 2)
    except ConnectionError as error:
        return _say(f"prefix-router loadtest: {error}", 1)
    return _write(args, checked, result)


class Checked:
    """The flags that need more than a type. Raises WorkloadError naming the flag and what it takes."""

    def __init__(self, args: argparse.Namespace) -> None:
        for name in ("max_concurrency", "max_in_flight", "request_rate", "burstiness", "timeout", "replicas"):
            value = getattr(args, name)
            if value is not None and not value > 0:
                raise WorkloadError(f"--{name.replace('_', '-')} must be above 0, got {value:g}")
        if not args.base_url.startswith(("http://", "https://")):
            raise WorkloadError(f"--base-url must start with http:// or https://, got {args.base_url!r}")
        self.base_url = args.base_url.rstrip("/").removesuffix("/v1")
        self.headers = dict(_split(text, "=", "--header", "NAME=VALUE") for text in args.header)
        key = os.environ.get("OPENAI_API_KEY")
        if key and not any(name.lower() == "authorization" for name in self.headers):
            self.headers["authorization"] = f"Bearer {key}"
        self.goodput = goodput(args.goodput)
        self.metrics = [name.strip() for name in args.percentile_metrics.split(",") if name.strip()]
        for name in self.metrics:
            if name not in METRICS:
                raise WorkloadError(f"--percentile-metrics knows {', '.join(METRICS)}, not {name!r}")
        self.percentiles = [_number(text, "--metric-percentiles") for text in args.metric_percentiles.split(",")]
        if any(not 0 <= value <= 100 for value in self.percentiles):
            raise WorkloadError(f"--metric-percentiles must lie between 0 and 100, got {args.metric_percentiles}")
        self.extra = extra_body(args.extra_body)
        if args.ignore_eos:
            self.extra["ignore_eos"] = True


async def _measure(args: argparse.Namespace, checked: Checked, workload: Workload) -> RunResult:
    model = args.model or await _only_model(checked)
    return await run_workload(
        checked.base_url,
        workload,
        model=model,
        concurrency=args.max_concurrency,
        in_flight=args.max_in_flight,
        request_rate=args.request_rate,
        burstiness=args.burstiness,
        stream=not args.no_stream,
        progress=None if args.no_progress else ProgressBar(workload.name),
        timeout_s=args.timeout,
        headers=checked.headers,
        session_header=args.session_header,
        extra_body=checked.extra,
        replica_header=args.replica_header,
        replicas=args.replicas,
        engine_metrics=args.engine_metrics_url,
        goodput=checked.goodput,
        seed=args.seed,
    )


async def _only_model(checked: Checked) -> str:
    models = await served_models(checked.base_url, checked.headers)
    if len(models) != 1:
        found = ", ".join(models[:8]) if models else "none"
        raise WorkloadError(f"{checked.base_url} serves {len(models)} models ({found}); choose one with --model")
    return models[0]


def _write(args: argparse.Namespace, checked: Checked, result: RunResult) -> int:
    sys.stdout.write(text_report(result, checked.metrics, checked.percentiles) + "\n")
    date = datetime.now(UTC)
    try:
        if args.save_result or args.save_detailed or args.result_filename:
            path = Path(args.result_filename or f"loadtest-{result.workload}-{date:%Y%m%d-%H%M%S}.json")
            data = json_result(result, date, checked.metrics, checked.percentiles, detailed=args.save_detailed)
            path.write_text(json.dumps(finite(data), indent=1, allow_nan=False) + "\n")
            sys.stdout.write(f"JSON result: {path}\n")
        if args.html:
            page = html_report(result, date, checked.metrics, checked.percentiles)
            Path(args.html).write_text(page, encoding="utf-8")
            sys.stdout.write(f"HTML report: {args.html}\n")
    except OSError as error:
        return _say(f"prefix-router loadtest: cannot write {error.filename}: {error.strerror}", 1)
    if not result.summary.completed:
        detail = next((record.detail for record in result.records if record.detail), "")
        return _say(f"prefix-router loadtest: no request succeeded; the first said: {detail}", 1)
    return 0


def goodput(objectives: list[str]) -> dict[str, float]:
    """["ttft:200", "e2el:5000"] (milliseconds) -> seconds by metric."""
    limits = {}
    for text in objectives:
        name, value = _split(text, ":", "--goodput", "METRIC:MS, as ttft:200")
        if name not in SLO_METRICS:
            raise WorkloadError(f"--goodput knows {', '.join(SLO_METRICS)}, not {name!r}")
        limits[name] = _number(value, "--goodput") / 1000
    return limits


def extra_body(text: str | None) -> dict[str, Any]:
    try:
        extra = json.loads(text or "{}")
    except ValueError as error:
        raise WorkloadError(f"--extra-body is not JSON: {error}") from None
    if not isinstance(extra, dict):
        raise WorkloadError("--extra-body must be a JSON object, as '{\"temperature\": 0}'")
    return extra


def finite(value: Any) -> Any:
    """JSON has no infinity: written as text (`--request-rate inf`)."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _split(text: str, mark: str, flag: str, shape: str) -> tuple[str, str]:
    name, found, value = text.partition(mark)
    if not found or not name.strip() or not value.strip():
        raise WorkloadError(f"{flag} takes {shape}, got {text!r}")
    return name.strip(), value.strip()


def _number(text: str, flag: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise WorkloadError(f"{flag} takes numbers, got {text!r}") from None
    if not value >= 0:
        raise WorkloadError(f"{flag} takes numbers of at least 0, got {text!r}")
    return value


def _say(text: str, code: int) -> int:
    sys.stderr.write(text + "\n")
    return code
