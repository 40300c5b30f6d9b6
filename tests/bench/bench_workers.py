"""Cache hit rate of agents' traffic through one worker and through several: what is lost where steps change workers.

The shipped agent sessions against four simulated replicas, as `prefix-router demo` sends them; the router is a process
(or a supervisor and its workers) of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.router_process import router_process

from loadtest.run import run_workload
from loadtest.types import Workload
from loadtest.workloads import shipped_sessions
from replica.simulator.fleet import SimulatedFleet
from replica.simulator.timing import time_model


async def run(workers: int, workload: Workload, args: argparse.Namespace) -> str:
    timing = time_model("8b-h100")
    async with SimulatedFleet(args.replicas, model="sim", kv_blocks=args.kv_blocks, timing=timing) as fleet:
        replicas = [{"url": url} for url in fleet.urls]
        with tempfile.TemporaryDirectory() as folder:
            async with router_process(Path(folder), {"workers": workers, "replicas": replicas}) as router:
                async with aiohttp.ClientSession() as client:
                    await router.up(client, args.replicas)
                result = await run_workload(
                    router.url, workload, model="sim", concurrency=args.agents, replicas=args.replicas
                )
        summary, counters = result.summary, [replica.counters for replica in fleet]
        prompt, prefilled = (sum(getattr(each, name) for each in counters) for name in ("queried", "prefilled"))
        times = summary.ttft
        assert times is not None
        return (
            f"workers {workers}: {summary.requests} requests, {summary.errors} errors, hit rate "
            f"{1 - prefilled / prompt:6.1%}, TTFT p50 {times.percentile(50) * 1000:5.0f} ms, "
            f"p90 {times.percentile(90) * 1000:5.0f} ms, requests per replica "
            + "/".join(str(each.finished_requests) for each in counters)
        )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--agents", type=int, default=12)
    parser.add_argument("--sessions", type=int, default=24)
    parser.add_argument("--kv-blocks", type=int, default=4096)
    args = parser.parse_args()
    workload = shipped_sessions(limit=args.sessions)
    for workers in args.workers:
        print(await run(workers, workload, args), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
