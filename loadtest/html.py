"""The report as one HTML page: no scripts, no fonts, no addresses; light and dark by the reader's setting."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape

from loadtest.record import RequestRecord
from loadtest.report import DEFAULT_METRICS, DEFAULT_PERCENTILES, number, percent, text_report
from loadtest.run import RunResult
from loadtest.stats import Distribution
from loadtest.svg import Axis, bars, line_plot, scatter

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1c2126;--dim:#5d6770;--rule:#dfe3e7;--card:#f6f7f9;
--mark:#1f6fb2;--bad:#c0392b}
@media(prefers-color-scheme:dark){:root{--bg:#14181c;--fg:#e6e9ec;--dim:#9aa5af;--rule:#30373e;--card:#1c2228;
--mark:#5aa9e6;--bad:#ff7b6b}}
body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;margin:2rem auto;
max-width:1120px;padding:0 1rem}
h1{font-size:1.4rem;margin:0}h2{font-size:1rem;margin:0 0 .5rem}p.dim,small{color:var(--dim)}
.tiles,.plots{display:grid;gap:1rem;margin:1.2rem 0}
.tiles{grid-template-columns:repeat(auto-fit,minmax(150px,1fr))}
.plots{grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr))}
.tile,.plot{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:.8rem 1rem}
.tile b{display:block;font-size:1.35rem}.tile span{color:var(--dim);font-size:.85rem}
svg{width:100%;height:auto;display:block}.line{fill:none;stroke:var(--mark);stroke-width:2}.mark{fill:var(--mark)}
.bad{fill:var(--bad)}.grid{stroke:var(--rule)}.axis{stroke:var(--dim)}
.tick,.label{fill:var(--dim);font:11px system-ui,sans-serif}
pre{overflow:auto;background:var(--card);border-radius:8px;padding:1rem}
"""


def html_report(
    result: RunResult,
    date: datetime,
    metrics: Sequence[str] = DEFAULT_METRICS,
    percentiles: Sequence[float] = DEFAULT_PERCENTILES,
) -> str:
    """A complete page; `date` in UTC. It holds no prompt and no answer."""
    title = f"Load test: {result.workload}"
    settings = ", ".join(f"{name} {value}" for name, value in result.settings.items() if value is not None)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f'<p class="dim">{escape(result.model)} · {date:%Y-%m-%d %H:%M:%S} UTC · {escape(settings)}</p>'
        f'<div class="tiles">{_tiles(result)}</div><div class="plots">{_plots(result)}</div>'
        f"<pre>{escape(text_report(result, metrics, percentiles))}</pre></body></html>\n"
    )


def _tiles(result: RunResult) -> str:
    summary = result.summary
    tiles = [
        ("cache hit rate", percent(summary.hit_rate)),
        ("ideal hit rate" + ("" if summary.ideal_exact else " (approx.)"), percent(summary.ideal_hit_rate)),
        ("prefill tokens computed", _thousands(summary.prefill_tokens)),
        ("TTFT p50", _ms(summary.ttft, 50)),
        ("TTFT p99", _ms(summary.ttft, 99)),
        ("requests", _thousands(summary.requests)),
        ("errors", _thousands(summary.errors)),
        ("stickiness", percent(summary.stickiness)),
        ("hotspot (1 is even)", number(summary.hotspot)),
    ]
    return "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in tiles
    )


def _plots(result: RunResult) -> str:
    summary = result.summary
    plots = [
        ("Time to first token: share of requests at or below", _cdf(summary.ttft, "TTFT, ms")),
        ("End-to-end latency: share of requests at or below", _cdf(summary.e2el, "E2EL, ms")),
        ("Cache hit rate by agent step", _steps(result)),
        ("Prompt tokens computed by replica", _replicas(result)),
        ("Timeline: latency of each request by when it was sent (errors at the bottom)", _timeline(result.records)),
    ]
    return "".join(f'<div class="plot"><h2>{escape(title)}</h2>{svg}</div>' for title, svg in plots)


def _cdf(values: Distribution | None, label: str) -> str:
    if values is None:
        return _nothing("not measured")
    count = len(values.values)
    points = [(value * 1000, (i + 1) / count) for i, value in enumerate(values.values)]
    # The last per cent would squeeze everything else: the axis ends at p99.5, the table has the rest.
    end = values.percentile(99.5) * 1000
    shown = [point for point in points if point[0] <= end] or points
    return line_plot(shown, Axis(label, 0, end, _plain), Axis("", 0, 1, percent0), label)


def _steps(result: RunResult) -> str:
    rows = [(str(row.step), row.tokens.hit_rate) for row in result.summary.steps]
    known = [(name, rate) for name, rate in rows if rate is not None]
    if not known:
        return _nothing("the endpoint reports no cached tokens")
    return bars(known, Axis("", 0, 1, percent0), "hit rate by step", "step")


def _replicas(result: RunResult) -> str:
    engines = result.engines.engines if result.engines else ()
    shares: list[tuple[str, float]] = [
        (name, share.prefill) for name, share in result.summary.replicas.items() if share.prefill is not None
    ]
    if not shares:
        shares = [(f"engine {i}", engine.computed) for i, engine in enumerate(engines) if engine.computed is not None]
    if not shares:
        return _nothing("the endpoint does not name its replicas, or reports no cached tokens")
    most = max(value for _, value in shares)
    return bars(shares, Axis("", 0, max(most, 1), _plain), "prefill by replica", "replica")


def _timeline(records: Sequence[RequestRecord]) -> str:
    latency = [(r.start_s, (r.ttft_s if r.ttft_s is not None else r.e2el_s), r.ok) for r in records]
    known = [(start, value * 1000, "mark") for start, value, ok in latency if ok and value is not None]
    failed = [(start, 0.0, "bad") for start, _, ok in latency if not ok]
    if not known and not failed:
        return _nothing("no requests")
    end = max(start for start, _, _ in known + failed)
    high = max((value for _, value, _ in known), default=1.0)
    streams = any(record.ttft_s is not None for record in records)
    label = "TTFT, ms" if streams else "E2EL, ms"
    return scatter(
        known + failed, Axis(f"sent at, s ({label})", 0, max(end, 1e-3), _plain), Axis("", 0, high, _plain), label
    )


def percent0(value: float) -> str:
    return f"{value:.0%}"


def _plain(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1000 if unit == 'k' else size):g}{unit}"
    return f"{value:.4g}"


def _thousands(value: int | None) -> str:
    return number(value) if value is None else f"{value:,}"


def _ms(values: Distribution | None, wanted: float) -> str:
    return number(None) if values is None else f"{values.percentile(wanted) * 1000:.1f} ms"


def _nothing(why: str) -> str:
    return f"<small>No data: {escape(why)}.</small>"
