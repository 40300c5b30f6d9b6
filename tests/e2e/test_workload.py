"""On eight replicas prefix-aware routing prefills far less than round robin, and answers sooner."""

from __future__ import annotations

import asyncio

from e2e.conftest import Build

from loadtest.run import run_workload
from loadtest.workloads import agents
from replica.simulator.scheduler import Counters
from replica.simulator.timing import time_model


async def test_prefix_prefills_at_most_40_percent_of_round_robin_and_answers_sooner(build: Build) -> None:
    # 32 agents in 4 groups that share a system prompt each, 8 steps of 300 tokens.
    workload = agents(sessions=32, steps=8, groups=4, system_tokens=1500, output_tokens=8, think_s=0.05, seed=3)

    async def run(policy: str) -> Counters:
        """What the fleet did."""
        # A 70B model at half speed: simulated prefills are long against this machine's own noise.
        system = await build(
            replicas=8,
            simulator={"kv_blocks": 8192, "timing": time_model("70b-fp8-2xh100", 2.0)},
            settings={"routing.policy": policy},
        )
        result = await run_workload(system.url, workload, model="sim", concurrency=16)
        assert result.summary.errors == 0
        await system.idle()
        return system.fleet.total()

    # At the same time: what else this machine does slows down both.
    blind, aware = await asyncio.gather(run("round_robin"), run("prefix"))
    assert aware.prefilled <= 0.4 * blind.prefilled
    assert aware.prefill_busy_s <= 0.4 * blind.prefill_busy_s
    # The tail is the cold start of 16 agents at once, under any policy; tests/replay asserts on tails, in virtual time.
    # Mean time to the first token as the engines tell it: without what this machine takes for router and client.
    assert aware.ttft_sum_s / aware.ttft_count < 0.7 * blind.ttft_sum_s / blind.ttft_count
