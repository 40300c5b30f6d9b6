"""Compare routers and policies on the same fleet and the same requests, in one run: tables, an HTML page, JSON.

Without --replica the fleet is simulated, new for every run, and nothing needs a GPU. Peers are installed by pip into
environments of their own when they are first asked for; what cannot be had is skipped, and said so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from loadtest.command import finite, goodput
from loadtest.compare.contenders import DEFAULT, Contender, contenders
from loadtest.compare.fleet import Hardware
from loadtest.compare.outcome import outcome
from loadtest.compare.page import page
from loadtest.compare.routers import Launcher
from loadtest.compare.runs import Comparison, Settings
from loadtest.compare.scenarios import SCENARIOS, Scenario, scenario
from loadtest.compare.table import Report, json_report, markdown, text
from loadtest.types import WorkloadError
from replica.simulator.timing import TIME_MODELS

EXAMPLES = f"""scenarios: {", ".join(SCENARIOS)}

routers: ROUTER[:POLICY][,SETTING=VALUE...]
  prefix, round_robin, least_load, session     prefix-router under that policy; settings become --set
  config:FILE                                  prefix-router with that configuration
  nginx:round_robin|least_conn|session         nginx; session hashes the header x-session-id
  sglang-router:POLICY, smg:POLICY, vllm-router:POLICY   settings become the peer's flags

examples:
  all routers, agents with a shared system prompt (some minutes):
    prefix-router loadtest compare --html compare.html
  our policies under cache pressure:
    prefix-router loadtest compare --scenario pressure --routers prefix round_robin least_load session
  one setting against another:
    prefix-router loadtest compare --routers prefix prefix,routing.decode_cost_tokens=256
  tighter balance thresholds of a peer:
    prefix-router loadtest compare --routers prefix sglang-router:cache_aware,balance-abs-threshold=8
  real engines (their prefix caches are emptied before each run):
    prefix-router loadtest compare --replica http://10.0.0.7:8000 --replica http://10.0.0.8:8000 \\
      --model-files Qwen/Qwen3-8B --scenario sessions"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    what = parser.add_argument_group("what")
    what.add_argument("--scenario", nargs="+", default=["agents"], metavar="NAME", help="or all (default agents)")
    what.add_argument("--routers", nargs="+", default=list(DEFAULT), metavar="SPEC", help="default: ours and all peers")
    what.add_argument("--repeats", type=int, default=2, metavar="N", help="of every router (default 2)")
    what.add_argument("--goodput", nargs="+", metavar="METRIC:MS", help="as ttft:200 tpot:50 (default: the scenario's)")
    what.add_argument("--seed", type=int, default=0, help="of prompts, order and arrivals (default 0)")
    fleet = parser.add_argument_group("fleet")
    fleet.add_argument("--replicas", type=int, default=4, metavar="N", help="simulated replicas (default 4)")
    fleet.add_argument(
        "--time-model",
        choices=sorted(TIME_MODELS),
        default="70b-4xh100",
        help="simulated hardware (default %(default)s)",
    )
    fleet.add_argument("--time-scale", type=float, default=1.0, metavar="X", help="stretches all times (default 1)")
    fleet.add_argument(
        "--replica", action="append", default=[], metavar="URL", help="a running engine; repeat for each"
    )
    fleet.add_argument("--model-files", metavar="DIR_OR_HUB_ID", help="of --replica: tokenizer and chat template")
    fleet.add_argument("--timeout", type=float, default=120.0, metavar="S", help="per request (default 120)")
    report = parser.add_argument_group("report")
    report.add_argument("--html", metavar="FILE", help="write a self-contained HTML page")
    report.add_argument("--json", metavar="FILE", help="write everything as JSON")
    report.add_argument("--markdown", metavar="FILE", help="write the tables as Markdown")
    report.add_argument(
        "--cache", default=".cache/peers", metavar="DIR", help="where peers are installed (default %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if nothing could be compared; 2 for bad flags."""
    try:
        settings, wanted, chosen = checked(args)
    except WorkloadError as error:
        return _fail(str(error), 2)
    launcher = Launcher(Path(args.cache).resolve(), _say)
    usable = launcher.prepare(chosen)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            report = runner.run(_compare(settings, wanted, usable, launcher))
    except WorkloadError as error:
        return _fail(str(error), 2)
    except (ConnectionError, TimeoutError) as error:
        return _fail(str(error) or "a process did not start in time", 1)
    sys.stdout.write(text(report) + "\n")
    try:
        for path, content in (
            (args.html, page(report)),
            (args.markdown, markdown(report)),
            (args.json, json.dumps(finite(json_report(report)), indent=1, allow_nan=False) + "\n"),
        ):
            if path:
                Path(path).write_text(content, encoding="utf-8")
                sys.stdout.write(f"written: {path}\n")
    except OSError as error:
        return _fail(f"cannot write {error.filename}: {error.strerror}", 1)
    return 0 if any(result.rows for result in report.outcomes) else 1


def checked(args: argparse.Namespace) -> tuple[Settings, list[Scenario], list[Contender]]:
    """Raises WorkloadError that names the flag."""
    for name in ("repeats", "replicas", "time_scale", "timeout"):
        if not getattr(args, name) > 0:
            raise WorkloadError(f"--{name.replace('_', '-')} must be above 0, got {getattr(args, name):g}")
    for url in args.replica:
        if not url.startswith(("http://", "https://")):
            raise WorkloadError(f"--replica must start with http:// or https://, got {url!r}")
    names = list(SCENARIOS) if args.scenario == ["all"] else args.scenario
    wanted = [scenario(name, args.seed) for name in names]
    if args.replica:
        for each in wanted:
            if each.pressure is not None or each.slow:
                raise WorkloadError(f"--scenario {each.name} needs simulated replicas: it sets their cache and speed")
    hardware = Hardware(args.replicas, args.time_model, args.time_scale)
    settings = Settings(hardware, args.replica, args.model_files, args.repeats, args.timeout, args.seed)
    limits = goodput(args.goodput) if args.goodput else None
    prepared = []
    for each in wanted:
        ready = each if args.replica else each.prepared(args.time_scale)
        prepared.append(ready if limits is None else ready.with_goodput(limits))
    return settings, prepared, contenders(args.routers)


async def _compare(
    settings: Settings, wanted: Sequence[Scenario], usable: Sequence[Contender], launcher: Launcher
) -> Report:
    comparison = Comparison(settings, launcher, _say)
    outcomes = [outcome(each, await comparison.run(each, usable)) for each in wanted]
    return Report(
        date=datetime.now(UTC),
        command=shlex.join(["prefix-router", *sys.argv[1:]]),
        settings=settings,
        outcomes=outcomes,
        versions=launcher.versions,
        skipped={**launcher.skipped, **comparison.failed},
    )


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"prefix-router loadtest compare: {message}\n")
    return code
