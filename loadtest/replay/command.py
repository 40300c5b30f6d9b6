"""What would another policy, another setting or a fleet of another size have done? In virtual time, no GPU, no network.

Requests come from a recorded trace or are made up by name; the fleet is simulated (caches exact, times by a model of
the hardware); what decides is the router's own routing code. Times are the model's: compare policies and sizes, and
don't read them as promises.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from loadtest.command import goodput
from loadtest.replay.engine import Replay, Settings
from loadtest.replay.generate import WORKLOADS
from loadtest.replay.peers import PEERS
from loadtest.replay.result import as_json, table
from loadtest.replay.trace import load_trace
from loadtest.replay.workload import Workload, ideal
from loadtest.types import WorkloadError
from replica.simulator.timing import TIME_MODELS, time_model
from router.routing.cost import Weights
from router.routing.policies import POLICIES, Prefix
from router.routing.types import Policy

EXAMPLES = f"""workloads: {", ".join(WORKLOADS)}

policies: {", ".join(POLICIES)}; or prefix,KNOB=VALUE... with the knobs recompute, decode_tokens, affinity_tokens
models of other routers' published formulas: {", ".join(PEERS)}

examples:
  all policies on agents with shared system prompts, 8 and 64 replicas:
    prefix-router loadtest replay --workload agents --replicas 8 64
  your own traffic, from the access log (log.access: true, log.blocks: true), on half the fleet:
    prefix-router loadtest replay --trace router.log --replicas 8 4 --kv-tokens 400000
  a Mooncake trace, four times as fast:
    prefix-router loadtest replay --trace trace.jsonl --speedup 4 --time-model 70b-4xh100
  a million requests on 64 replicas (coarser blocks are faster):
    prefix-router loadtest replay --requests 1000000 --replicas 64 --block-size 64 --policies prefix
  other routers' formulas on the same requests:
    prefix-router loadtest replay --workload all --policies prefix sglang-model llm-d-model dynamo-model
  one knob:
    prefix-router loadtest replay --workload pressure --policies prefix prefix,recompute=4"""

KNOBS = ("recompute", "decode_tokens", "affinity_tokens")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.epilog = EXAMPLES
    what = parser.add_argument_group("what")
    what.add_argument("--trace", nargs="+", default=[], metavar="FILE", help="recorded requests (JSON lines)")
    what.add_argument("--workload", nargs="+", default=[], metavar="NAME", help="made up; or all (default agents)")
    what.add_argument("--requests", type=int, default=4000, metavar="N", help="of a made-up workload (default 4000)")
    what.add_argument("--speedup", type=float, default=1.0, metavar="X", help="of a trace's arrivals (default 1)")
    what.add_argument(
        "--block-size", type=int, metavar="N", help="tokens a block: of a trace (default 512 or 16), or made up (16)"
    )
    what.add_argument("--seed", type=int, default=0, help="of made-up workloads (default 0)")
    fleet = parser.add_argument_group("fleet")
    fleet.add_argument("--replicas", nargs="+", type=int, default=[8], metavar="N", help="fleet sizes (default 8)")
    fleet.add_argument("--kv-tokens", type=int, metavar="N", help="KV cache of a replica (default 400000)")
    fleet.add_argument("--time-model", choices=sorted(TIME_MODELS), default="8b-h100", help="default %(default)s")
    fleet.add_argument("--slow", action="append", default=[], metavar="N:X", help="replica N takes X times as long")
    how = parser.add_argument_group("policies and report")
    how.add_argument(
        "--policies", nargs="+", default=list(POLICIES), metavar="SPEC", help="default: all of the router's own"
    )
    how.add_argument("--goodput", nargs="+", default=["ttft:500", "tpot:50"], metavar="METRIC:MS", help="objectives")
    how.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    how.add_argument("--check", type=float, metavar="SHARE", help="exit 1 if prefix reaches less of the ideal hit rate")


def policy(spec: str) -> Policy:
    """`prefix`, `round_robin`, or `prefix,recompute=3`. Raises WorkloadError."""
    name, *knobs = spec.split(",")
    known = {**POLICIES, **PEERS}
    if name not in known:
        raise WorkloadError(f"--policies: {name!r} is unknown; one of {', '.join(known)}")
    if not knobs:
        return known[name]()
    given: dict[str, float] = {}
    for knob in knobs:
        key, _, text = knob.partition("=")
        if name != Prefix.name or key not in KNOBS:
            raise WorkloadError(f"--policies {spec}: only prefix has knobs, and they are {', '.join(KNOBS)}")
        try:
            given[key] = float(text)
        except ValueError:
            raise WorkloadError(f"--policies {spec}: {key} must be a number, got {text!r}") from None
    return Prefix(Weights(**given))


def run(args: argparse.Namespace) -> int:
    """Replay; returns the exit status."""
    try:
        return _run(args)
    except WorkloadError as error:
        sys.stderr.write(f"prefix-router loadtest replay: {error}\n")
        return 2
    except ValueError as error:
        sys.stderr.write(f"prefix-router loadtest replay: {error}\n")
        return 2


def _run(args: argparse.Namespace) -> int:
    limits = goodput(args.goodput)
    for spec in args.policies:
        policy(spec)
    slow = dict(_slow(text) for text in args.slow)
    reached: list[float] = []
    everything = []
    for replicas in args.replicas:
        for workload in _workloads(args, replicas):
            settings = Settings(
                replicas=replicas,
                kv_blocks=args.kv_tokens // workload.block
                if args.kv_tokens
                else workload.kv_blocks or 400_000 // workload.block,
                timing=time_model(args.time_model),
                slow=slow or workload.slow,
            )
            best = ideal(workload, settings.kv_blocks * replicas)
            rows = []
            for spec in args.policies:
                began = monotonic()
                done = Replay(workload, policy(spec), settings).run(_progress(workload, spec))
                _clear()
                row = as_json(done, best, limits)
                rows.append((spec, row))
                everything.append(
                    {
                        "workload": workload.name,
                        "replicas": replicas,
                        "policy": spec,
                        "wall_s": monotonic() - began,
                        **row,
                    }
                )
                if spec == Prefix.name and best.pooled:
                    reached.append(done.hit_rate / best.pooled)
            title = f"{workload.name}, {workload.requests:,} requests, {replicas} replicas"
            sys.stdout.write(table(title, rows) + "\n\n")
            sys.stdout.flush()
    if args.json is not None:
        args.json.write_text(json.dumps(everything, indent=1))
    if args.check is not None and min(reached, default=0.0) < args.check:
        sys.stderr.write(f"prefix reached {min(reached, default=0.0):.1%} of the ideal, not {args.check:.1%}\n")
        return 1
    return 0


def _workloads(args: argparse.Namespace, replicas: int) -> list[Workload]:
    made = [load_trace(path, block_size=args.block_size, speedup=args.speedup) for path in args.trace]
    names = args.workload or ([] if args.trace else ["agents"])
    if names == ["all"]:
        names = list(WORKLOADS)
    for name in names:
        if name not in WORKLOADS:
            raise WorkloadError(f"--workload: {name!r} is unknown; one of {', '.join(WORKLOADS)}")
        made.append(WORKLOADS[name](replicas, args.requests, seed=args.seed, block=args.block_size or 16))
    return made


def _slow(text: str) -> tuple[int, float]:
    number, _, factor = text.partition(":")
    try:
        return int(number), float(factor)
    except ValueError:
        raise WorkloadError(f"--slow takes N:X, as 0:3, got {text!r}") from None


def _progress(workload: Workload, spec: str) -> Callable[[int], None] | None:
    if not sys.stderr.isatty():
        return None

    def tell(requests: int) -> None:
        sys.stderr.write(f"\r{workload.name}, {spec}: {requests:,} of {workload.requests:,} requests ")
        sys.stderr.flush()

    return tell


def _clear() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
