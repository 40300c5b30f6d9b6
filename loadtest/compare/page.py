"""A comparison as one HTML page: the tables, and bars with the range over the repeats."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from loadtest.compare.outcome import Outcome, Row, standings
from loadtest.compare.table import COLUMNS, LEGEND, Report, cells, objectives, write
from loadtest.html import STYLE
from loadtest.svg import Axis, Bar, bars_across

MORE = """
body{max-width:1280px}h2{margin-top:2.2rem;font-size:1.15rem}h3{font-size:.95rem;margin:0 0 .4rem}
.table{overflow-x:auto}table{border-collapse:collapse;font-size:.82rem;width:100%}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{color:var(--dim);font-weight:600}tr.first td{font-weight:600}
small{white-space:nowrap}.three{display:grid;gap:1rem;margin:1rem 0;
grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr))}
.yes{color:#1d7f45}.no{color:var(--bad)}.tie{color:var(--dim)}b.yes,b.no,b.tie{text-transform:uppercase}
@media(prefers-color-scheme:dark){.yes{color:#5fd08c}}
ul{padding-left:1.2rem;color:var(--dim);font-size:.88rem}code{overflow-wrap:anywhere}
.whisker{stroke:var(--fg);stroke-width:1.5}.rest{fill:var(--dim);fill-opacity:.45}
td.what{text-align:left;white-space:normal}
"""
PLOTS = (
    ("of_possible", "Hit rate, share of the possible", 100.0, "%"),
    ("ttft_p99", "TTFT p99, ms (less is better)", 1000.0, ""),
    ("goodput", "Goodput, share of requests", 100.0, "%"),
)


def page(report: Report) -> str:
    """A complete page: no scripts, no addresses, no prompt and no answer."""
    body = [
        "<h1>Routers compared</h1>",
        f"<p><code>{escape(report.command)}</code></p>",
        "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in report.conditions()) + "</ul>",
        _standings(report),
        *(_scenario(result) for result in report.outcomes),
        "<h2>What the columns mean</h2><ul>",
        *(f"<li><b>{escape(name)}</b>: {escape(meaning)}</li>" for name, meaning in LEGEND.items()),
        "</ul>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Routers compared</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}{MORE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _standings(report: Report) -> str:
    rows = [
        f'<tr><td>{escape(result.scenario.name)}</td><td class="what">{escape(answer.question)}</td>'
        f'<td><b class="{answer.verdict}">{answer.verdict}</b></td><td class="what">{escape(answer.detail)}</td></tr>'
        for result in report.outcomes
        for answer in standings(result, write)
    ]
    if not rows:
        return ""
    mine = report.outcomes[0].rows[0].contender.label
    return (
        f"<h2>Where {escape(mine)} stands</h2><div class=table><table><tr><th>scenario</th><th class=what>question</th>"
        f"<th></th><th class=what>figures</th></tr>{''.join(rows)}</table></div>"
        "<small>tie: behind by median, but the ranges of the repeats overlap</small>"
    )


def _scenario(result: Outcome) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ("router", *COLUMNS.values()))
    lines = "".join(
        f"<tr{' class=first' if place == 0 else ''}>"
        + "".join(f"<td>{_dim(cell)}</td>" for cell in cells(row))
        + "</tr>"
        for place, row in enumerate(result.rows)
    )
    plots = "".join(
        f'<div class="plot"><h3>{escape(title)}</h3>{_plot(result.rows, metric, factor, unit)}</div>'
        for metric, title, factor, unit in PLOTS
    )
    return (
        f"<h2>{escape(result.scenario.name)}</h2><p>{escape(result.scenario.what)}. "
        f"Goodput: {escape(objectives(result))}.</p>"
        f'<div class="three">{plots}</div><div class="table"><table><tr>{head}</tr>{lines}</table></div>'
    )


def _dim(cell: str) -> str:
    middle, mark, rest = cell.partition(" (")
    return f"{escape(middle)} <small>({escape(rest)}</small>" if mark and rest[:1].isdigit() else escape(cell)


def _plot(rows: Sequence[Row], metric: str, factor: float, unit: str) -> str:
    values = [
        Bar(row.contender.label, value.median * factor, value.low * factor, value.high * factor, first=place == 0)
        for place, row in enumerate(rows)
        if (value := getattr(row, metric)) is not None
    ]
    if not values:
        return "<small>No data.</small>"
    end = max(bar.high for bar in values)
    return bars_across(values, Axis("", 0, end, lambda number: f"{number:,.4g}{unit}"), metric)
