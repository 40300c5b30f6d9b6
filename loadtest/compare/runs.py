"""The runs of a comparison: every contender on the same requests, in turn, the order rotated from repeat to repeat."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from loadtest.compare.contenders import Contender
from loadtest.compare.fleet import Fleet, Hardware, given, simulated
from loadtest.compare.oracle import Sent, reachable_hit_rate
from loadtest.compare.routers import SESSION_HEADER, Launcher
from loadtest.compare.scenarios import Scenario
from loadtest.processes import StartError, cpu_seconds, rss_bytes
from loadtest.run import RunResult, run_workload


@dataclass(frozen=True, slots=True)
class Run:
    """One contender's run. CPU in seconds of user + system time; fleet_cpu_s None for engines that were given.

    oracle: hit rate of an all-seeing router for the same requests in the same order; None where nothing is evicted.
    """

    contender: Contender
    repeat: int
    result: RunResult
    router_cpu_s: float
    router_rss: int
    fleet_cpu_s: float | None
    client_cpu_s: float
    load_average: float
    oracle: float | None

    @property
    def possible(self) -> float | None:
        """The best hit rate these requests could have had: the oracle's where caches are too small, else the ideal."""
        return self.result.summary.ideal_hit_rate if self.oracle is None else self.oracle


@dataclass(frozen=True, slots=True)
class Settings:
    """replicas: addresses of running engines; empty: simulated ones on `hardware`."""

    hardware: Hardware
    replicas: Sequence[str] = ()
    model_files: str | None = None
    repeats: int = 2
    timeout_s: float = 120.0
    seed: int = 0


class Comparison:
    """`run` yields the results of one scenario; contenders that do not start are noted in `failed`, with the reason."""

    def __init__(self, settings: Settings, launcher: Launcher, say: Callable[[str], None]) -> None:
        self.failed: dict[str, str] = {}
        self._settings = settings
        self._launcher = launcher
        self._say = say

    async def run(self, scenario: Scenario, contenders: Sequence[Contender]) -> list[Run]:
        runs: list[Run] = []
        for repeat in range(self._settings.repeats):
            shift = repeat * len(contenders) // self._settings.repeats
            for each in [*contenders[shift:], *contenders[:shift]]:
                try:
                    run = await self._one(scenario, each, repeat)
                except StartError as error:
                    self.failed[each.label] = str(error)
                    self._say(f"FAILED: {error}")
                    continue
                runs.append(run)
                self._say(_line(scenario, run, self._settings.repeats))
        order = {each.label: place for place, each in enumerate(contenders)}
        return sorted(runs, key=lambda run: (order[run.contender.label], run.repeat))

    @contextlib.asynccontextmanager
    async def _fleet(self, scenario: Scenario) -> AsyncIterator[Fleet]:
        settings = self._settings
        if settings.replicas:
            context = given(settings.replicas, settings.model_files, None)
        else:
            context = simulated(settings.hardware, scenario.kv_blocks, scenario.slow)
        async with context as fleet:
            yield fleet

    async def _one(self, scenario: Scenario, each: Contender, repeat: int) -> Run:
        settings = self._settings
        async with self._fleet(scenario) as fleet, self._launcher.start(each, fleet) as router:
            router_cpu, fleet_cpu = cpu_seconds(router.pid), cpu_seconds(fleet.pid) if fleet.pid else None
            client_cpu = time.process_time()
            result = await run_workload(
                router.url,
                scenario.workload,
                model=fleet.model,
                in_flight=scenario.in_flight,
                request_rate=scenario.request_rate,
                timeout_s=settings.timeout_s,
                session_header=SESSION_HEADER if scenario.headers else None,
                replica_header=router.replica_header or "x-replica",
                replicas=len(fleet.urls),
                engine_metrics=fleet.urls,
                goodput=scenario.goodput,
                seed=settings.seed,
            )
            return Run(
                contender=each,
                repeat=repeat,
                result=result,
                router_cpu_s=cpu_seconds(router.pid) - router_cpu,
                router_rss=rss_bytes(router.pid),
                fleet_cpu_s=cpu_seconds(fleet.pid) - fleet_cpu if fleet.pid and fleet_cpu is not None else None,
                client_cpu_s=time.process_time() - client_cpu,
                load_average=os.getloadavg()[0],
                oracle=self._oracle(scenario, result),
            )

    def _oracle(self, scenario: Scenario, result: RunResult) -> float | None:
        if scenario.pressure is None or self._settings.replicas:
            return None
        steps = {session.id: session.steps for session in scenario.workload.sessions}
        answered = [(r.session, steps[r.session][r.step - 1]) for r in result.records if r.ok]
        sent = [Sent(session, step.prompt.chain(), step.max_tokens) for session, step in answered]
        return reachable_hit_rate(sent, self._settings.hardware.replicas, scenario.kv_blocks)


def _line(scenario: Scenario, run: Run, repeats: int) -> str:
    summary = run.result.summary
    hit = "unknown" if summary.hit_rate is None else f"{summary.hit_rate:.1%}"
    ttft = "unknown" if summary.ttft is None else f"{summary.ttft.p50 * 1000:.0f}/{summary.ttft.p99 * 1000:.0f} ms"
    errors = f", {summary.errors} ERRORS {dict(summary.errors_by_kind)}" if summary.errors else ""
    return (
        f"{scenario.name} {run.repeat + 1}/{repeats} {run.contender.label}: hit rate {hit}, TTFT p50/p99 {ttft}, "
        f"{summary.duration_s:.1f} s{errors}"
    )
