"""The report of peers.py: a table, paired ratios against the goals, and the rest."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

COLUMNS = {
    "us_2k": "2 kB, us",
    "us_64k": "64 kB, us",
    "us_event": "per event, us",
    "added_p50_ms": "added p50, ms",
    "added_p99_ms": "added p99, ms",
    "rate": "at req/s",
    "rss_mb": "RSS, MB",
}
PAIRS = (
    ("round_robin", "sglang-router:round_robin", "us_2k", 0.8),
    ("round_robin", "sglang-router:round_robin", "us_64k", 0.8),
    ("round_robin", "sglang-router:round_robin", "us_event", 1.0),
    ("prefix", "sglang-router:cache_aware", "us_2k", 1.0),
    ("prefix", "sglang-router:cache_aware", "us_64k", 1.0),
    ("prefix", "sglang-router:cache_aware", "us_event", 1.0),
)
DYNAMO_US = {"us_2k": 1_679, "us_64k": 26_744}
"""Dynamo's frontend, tokenizing, measured on another quiet machine of this kind (user + system, us a request)."""
EXACT_GOAL = 0.5
ADDED_P99_GOAL_MS = 2.0
RSS_GOAL_MB = 150.0

Row = dict[str, Any]


def line(row: Row) -> str:
    figures = ", ".join(f"{title} {row[name]:.1f}" for name, title in COLUMNS.items())
    errors = sum(value for name, value in row.items() if name.startswith("errors"))
    return f"{row['repeat'] + 1} {row['router']}: {figures}" + (f", {errors} ERRORS" if errors else "")


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "# What a request costs",
        "",
        "Made by `make bench-peers` (tests/bench/peers.py says how it measures).",
        "",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores ({platform.machine()}), Python "
        f"{platform.python_version()}, load average {result['load_average']:.1f}; "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        + f". {result['repeats']} repeats of {result['seconds']:g} s; median (lowest-highest).",
        "",
        "CPU is user + system time of the router's processes, a request (16 connections, closed loop, small answer) "
        "or a streamed event (64 streams, one event per 10 ms each). Added latency is the difference to the backend "
        "alone, in pairs of short runs at half of what the router's CPU allows, at most 500 req/s. Other work ran on "
        "the machine's cores at the same time: ratios within a repeat say more than absolute figures.",
        "",
        "| router | " + " | ".join(COLUMNS.values()) + " | errors |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    rows: Sequence[Row] = result["peers"]
    labels = list(dict.fromkeys(row["router"] for row in rows))
    for label in labels:
        mine = [row for row in rows if row["router"] == label]
        errors = sum(value for row in mine for name, value in row.items() if name.startswith("errors"))
        figures = " | ".join(spread([row[name] for row in mine], 2 if "added" in name else 0) for name in COLUMNS)
        lines.append(f"| {label} | {figures} | {errors} |")
    lines += [f"| {label} | skipped: {why} |" for label, why in result["skipped"].items()]
    lines += ["", "## Against the goals", "", "| what | goal | measured | |", "|---|---|---|---|"]
    lines += [f"| {what} | {goal} | {measured} | {mark} |" for what, goal, measured, mark in goals(result)]
    if result["stages"]:
        lines += [
            "",
            "## Exact tokens, by stage",
            "",
            "us a step of a session that grows by 500 tokens, Qwen3's tokenizer:",
            "",
        ]
        lines += ["| stage | " + " | ".join(result["stages"]) + " |", "|---" * (len(result["stages"]) + 1) + "|"]
        names = list(next(iter(result["stages"].values())))
        for name in names:
            lines.append(
                f"| {name} | " + " | ".join(f"{result['stages'][s][name]:.0f}" for s in result["stages"]) + " |"
            )
        rest = []
        for size, key in zip(result["stages"], ("us_2k", "us_64k"), strict=True):
            left = result["exact"][key] - sum(result["stages"][size].values())
            rest.append(f"{left:.0f}" if left > 0 else "-")
        lines.append("| HTTP, forwarding, books, observing (the rest) | " + " | ".join(rest) + " |")
        whole = [f"{result['exact'][key]:.0f}" for key in ("us_2k", "us_64k")]
        lines.append("| **the router's process** | " + " | ".join(whole) + " |")
    return "\n".join(lines) + "\n"


def goals(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    rows: Sequence[Row] = result["peers"]
    answers = []
    for ours, theirs, metric, goal in PAIRS:
        ratios = [
            mine[metric] / other[metric]
            for mine in rows
            for other in rows
            if mine["router"] == ours and other["router"] == theirs and mine["repeat"] == other["repeat"]
        ]
        if ratios:
            middle = statistics.median(ratios)
            what = f"`{ours}` / {theirs}, {COLUMNS[metric].removesuffix(', us')}"
            answers.append((what, f"<= {goal}", spread(ratios, 2), mark(middle <= goal)))
    for label in ("round_robin", "prefix"):
        added = [row["added_p99_ms"] for row in rows if row["router"] == label]
        if added:
            what = f"`{label}`: added latency p99 at half load, ms"
            answers.append((what, f"< {ADDED_P99_GOAL_MS:g}", spread(added, 2), mark(statistics.median(added) < 2)))
        memory = [row["rss_mb"] for row in rows if row["router"] == label]
        if memory:
            met = statistics.median(memory) < RSS_GOAL_MB
            answers.append((f"`{label}`: RSS, MB", f"< {RSS_GOAL_MB:g}", spread(memory, 0), mark(met)))
    exact = result["exact"]
    if exact:
        for metric, dynamo in DYNAMO_US.items():
            goal_us = EXACT_GOAL * dynamo
            what = f"`prefix`, exact tokens, {exact['blocks']:,} blocks warm, growing session, {COLUMNS[metric]}"
            measured = f"{exact[metric]:.0f} ({exact[f'errors_{metric}']} errors)"
            answers.append((what, f"<= {goal_us:.0f}", measured, mark(exact[metric] <= goal_us)))
        rest = exact["rss_mb"] - exact["rss_index_mb"]
        what = f"the same: RSS without the index ({exact['rss_index_mb']:.0f} MB), tokenizer loaded, MB"
        answers.append((what, f"< {RSS_GOAL_MB:g}", f"{rest:.0f}", mark(rest < RSS_GOAL_MB)))
    for row in result["many"]:
        what = f"`{row['router']}`: {row['streams']:,} streams at once"
        if row["streams"] < row["wanted"]:
            what += f" ({row['wanted']:,} need more open files than this system allows)"
        broken = row["errors"] + row["events_missing"]
        measured = f"{row['errors']} errors, {row['events_missing']} events missing, peak RSS {row['rss_mb']:.0f} MB"
        measured += f"; the first: {row['first_error']}" if row["first_error"] else ""
        answers.append((what, "0 errors", measured, mark(broken == 0)))
    return answers


def mark(met: bool) -> str:
    return "met" if met else "**missed**"


def spread(values: Sequence[float], digits: int) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    text = f"{middle:,.{digits}f}"
    return text if len(values) == 1 else f"{text} ({low:,.{digits}f}-{high:,.{digits}f})"
