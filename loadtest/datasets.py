"""`--dataset` and its options: which option belongs to which workload, and how the workload is made from them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loadtest.sessions import load_multi_turn, load_sessions, load_sharegpt
from loadtest.synthetic import agents, flash_crowd, prefix_light, shared_prefix
from loadtest.traces import load_hash_trace
from loadtest.types import CHAT, COMPLETIONS, Workload, WorkloadError
from loadtest.workloads import mixed, shipped_prefix_light, shipped_sessions

ENDPOINTS = (CHAT, COMPLETIONS)


@dataclass(frozen=True, slots=True)
class Option:
    """A flag of some datasets; `Dataset.options` says which keyword it becomes there."""

    flag: str
    kind: Callable[[str], Any]
    help: str

    @property
    def name(self) -> str:
        return self.flag.removeprefix("--").replace("-", "_")


OPTIONS = (
    Option("--steps", int, "agents: LLM calls of a session (default 5)"),
    Option("--initial-tokens", int, "agents: private tokens of the first prompt (default 200)"),
    Option("--step-tokens", int, "agents: tokens added by each step (default 300)"),
    Option("--groups", int, "agents: groups that share a system prompt (default 1); shared-prefix: groups (default 8)"),
    Option("--system-tokens", int, "agents: tokens of a group's shared system prompt (default 0)"),
    Option("--long-share", float, "agents: share of the sessions that are long (default 0)"),
    Option("--long-steps", int, "agents: steps of a long session (default 20)"),
    Option("--requests-per-group", int, "shared-prefix: requests of each group (default 16)"),
    Option("--prefix-tokens", int, "shared-prefix: tokens that a group shares (default 2048)"),
    Option("--question-tokens", int, "shared-prefix, flash-crowd: private tokens of a request (default 128, 100)"),
    Option("--crowd-rate", float, "flash-crowd: requests a second (default 10)"),
    Option("--crowd-start", float, "flash-crowd: seconds until the crowd comes (default 10)"),
    Option("--crowd-share", float, "flash-crowd: its share of the requests from then on (default 0.7)"),
    Option("--crowd-tokens", int, "flash-crowd: tokens of the new shared prefix (default 5000)"),
    Option("--block-size", int, "hash-trace: tokens per hash id in the file (default 512, or 16 if it has chat_id)"),
    Option("--tokens-per-block", int, "hash-trace: tokens to send per hash id; fewer make a cheaper replay"),
    Option("--token-ids", int, "hash-trace: send token ids below this vocabulary size instead of words"),
)


@dataclass(frozen=True, slots=True)
class Dataset:
    """make(path, keywords) -> workload. options: flag name -> keyword. path: "none", "optional" or "required"."""

    make: Callable[[str | None, Mapping[str, Any]], Workload]
    path: str
    options: Mapping[str, str]


def _file_or_shipped(path: str | None, keywords: Mapping[str, Any]) -> Workload:
    if path is None:
        return shipped_sessions(**keywords)
    return load_sessions(path, **{key: value for key, value in keywords.items() if key != "seed"})


def _light(path: str | None, keywords: Mapping[str, Any]) -> Workload:
    if path == "synthetic":
        names = {"max_tokens": "output_tokens", "limit": "requests"}
        return prefix_light(**{names.get(key, key): value for key, value in keywords.items()})
    if path is None:
        return shipped_prefix_light(**keywords)
    loaded = load_sessions(path, max_tokens=keywords.get("max_tokens"))
    return loaded.head(keywords["limit"]) if "limit" in keywords else loaded


DATASETS: Mapping[str, Dataset] = {
    "agents": Dataset(
        lambda _, keywords: agents(**keywords),
        "none",
        {
            "steps": "steps",
            "initial_tokens": "initial_tokens",
            "step_tokens": "step_tokens",
            "groups": "groups",
            "system_tokens": "system_tokens",
            "long_share": "long_share",
            "long_steps": "long_steps",
            "max_output_tokens": "output_tokens",
            "num_sessions": "sessions",
            "think_time": "think_s",
            "seed": "seed",
        },
    ),
    "sessions": Dataset(
        _file_or_shipped,
        "optional",
        {"max_output_tokens": "max_tokens", "recorded_times": "recorded_times", "seed": "seed"},
    ),
    "hash-trace": Dataset(
        lambda path, keywords: load_hash_trace(path or "", **keywords),
        "required",
        {
            "block_size": "block_size",
            "tokens_per_block": "tokens_per_block",
            "token_ids": "vocabulary",
            "max_output_tokens": "max_tokens",
            "endpoint": "endpoint",
            "seed": "seed",
        },
    ),
    "sharegpt": Dataset(
        lambda path, keywords: load_sharegpt(path or "", **keywords), "required", {"max_output_tokens": "max_tokens"}
    ),
    "vllm-multi-turn": Dataset(
        lambda path, keywords: load_multi_turn(path or "", **keywords), "required", {"max_output_tokens": "max_tokens"}
    ),
    "shared-prefix": Dataset(
        lambda _, keywords: shared_prefix(**keywords),
        "none",
        {
            "groups": "groups",
            "requests_per_group": "requests_per_group",
            "prefix_tokens": "prefix_tokens",
            "question_tokens": "question_tokens",
            "max_output_tokens": "output_tokens",
            "endpoint": "endpoint",
            "seed": "seed",
        },
    ),
    "prefix-light": Dataset(
        _light, "optional", {"max_output_tokens": "max_tokens", "num_sessions": "limit", "seed": "seed"}
    ),
    "flash-crowd": Dataset(
        lambda _, keywords: flash_crowd(**keywords),
        "none",
        {
            "num_sessions": "requests",
            "crowd_rate": "rate",
            "crowd_start": "crowd_start_s",
            "crowd_share": "crowd_share",
            "crowd_tokens": "crowd_tokens",
            "question_tokens": "question_tokens",
            "max_output_tokens": "output_tokens",
            "endpoint": "endpoint",
            "seed": "seed",
        },
    ),
    "mixed": Dataset(
        lambda _, keywords: mixed(**keywords), "none", {"max_output_tokens": "max_tokens", "seed": "seed"}
    ),
}

GENERAL = ("max_output_tokens", "recorded_times", "endpoint", "seed", "num_sessions", "think_time")


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("workload")
    group.add_argument(
        "--dataset", choices=sorted(DATASETS), default="sessions", help="what to send (default sessions)"
    )
    group.add_argument("--dataset-path", metavar="FILE", help="JSON or JSON lines, plain or .gz")
    group.add_argument(
        "--num-sessions", type=int, metavar="N", help="at most so many sessions (default: all; agents 40)"
    )
    group.add_argument("--max-output-tokens", type=int, metavar="N", help="output tokens a step (default: as recorded)")
    group.add_argument("--endpoint", choices=ENDPOINTS, help="of plain-text prompts (chat; hash-trace: completions)")
    group.add_argument("--recorded-times", action="store_true", default=None, help="sessions: keep recorded step times")
    group.add_argument("--think-time", type=float, metavar="S", help="pause between the steps (agents: mean)")
    group.add_argument("--speed-up", type=float, metavar="X", help="divide all recorded times by X")
    group.add_argument("--seed", type=int, default=0, help="of prompts, order and arrivals (default 0)")
    for option in OPTIONS:
        group.add_argument(option.flag, type=option.kind, metavar="N", help=option.help)


def workload_from(args: argparse.Namespace) -> Workload:
    """The workload that the flags describe. Raises WorkloadError naming the flag or the file, line and field."""
    dataset = DATASETS[args.dataset]
    if dataset.path == "required" and args.dataset_path is None:
        raise WorkloadError(f"--dataset {args.dataset} needs --dataset-path FILE")
    if dataset.path == "none" and args.dataset_path is not None:
        raise WorkloadError(f"--dataset {args.dataset} is generated and takes no --dataset-path")
    keywords: dict[str, Any] = {}
    for name in (*(option.name for option in OPTIONS), *GENERAL):
        value = getattr(args, name)
        if value is None:
            continue
        if name in dataset.options:
            keywords[dataset.options[name]] = value
        elif name not in ("seed", "num_sessions", "think_time"):
            users = sorted(other for other, known in DATASETS.items() if name in known.options)
            flag = "--" + name.replace("_", "-")
            raise WorkloadError(f"{flag} does not apply to --dataset {args.dataset}, only to {', '.join(users)}")
    for name in ("num_sessions", "max_output_tokens", "block_size", "tokens_per_block", "token_ids"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise WorkloadError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    workload = dataset.make(args.dataset_path, keywords)
    if args.num_sessions is not None and "num_sessions" not in dataset.options:
        workload = workload.head(args.num_sessions)
    if args.think_time is not None and "think_time" not in dataset.options:
        workload = workload.with_think_time(args.think_time)
    return workload if args.speed_up is None else workload.faster(args.speed_up)
