"""A comparison as text, Markdown and JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from loadtest.compare.outcome import Outcome, Row, Value, hit_rate, of_possible, standings
from loadtest.compare.runs import Settings
from loadtest.report import UNKNOWN, json_result

COLUMNS = {
    "hit_rate": "hit rate",
    "of_possible": "of possible",
    "prefill": "prefill tokens",
    "ttft_p50": "TTFT p50 ms",
    "ttft_p99": "TTFT p99 ms",
    "goodput": "goodput",
    "stickiness": "sticky",
    "hotspot": "hotspot",
    "cpu_ms": "router CPU ms/req",
    "errors": "errors",
}
LEGEND = {
    "hit rate": "cached prompt tokens / prompt tokens, by the engines' own counters",
    "of possible": "hit rate / the best these requests could have had: one endless cache for the whole fleet or, where "
    "caches are too small, a router that sees every cache and every later request (the better of a greedy one and of "
    "sessions dealt out to replicas); a little above 100 % is possible: neither plans ahead",
    "goodput": "share of the requests, all sent at the same times, that met the scenario's objectives",
    "sticky": "share of steps that ran where their session's previous step ran",
    "hotspot": "replicas x the largest share of the computed prefill: 1 is even",
    "(low-high)": "range over the repeats; the number before it is their median",
}


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a comparison has to say."""

    date: datetime
    command: str
    settings: Settings
    outcomes: Sequence[Outcome]
    versions: Mapping[str, str]
    skipped: Mapping[str, str]

    def conditions(self) -> list[str]:
        """What a reader must know before the numbers."""
        hardware = self.settings.hardware
        if self.settings.replicas:
            fleet = f"{len(self.settings.replicas)} given replicas, their caches emptied before each run"
        else:
            fleet = (
                f"{hardware.replicas} simulated replicas (exact prefix cache and KV events, time model "
                f"{hardware.time_model} x {hardware.time_scale:g}), new ones for each run"
            )
        loads = [run.load_average for each in self.outcomes for row in each.rows for run in row.runs]
        busy = [each.fleet_busy for each in self.outcomes if each.fleet_busy is not None]
        lines = [
            f"{self.date:%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores ({platform.machine()}), "
            f"load average {min(loads, default=0):.1f}-{max(loads, default=0):.1f}",
            fleet,
            f"{self.settings.repeats} repeats, contenders in turn, the order rotated; seed {self.settings.seed}",
        ]
        if busy:
            lines.append(
                f"client, router and simulated engines share the cores; the engines' process took at most "
                f"{max(busy):.0%} of one (near 100 % latencies would measure Python, not the router)"
            )
        if self.versions:
            lines.append(", ".join(f"{name} {version}" for name, version in self.versions.items()))
        lines += [f"skipped {label}: {why.splitlines()[0]}" for label, why in self.skipped.items()]
        return lines


def write(metric: str, value: Value | None) -> str:
    """A number with its range, as `198 (190-230)`."""
    if value is None:
        return UNKNOWN
    middle, low, high = (_one(metric, number) for number in (value.median, value.low, value.high))
    return middle if low == high else f"{middle} ({low}-{high})"


def _one(metric: str, value: float) -> str:
    if metric in ("hit_rate", "of_possible", "stickiness", "goodput"):
        return f"{value:.1%}"
    if metric.startswith(("ttft", "e2el")):
        return f"{value * 1000:.0f}"
    if metric == "prefill":
        return f"{value:,.0f}"
    return f"{value:.2f}" if metric in ("hotspot", "cpu_ms") else f"{value:.1f}"


def cells(row: Row) -> list[str]:
    return [row.contender.label, *(_cell(row, metric) for metric in COLUMNS)]


def _cell(row: Row, metric: str) -> str:
    value = getattr(row, metric)
    return str(value) if metric == "errors" else write(metric, value)


def objectives(result: Outcome) -> str:
    return ", ".join(f"{name.upper()} {limit * 1000:g} ms" for name, limit in result.scenario.goodput.items())


def text(report: Report) -> str:
    lines = ["", *report.conditions()]
    for result in report.outcomes:
        lines += ["", f"== {result.scenario.name}: {result.scenario.what} (goodput: {objectives(result)})", ""]
        table = [["", *COLUMNS.values()], *(cells(row) for row in result.rows)]
        widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
        lines += [
            "  ".join(
                [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
            ).rstrip()
            for line in table
        ]
        lines += [f"  {_standing(result, place)}" for place in range(len(standings(result, write)))]
    return "\n".join(lines)


def _standing(result: Outcome, place: int) -> str:
    answer = standings(result, write)[place]
    return f"{result.rows[0].contender.label}: {answer.question}: {answer.verdict.upper()} ({answer.detail})"


def markdown(report: Report) -> str:
    """The report to check in."""
    lines = [
        "# Routers compared", "", "Made by", "", "```", report.command, "```", "",
        *(f"* {line}" for line in report.conditions()), "",
        *(f"* *{name}*: {meaning}." for name, meaning in LEGEND.items()), "",
    ]  # fmt: skip
    mine = report.outcomes[0].rows[0].contender.label if report.outcomes and report.outcomes[0].rows else ""
    lines += [f"## Where `{mine}` stands", "", "| scenario | question | | figures |", "|---|---|---|---|"]
    for result in report.outcomes:
        lines += [
            f"| {result.scenario.name} | {answer.question} | **{answer.verdict}** | {answer.detail} |"
            for answer in standings(result, write)
        ]
    lines += ["", "*tie*: behind by median, but the ranges of the repeats overlap.", ""]
    for result in report.outcomes:
        lines += [f"## {result.scenario.name}", "", f"{_capital(result.scenario.what)}. Goodput: {objectives(result)}."]
        lines += ["", "| router | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
        lines += ["| " + " | ".join(cells(row)) + " |" for row in result.rows] + [""]
    return "\n".join(lines)


def json_report(report: Report) -> dict[str, Any]:
    return {
        "date": report.date.strftime("%Y%m%d-%H%M%S"),
        "command": report.command,
        "conditions": report.conditions(),
        "settings": asdict(report.settings),
        "versions": dict(report.versions),
        "skipped": dict(report.skipped),
        "scenarios": [_json_outcome(report, result) for result in report.outcomes],
    }


def _json_outcome(report: Report, result: Outcome) -> dict[str, Any]:
    scenario = result.scenario
    return {
        "name": scenario.name,
        "what": scenario.what,
        "workload": dict(scenario.workload.settings),
        "session_header": scenario.headers,
        "kv_blocks": None if report.settings.replicas else scenario.kv_blocks,
        "slow": {str(place): factor for place, factor in scenario.slow.items()},
        "goodput_objectives_s": dict(scenario.goodput),
        "standing": [asdict(answer) for answer in standings(result, write)],
        "routers": [
            {
                "router": row.contender.label,
                "spec": row.contender.spec,
                **{m: asdict(v) if (v := getattr(row, m)) is not None else None for m in COLUMNS if m != "errors"},
                "errors": row.errors,
                "runs": [
                    {
                        "repeat": run.repeat,
                        "hit_rate": hit_rate(run),
                        "possible_hit_rate": run.possible,
                        "of_possible": of_possible(run),
                        "router_cpu_s": run.router_cpu_s,
                        "router_rss_bytes": run.router_rss,
                        "fleet_cpu_s": run.fleet_cpu_s,
                        "client_cpu_s": run.client_cpu_s,
                        "load_average": run.load_average,
                        "result": json_result(run.result, report.date, percentiles=(50, 90, 99)),
                    }
                    for run in row.runs
                ],
            }
            for row in result.rows
        ],
    }


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
