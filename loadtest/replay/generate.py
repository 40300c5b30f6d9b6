"""Synthetic workloads by name, sized to a fleet: seeded, ids only."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from loadtest.replay.workload import Call, Session, Workload


class _Ids:
    """Gives out block ids nobody has."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, count: int) -> int:
        first = self._next
        self._next += count
        return first


def _agent(
    source: random.Random,
    ids: _Ids,
    block: int,
    start: float,
    head: range,
    *,
    steps: int,
    initial: int,
    grow: int,
    output: int,
    think_s: float,
    name: str | None = None,
    spacing_s: float = 0.0,
) -> Session:
    """A session whose prompt grows by the answer and about `grow` tokens of tool result a step. `head`: shared blocks.
    spacing_s: steps at fixed times instead of think times."""
    prompt = len(head) * block + max(1, int(source.expovariate(1 / initial)))
    calls = []
    for step in range(steps):
        think = source.expovariate(1 / think_s) if step and think_s else 0.0
        calls.append(Call(prompt, output, think, step * spacing_s))
        prompt += output + max(1, int(source.expovariate(1 / grow)))
    own = (calls[-1].prompt + output) // block - len(head)
    return Session(start, calls, head, ids.take(own), own, name)


def agents(
    replicas: int,
    requests: int,
    *,
    block: int = 16,
    seed: int = 0,
    rate: float = 6.0,
    named: bool = False,
    groups: int = 4,
    system_tokens: int = 3000,
    mean_steps: int = 10,
) -> Workload:
    """Agents in groups with a shared system prompt; `rate` requests a second and replica when all are under way."""
    source, ids = random.Random(seed), _Ids()
    size = system_tokens // block
    heads = [range(first, first + size) for first in (ids.take(size) for _ in range(groups))]
    made: list[Session] = []
    now, left = 0.0, requests
    while left > 0:
        now += source.expovariate(rate * replicas / mean_steps)
        steps = min(left, 1 + int(source.expovariate(1 / (mean_steps - 1))))
        left -= steps
        made.append(
            _agent(
                source,
                ids,
                block,
                now,
                source.choice(heads),
                steps=steps,
                initial=300,
                grow=300,
                output=120,
                think_s=2.0,
                name=f"s{len(made)}" if named else None,
            )
        )
    return Workload("agents-headers" if named else "agents", block, made)


def agents_headers(replicas: int, requests: int, *, block: int = 16, seed: int = 0) -> Workload:
    """`agents`, and clients send a session header."""
    return agents(replicas, requests, block=block, seed=seed, named=True)


def slow_replica(replicas: int, requests: int, *, block: int = 16, seed: int = 0) -> Workload:
    """`agents`, lighter, and replica 0 takes three times as long."""
    return replace(agents(replicas, requests, block=block, seed=seed, rate=4.0), name="slow-replica", slow={0: 3.0})


def _singles(source: random.Random, ids: _Ids, block: int, rate: float, count: int, tokens: int) -> list[Session]:
    made, now = [], 0.0
    for _ in range(count):
        now += source.expovariate(rate)
        prompt = 16 + int(source.expovariate(1 / tokens))
        own = (prompt + 120) // block
        made.append(Session(now, [Call(prompt, 120)], (), ids.take(own), own))
    return made


def mixed(replicas: int, requests: int, *, block: int = 16, seed: int = 0) -> Workload:
    """Half agents, half single requests of 300 tokens that share nothing."""
    heavy = agents(replicas, requests // 2, block=block, seed=seed, rate=4.0)
    source, ids = random.Random(seed + 1), _Ids()
    ids.take(1 << 40)
    light = _singles(source, ids, block, 4.0 * replicas, requests - requests // 2, 300)
    return Workload("mixed", block, sorted([*heavy.sessions, *light], key=lambda session: session.start_s))


def flash_crowd(replicas: int, requests: int, *, block: int = 16, seed: int = 0) -> Workload:
    """Single requests; after a third of them 70 % share a new 5,000-token prefix."""
    source, ids = random.Random(seed), _Ids()
    size = 5000 // block
    first = ids.take(size)
    crowd = range(first, first + size)
    made, now = [], 0.0
    for number in range(requests):
        now += source.expovariate(8.0 * replicas)
        head = crowd if number > requests / 3 and source.random() < 0.7 else range(0)
        made.append(_agent(source, ids, block, now, head, steps=1, initial=400, grow=1, output=100, think_s=0.0))
    return Workload("flash-crowd", block, made)


def shared_prompt(replicas: int, requests: int, *, block: int = 16, seed: int = 0) -> Workload:
    """Single requests, more than the fleet can answer in time, that share a system prompt of 20,000 tokens."""
    made = _answers(replicas, requests, block, seed, system=20_000, own=200, answer=150, rate=12.0)
    return Workload("shared-prompt", block, made)


def long_answers(replicas: int, requests: int, *, block: int = 16, seed: int = 0) -> Workload:
    """Single requests that share a system prompt of 6,000 tokens and get answers of 600 on average."""
    made = _answers(replicas, requests, block, seed, system=6_000, own=400, answer=600, rate=5.5)
    return Workload("long-answers", block, made)


def _answers(
    replicas: int, requests: int, block: int, seed: int, *, system: int, own: int, answer: int, rate: float
) -> list[Session]:
    """`own`, `answer`: mean tokens of a prompt's own part and of an answer; `rate`: requests a second and replica."""
    source, ids, now = random.Random(seed), _Ids(), 0.0
    first = ids.take(system // block)
    head, made = range(first, first + system // block), []
    for _ in range(requests):
        now += source.expovariate(rate * replicas)
        call = Call(system + 1 + int(source.expovariate(1 / own)), 1 + int(source.expovariate(1 / answer)))
        blocks = (call.prompt + call.output) // block - len(head)
        made.append(Session(now, [call], head, ids.take(blocks), blocks))
    return made


def pressure(replicas: int, requests: int, *, block: int = 16, seed: int = 0) -> Workload:
    """Long-lived agents that stay away longer: together three caches' worth of context, spread over the fleet."""
    source, ids = random.Random(seed), _Ids()
    heads = [range(first, first + 1000 // block) for first in (ids.take(1000 // block) for _ in range(4))]
    steps, kv_tokens = 16, 64_000
    live = max(2, round(3 * replicas / 8 * kv_tokens / 6000))
    made = [
        _agent(
            source,
            ids,
            block,
            source.uniform(0, 60) + 60 * (number // live),
            heads[number % 4],
            steps=steps,
            initial=500,
            grow=500,
            output=100,
            think_s=4.0,
        )
        for number in range(-(-requests // steps))
    ]
    made.sort(key=lambda session: session.start_s)
    return Workload("pressure", block, made, kv_blocks=kv_tokens // block)


def sequential(replicas: int, requests: int, *, block: int = 16, seed: int = 0) -> Workload:
    """One request at a time over the whole fleet, agents taking turns: no load in flight at any decision."""
    source, ids = random.Random(seed), _Ids()
    head = range(ids.take(2000 // block), 2000 // block)
    steps, gap, kv_tokens = 12, 2.5, 32_000
    # Odd: taking turns over an even number of replicas must not keep every agent on one replica by accident.
    count = max(1, min(requests // steps, 3 * kv_tokens // 4000) - 1) | 1
    made = []
    for wave in range(-(-requests // (steps * count))):
        for agent in range(count):
            start = (wave * count * steps + agent) * gap
            made.append(
                _agent(
                    source,
                    ids,
                    block,
                    start,
                    head,
                    steps=steps,
                    initial=300,
                    grow=300,
                    output=60,
                    think_s=0.0,
                    spacing_s=count * gap,
                )
            )
    return Workload("sequential", block, made, kv_blocks=kv_tokens // block)


def documents(replicas: int, requests: int, *, block: int = 16, seed: int = 0) -> Workload:
    """Questions about long documents, as in Mooncake's traces: 12,000 tokens on average and up to 100,000, half of them
    asked about once, answers of 1 to 1,500 tokens; nobody comes back, and prompts are nothing alike in size."""
    source, ids = random.Random(seed), _Ids()
    asked: list[tuple[float, range]] = []
    now = 0.0
    while len(asked) < requests:
        now += source.expovariate(0.25 * replicas)
        size = int(min(100_000, source.lognormvariate(9.0, 0.9))) // block
        first = ids.take(size)
        at = now
        for _ in range(1 + int(source.expovariate(1 / 1.4))):
            asked.append((at, range(first, first + size)))
            at += source.expovariate(1 / 60)
    made = []
    for at, document in sorted(asked, key=lambda one: one[0])[:requests]:
        output = 1 + int(min(1500, source.expovariate(1 / 200)))
        made.append(_agent(source, ids, block, at, document, steps=1, initial=100, grow=1, output=output, think_s=0.0))
    return Workload("documents", block, made, kv_blocks=1_000_000 // block)


WORKLOADS: dict[str, Callable[..., Workload]] = {
    "agents": agents,
    "agents-headers": agents_headers,
    "mixed": mixed,
    "flash-crowd": flash_crowd,
    "shared-prompt": shared_prompt,
    "long-answers": long_answers,
    "pressure": pressure,
    "slow-replica": slow_replica,
    "sequential": sequential,
    "documents": documents,
}
"""name -> f(replicas, requests, *, block=16, seed=0)."""
