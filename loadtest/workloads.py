"""Every workload by name, and the two sets of real text that are shipped.

| `--dataset` | what | `--dataset-path` |
|---|---|---|
| `agents` | synthetic agents: 200 tokens + 300 a step, 5 steps | - |
| `sessions` | recorded agent sessions, real text, replayed teacher-forced | shipped set by default |
| `hash-trace` | Mooncake or Bailian hash-id traces | required |
| `sharegpt` | ShareGPT conversations | required |
| `vllm-multi-turn` | conversations of vLLM's multi-turn benchmark | required |
| `shared-prefix` | single requests in groups that share a prefix | - |
| `prefix-light` | requests that share almost nothing | shipped set by default, `synthetic` for generated ones |
| `flash-crowd` | from some moment on, 70 % of the requests share a new 5,000-token prefix | - |
| `mixed` | recorded agent sessions and prefix-light requests in one run | - |
"""

from __future__ import annotations

import random
from importlib.resources import as_file, files

from loadtest.sessions import load_multi_turn, load_sessions, load_sharegpt
from loadtest.synthetic import agents, flash_crowd, mix, prefix_light, shared_prefix
from loadtest.traces import load_hash_trace
from loadtest.types import Session, Step, Workload, WorkloadError

__all__ = [
    "Session",
    "Step",
    "Workload",
    "WorkloadError",
    "agents",
    "flash_crowd",
    "load_hash_trace",
    "load_multi_turn",
    "load_sessions",
    "load_sharegpt",
    "mix",
    "mixed",
    "prefix_light",
    "shared_prefix",
    "shipped_prefix_light",
    "shipped_sessions",
]


def shipped_sessions(
    *, limit: int | None = None, max_tokens: int | None = None, recorded_times: bool = False, seed: int = 0
) -> Workload:
    """29 recorded agent sessions (279 steps: tau-bench, SWE-agent, ToolBench, mini-swe-agent), in seeded random order.

    limit: the first so many; max_tokens: output tokens per step, None asks for about as many as were recorded.
    """
    return _shipped("agent_sessions.jsonl.gz", "sessions", limit, max_tokens, recorded_times, seed)


def shipped_prefix_light(*, limit: int | None = None, max_tokens: int | None = None, seed: int = 0) -> Workload:
    """140 single questions and short dialogues (285 requests) that share almost nothing."""
    return _shipped("prefix_light.jsonl.gz", "prefix-light", limit, max_tokens, False, seed)


def mixed(*, max_tokens: int | None = None, seed: int = 0) -> Workload:
    """The shipped agent sessions (long prompts, much shared) among the shipped prefix-light requests."""
    heavy = shipped_sessions(max_tokens=max_tokens, seed=seed)
    return mix("mixed", [heavy, shipped_prefix_light(max_tokens=max_tokens, seed=seed)], seed)


def _shipped(
    name: str, workload: str, limit: int | None, max_tokens: int | None, recorded_times: bool, seed: int
) -> Workload:
    with as_file(files("loadtest") / "data" / name) as path:
        loaded = load_sessions(path, max_tokens=max_tokens, recorded_times=recorded_times)
    sessions = list(loaded.sessions)
    random.Random(seed).shuffle(sessions)
    return Workload(workload, sessions[:limit], {"file": f"shipped {name}", "seed": seed})
