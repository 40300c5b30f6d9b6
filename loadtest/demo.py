"""See prefix-aware routing at work: simulated replicas, the router, and agents replaying recorded sessions.

The same requests run twice, against a fresh fleet each time: first under round robin, then prefix-aware. Needs no
GPU, no Redis and no network.

examples:
  prefix-router demo
  prefix-router demo --replicas 8 --agents 24 --sessions 12
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import uvloop

from loadtest.processes import Child, StartError
from loadtest.progress import ProgressBar
from loadtest.run import RunResult, run_workload
from loadtest.types import Workload
from loadtest.workloads import shipped_sessions
from replica.simulator.config import MODEL_DIR
from replica.simulator.fleet import SimulatedFleet
from replica.simulator.timing import TIME_MODELS, time_model

MODEL = "sim"
POLICIES = ("round_robin", "prefix")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--replicas", type=int, default=4, help="simulated replicas (default 4)")
    parser.add_argument("--agents", type=int, default=12, help="agents at work at the same time (default 12)")
    parser.add_argument("--sessions", type=int, default=24, help="recorded sessions replayed, at most (default 24)")
    parser.add_argument("--kv-blocks", type=int, default=4096, help="blocks of 16 tokens per replica (default 4096)")
    parser.add_argument(
        "--time-model", choices=sorted(TIME_MODELS), default="8b-h100", help="simulated hardware (default 8b-h100)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo; returns the exit status."""
    try:
        return uvloop.run(_demo(args))
    except StartError as error:
        sys.stderr.write(f"prefix-router demo: {error}\n")
        return 1


@dataclass(slots=True)
class _Row:
    """One policy's run, as the engines and the clients saw it."""

    policy: str
    result: RunResult
    prefilled: int
    prompt: int
    spread: list[int]


async def _demo(args: argparse.Namespace) -> int:
    workload = shipped_sessions(limit=args.sessions)
    say = sys.stdout.write
    say(
        f"{args.replicas} simulated replicas ({args.time_model}, {args.kv_blocks} blocks of 16 tokens each), "
        f"{args.agents} agents, {len(workload.sessions)} recorded sessions, {workload.requests} requests\n"
    )
    rows = [await _run_policy(policy, workload, args) for policy in POLICIES]
    say("\n" + _table(rows) + "\n")
    say(_NEXT.format(files=MODEL_DIR.name))
    failed = sum(row.result.summary.errors for row in rows)
    if failed:
        sys.stderr.write(f"prefix-router demo: {failed} requests failed\n")
    return 1 if failed else 0


async def _run_policy(policy: str, workload: Workload, args: argparse.Namespace) -> _Row:
    timing = time_model(args.time_model)
    async with SimulatedFleet(args.replicas, model=MODEL, kv_blocks=args.kv_blocks, timing=timing) as fleet:
        async with _router(policy, fleet.urls) as url:
            result = await run_workload(
                url,
                workload,
                model=MODEL,
                concurrency=args.agents,
                replicas=args.replicas,
                progress=ProgressBar(f"{policy:>11}"),
            )
        counters = [replica.counters for replica in fleet]
        return _Row(
            policy,
            result,
            prefilled=sum(each.prefilled for each in counters),
            prompt=sum(each.queried for each in counters),
            spread=[each.finished_requests for each in counters],
        )


@contextlib.asynccontextmanager
async def _router(policy: str, urls: list[str]) -> AsyncIterator[str]:
    """The real router, in a process of its own; yields its address once it follows every replica's events."""
    argv = [sys.executable, "-m", "router.cli", "serve", *(f"--replica={url}" for url in urls), f"--policy={policy}"]
    argv += ["--port=0", "--admin-port=0", f"--model-files={MODEL_DIR}"]
    async with Child("the router", argv) as child:
        url = (await child.printed(r"listening on (\S+)"))[0]
        await child.answers(f"{url}/ready", '"status":"ready"')
        yield url


def _table(rows: list[_Row]) -> str:
    names = ["", *(row.policy for row in rows)]

    def ttft(row: _Row, percent: float) -> str:
        times = row.result.summary.ttft
        return "unknown" if times is None else f"{times.percentile(percent) * 1000:,.0f} ms"

    def share(value: float | None) -> str:
        return "unknown" if value is None else f"{value:.1%}"

    lines = [
        ["requests", *(f"{row.result.summary.requests:,}" for row in rows)],
        ["errors", *(f"{row.result.summary.errors:,}" for row in rows)],
        ["cache hit rate", *(share(row.result.summary.hit_rate) for row in rows)],
        ["prompt tokens", *(f"{row.prompt:,}" for row in rows)],
        ["prefill tokens computed", *(f"{row.prefilled:,}" for row in rows)],
        ["TTFT p50", *(ttft(row, 50) for row in rows)],
        ["TTFT p90", *(ttft(row, 90) for row in rows)],
        ["TTFT p99", *(ttft(row, 99) for row in rows)],
        ["requests per replica", *("/".join(str(count) for count in row.spread) for row in rows)],
    ]
    widths = [max(len(line[column]) for line in [names, *lines]) for column in range(len(names))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in [names, *lines]
    )


_NEXT = """
Try it yourself. In one terminal, simulated replicas; in another, the router:

  .venv/bin/prefix-router simulate --replicas 2 --port 8101
  .venv/bin/prefix-router serve --replica http://127.0.0.1:8101 --replica http://127.0.0.1:8102 \\
      --model-files replica/simulator/{files}

Then send a request, and read in the headers where it went and why:

  curl -i http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
      -d '{{"model": "sim", "messages": [{{"role": "user", "content": "Hello"}}]}}'

or with the openai package (pip install openai):

  from openai import OpenAI
  client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="unused")
  print(client.chat.completions.create(model="sim", messages=[{{"role": "user", "content": "Hello"}}]))
"""
