"""Synthetic workloads: seeded, made of common words, so that one word is about one token in most vocabularies.

The token counts given here are therefore approximate; the report uses what the engine counted.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from loadtest.prompts import ChatPrompt, Message, TextPrompt, words
from loadtest.types import CHAT, Session, Step, Workload, WorkloadError


def agents(
    *,
    sessions: int = 40,
    steps: int = 5,
    initial_tokens: int = 200,
    step_tokens: int = 300,
    groups: int = 1,
    system_tokens: int = 0,
    think_s: float = 0.0,
    long_share: float = 0.0,
    long_steps: int = 20,
    output_tokens: int = 64,
    seed: int = 0,
) -> Workload:
    """Agents whose prompt grows with every step.

    Step k has `system_tokens + initial_tokens + (k - 1) * step_tokens` tokens: with the defaults 200, 500, ..., 1400,
    together 4,000, of which a perfect cache computes 1,400. The first `system_tokens` are the same for all sessions of
    a group (sessions are dealt to `groups` in turn). `long_share` of the sessions, drawn at random, have `long_steps`
    steps. Think times are exponential with mean `think_s`.
    """
    at_least(1, sessions=sessions, steps=steps, groups=groups, long_steps=long_steps, output_tokens=output_tokens)
    at_least(0, initial_tokens=initial_tokens, step_tokens=step_tokens, system_tokens=system_tokens, think_s=think_s)
    share("long_share", long_share)
    source = random.Random(seed)
    made = []
    for number in range(sessions):
        count = long_steps if source.random() < long_share else steps
        messages = _agent_messages(seed, number, number % groups, count, initial_tokens, step_tokens, system_tokens)
        first = 2 if system_tokens else 1
        made.append(
            Session(
                f"agent-{number}",
                [
                    Step(
                        ChatPrompt(messages, first + 2 * k),
                        output_tokens,
                        think_s=source.expovariate(1 / think_s) if k and think_s else 0.0,
                    )
                    for k in range(count)
                ],
            )
        )
    settings = {
        "sessions": sessions,
        "steps": steps,
        "initial_tokens": initial_tokens,
        "step_tokens": step_tokens,
        "groups": groups,
        "system_tokens": system_tokens,
        "think_s": think_s,
        "long_share": long_share,
        "long_steps": long_steps,
        "output_tokens": output_tokens,
        "seed": seed,
    }
    return Workload("agents", made, settings)


def shared_prefix(
    *,
    groups: int = 8,
    requests_per_group: int = 16,
    prefix_tokens: int = 2048,
    question_tokens: int = 128,
    output_tokens: int = 64,
    endpoint: str = CHAT,
    seed: int = 0,
) -> Workload:
    """Single requests; those of a group share a prefix of `prefix_tokens`. Groups are interleaved at random."""
    at_least(1, groups=groups, requests_per_group=requests_per_group, output_tokens=output_tokens)
    at_least(0, prefix_tokens=prefix_tokens, question_tokens=question_tokens)
    order = [(group, number) for number in range(requests_per_group) for group in range(groups)]
    random.Random(seed).shuffle(order)
    made = []
    for group, number in order:
        text = words(f"{seed}/prefix/{group}", prefix_tokens) + words(f"{seed}/{group}/{number}", question_tokens)
        made.append(single(f"group-{group}-{number}", text, output_tokens, endpoint))
    settings = {
        "groups": groups,
        "requests_per_group": requests_per_group,
        "prefix_tokens": prefix_tokens,
        "question_tokens": question_tokens,
        "output_tokens": output_tokens,
        "seed": seed,
    }
    return Workload("shared-prefix", made, settings)


def prefix_light(
    *, requests: int = 200, tokens: int = 300, output_tokens: int = 64, endpoint: str = CHAT, seed: int = 0
) -> Workload:
    """Single requests that share nothing; lengths are drawn from an exponential with mean `tokens`."""
    at_least(1, requests=requests, tokens=tokens, output_tokens=output_tokens)
    source = random.Random(seed)
    made = [
        single(
            f"light-{number}",
            words(f"{seed}/light/{number}", 8 + int(source.expovariate(1 / tokens))),
            output_tokens,
            endpoint,
        )
        for number in range(requests)
    ]
    return Workload("prefix-light", made, {"requests": requests, "tokens": tokens, "seed": seed})


def flash_crowd(
    *,
    requests: int = 400,
    rate: float = 10.0,
    crowd_start_s: float = 10.0,
    crowd_share: float = 0.7,
    crowd_tokens: int = 5000,
    question_tokens: int = 100,
    output_tokens: int = 64,
    endpoint: str = CHAT,
    seed: int = 0,
) -> Workload:
    """Requests at `rate` a second, Poisson; from `crowd_start_s` on, `crowd_share` of them share a new prefix.

    The prefix has `crowd_tokens`; the other requests have 500 private tokens. Times are part of the workload.
    """
    at_least(1, requests=requests, crowd_tokens=crowd_tokens, output_tokens=output_tokens)
    at_least(0, crowd_start_s=crowd_start_s, question_tokens=question_tokens)
    share("crowd_share", crowd_share)
    if rate <= 0:
        raise WorkloadError(f"rate must be above 0 requests a second, got {rate}")
    source = random.Random(seed)
    crowd = words(f"{seed}/crowd", crowd_tokens)
    now = 0.0
    made = []
    for number in range(requests):
        now += source.expovariate(rate)
        hot = now >= crowd_start_s and source.random() < crowd_share
        text = crowd + words(f"{seed}/ask/{number}", question_tokens) if hot else words(f"{seed}/other/{number}", 500)
        made.append(single(f"{'crowd' if hot else 'other'}-{number}", text, output_tokens, endpoint, now))
    settings = {
        "requests": requests,
        "rate": rate,
        "crowd_start_s": crowd_start_s,
        "crowd_share": crowd_share,
        "crowd_tokens": crowd_tokens,
        "seed": seed,
    }
    return Workload("flash-crowd", made, settings)


def mix(name: str, parts: Sequence[Workload], seed: int = 0) -> Workload:
    """All sessions of several workloads in one random order; session names get the part's name in front."""
    made = [
        Session(f"{part.name}/{session.id}", session.steps, session.start_s)
        for part in parts
        for session in part.sessions
    ]
    random.Random(seed).shuffle(made)
    return Workload(name, made, {"parts": [part.name for part in parts], "seed": seed})


def single(name: str, text: str, output_tokens: int, endpoint: str, start_s: float | None = None) -> Session:
    """A session of one request."""
    return Session(name, [Step(TextPrompt(text, endpoint), output_tokens)], start_s)


def at_least(least: int, **values: float) -> None:
    for name, value in values.items():
        if value < least:
            raise WorkloadError(f"{name} must be at least {least}, got {value}")


def share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise WorkloadError(f"{name} must be between 0 and 1, got {value}")


def _agent_messages(
    seed: int, number: int, group: int, steps: int, initial_tokens: int, step_tokens: int, system_tokens: int
) -> list[Message]:
    """Half of a step's new tokens are the agent's answer to the step before, half what came back from its tool."""
    name = f"{seed}/agent/{number}"
    messages: list[Message] = []
    if system_tokens:
        messages.append({"role": "system", "content": words(f"{seed}/system/{group}", system_tokens)})
    messages.append({"role": "user", "content": words(f"{name}/task", initial_tokens)})
    for k in range(1, steps):
        messages.append({"role": "assistant", "content": words(f"{name}/answer/{k}", step_tokens // 2)})
        messages.append({"role": "user", "content": words(f"{name}/result/{k}", step_tokens - step_tokens // 2)})
    return messages
