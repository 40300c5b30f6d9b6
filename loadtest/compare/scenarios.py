"""What is compared on: presets, sized for 4 simulated 70B replicas. Times stretch with the fleet's `time_scale`.

Rates are chosen so that a router that reuses everything keeps the fleet 30-50 % busy: below saturation, but too much
for one that recomputes. Engine steps take 15 ms and a prompt of 3,000 tokens 240 ms, so that the few milliseconds of
Python on both sides of a router do not decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from loadtest.compare.exact import distinct_blocks, largest_request, tokenized
from loadtest.types import Workload, WorkloadError
from loadtest.workloads import agents, flash_crowd, mix, prefix_light, shipped_sessions

PLENTY = 16_384
"""Blocks of a cache that no scenario but the pressed ones fills: 262,144 tokens."""
GOODPUT = {"ttft": 0.3, "tpot": 0.06}


@dataclass(frozen=True, slots=True)
class Scenario:
    """request_rate: sessions a second; None: the workload's own times. headers: whether clients send the session
    header. pressure: working set over one replica's cache; None: everything fits. slow: replica number -> factor.
    goodput: objectives in seconds."""

    name: str
    what: str
    workload: Workload
    request_rate: float | None = None
    in_flight: int | None = None
    headers: bool = True
    pressure: float | None = None
    slow: Mapping[int, float] = field(default_factory=dict)
    goodput: Mapping[str, float] = field(default_factory=lambda: dict(GOODPUT))

    @property
    def kv_blocks(self) -> int:
        """Of each simulated replica. Needs a workload with exact chains."""
        if self.pressure is None:
            return PLENTY
        return max(round(distinct_blocks(self.workload) / self.pressure), 2 * largest_request(self.workload))

    def with_goodput(self, limits: Mapping[str, float]) -> Scenario:
        return replace(self, goodput=limits)

    def prepared(self, time_scale: float) -> Scenario:
        """With exact chains, and all times (arrivals, pauses, objectives) stretched."""
        return replace(
            self,
            workload=tokenized(self.workload.faster(1 / time_scale)),
            request_rate=None if self.request_rate is None else self.request_rate / time_scale,
            goodput={name: limit * time_scale for name, limit in self.goodput.items()},
        )


def _agents(seed: int) -> Scenario:
    workload = agents(sessions=56, steps=5, groups=1, system_tokens=1500, think_s=0.3, output_tokens=16, seed=seed)
    return Scenario(
        "agents", "agents that share one system prompt, no headers", workload, request_rate=8, headers=False
    )


def _sessions(seed: int) -> Scenario:
    workload = shipped_sessions(max_tokens=16, seed=seed)
    return Scenario("sessions", "recorded agent sessions (real text), session header", workload, request_rate=4)


def _mixed(seed: int) -> Scenario:
    heavy = agents(sessions=28, steps=5, groups=2, system_tokens=2000, think_s=0.3, output_tokens=16, seed=seed)
    light = prefix_light(requests=140, tokens=300, output_tokens=16, seed=seed)
    workload = mix("mixed", [heavy, light], seed)
    return Scenario("mixed", "agents among prefix-light requests, session header", workload, request_rate=24)


def _flash(seed: int) -> Scenario:
    workload = flash_crowd(
        requests=300, rate=45, crowd_start_s=1.5, crowd_tokens=3500, question_tokens=300, output_tokens=16, seed=seed
    )
    what = "flash crowd: from 1.5 s on, 70 % of the requests share a new prefix of 5,000 tokens, no headers"
    return Scenario("flash", what, workload, headers=False)


def _pressure(seed: int) -> Scenario:
    workload = agents(sessions=40, steps=6, groups=4, system_tokens=500, think_s=0.8, output_tokens=16, seed=seed)
    what = "cache pressure: 40 agents whose blocks are 3 x one replica's cache, session header"
    return Scenario("pressure", what, workload, request_rate=20, pressure=3.0)


def _slow(seed: int) -> Scenario:
    workload = agents(sessions=40, steps=5, groups=2, system_tokens=1000, think_s=0.3, output_tokens=16, seed=seed)
    return Scenario("slow", "one replica 4 x slower, session header", workload, request_rate=6, slow={0: 4.0})


def _sequential(seed: int) -> Scenario:
    workload = agents(sessions=12, steps=8, groups=1, system_tokens=1000, output_tokens=4, seed=seed)
    what = "12 agents take turns, one request at a time; blocks are 2 x one replica's cache, no headers"
    return Scenario("sequential", what, workload, request_rate=1000, in_flight=1, headers=False, pressure=2.0)


SCENARIOS: Mapping[str, Callable[[int], Scenario]] = {
    "agents": _agents,
    "sessions": _sessions,
    "mixed": _mixed,
    "flash": _flash,
    "pressure": _pressure,
    "slow": _slow,
    "sequential": _sequential,
}


def scenario(name: str, seed: int = 0) -> Scenario:
    """A preset by name. Raises WorkloadError that lists the known ones."""
    if name not in SCENARIOS:
        raise WorkloadError(f"--scenario knows {', '.join(SCENARIOS)} and all, not {name!r}")
    return SCENARIOS[name](seed)
