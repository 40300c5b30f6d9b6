"""The report as text, in the style of `vllm bench serve`, and as JSON with its key names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from loadtest.run import RunResult
from loadtest.stats import Distribution

WIDTH = 50
UNKNOWN = "unknown"
METRICS = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
DEFAULT_METRICS = tuple(METRICS)
DEFAULT_PERCENTILES = (99.0,)


def text_report(
    result: RunResult,
    metrics: Sequence[str] = DEFAULT_METRICS,
    percentiles: Sequence[float] = DEFAULT_PERCENTILES,
) -> str:
    """The block printed after a run. Unknown values are written as `unknown`."""
    lines = [f"{' Serving Benchmark Result ':=^{WIDTH}}"]
    lines += [line(label, value) for label, value in _totals(result)]
    for name in metrics:
        lines += _latency(name, distribution(result, name), percentiles)
    lines.append(f"{' Cache Hit Details ':-^{WIDTH}}")
    lines += [line(label, value) for label, value in _cache(result)]
    lines += _steps(result)
    lines += _spread(result)
    lines.append("=" * WIDTH)
    return "\n".join(lines)


def json_result(
    result: RunResult,
    date: datetime,
    metrics: Sequence[str] = DEFAULT_METRICS,
    percentiles: Sequence[float] = DEFAULT_PERCENTILES,
    detailed: bool = False,
) -> dict[str, Any]:
    """The result as plain JSON: keys of `vllm bench serve` where it has them, null for what is unknown.

    detailed: also every request, without its text.
    """
    summary = result.summary
    seconds = summary.duration_s
    answer: dict[str, Any] = {
        "date": date.strftime("%Y%m%d-%H%M%S"),
        "base_url": result.base_url,
        "model_id": result.model,
        "dataset_name": result.workload,
        "settings": dict(result.settings),
        "num_prompts": summary.requests,
        "completed": summary.completed,
        "failed": summary.errors,
        "errors_by_kind": dict(summary.errors_by_kind),
        "duration": seconds,
        "request_throughput": summary.completed / seconds,
        "request_goodput": summary.goodput,
        "total_input_tokens": summary.prompt_tokens,
        "total_output_tokens": summary.output_tokens,
        "output_throughput": _rate(summary.output_tokens, seconds),
        "total_token_throughput": _rate(_both(summary.prompt_tokens, summary.output_tokens), seconds),
        "total_cached_tokens": summary.cached_tokens,
        "prefill_tokens": summary.prefill_tokens,
        "cache_hit_rate": summary.hit_rate,
        "requests_with_cached_tokens": summary.tokens.counted,
        "ideal_cache_hit_rate": summary.ideal_hit_rate,
        "ideal_exact": summary.ideal_exact,
        "stickiness": summary.stickiness,
        "hotspot": summary.hotspot,
        "fleet_size": summary.fleet_size or None,
        "replicas": {name: asdict(share) for name, share in summary.replicas.items()},
        "reasons": dict(summary.reasons),
        "prediction": asdict(summary.prediction) if summary.prediction else None,
        "steps": [
            {"step": row.step, **asdict(row.tokens), "median_ttft_ms": _ms(row.ttft.p50 if row.ttft else None)}
            for row in summary.steps
        ],
        "p99_late_ms": _ms(summary.late.p99 if summary.late else None),
        "engines": _engines(result),
    }
    for name in metrics:
        answer |= _json_latency(name, distribution(result, name), percentiles)
    if detailed:
        answer["requests"] = [{**asdict(record), "itl_s": list(record.itl_s)} for record in result.records]
    return answer


def distribution(result: RunResult, name: str) -> Distribution | None:
    summary = result.summary
    return {"ttft": summary.ttft, "tpot": summary.tpot, "itl": summary.itl, "e2el": summary.e2el}[name]


def line(label: str, value: str) -> str:
    return f"{label:<40} {value:<10}".rstrip()


def number(value: float | None, digits: int = 2) -> str:
    if value is None:
        return UNKNOWN
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1%}"


def percentile_name(value: float) -> str:
    return f"p{value:g}"


def _totals(result: RunResult) -> Iterator[tuple[str, str]]:
    summary = result.summary
    seconds = summary.duration_s
    yield "Successful requests:", number(summary.completed)
    yield "Failed requests:", number(summary.errors)
    for kind, count in summary.errors_by_kind.items():
        yield f"  {kind}:", number(count)
    rate = result.settings.get("request_rate")
    if result.settings.get("concurrency") is not None:
        yield "Maximum session concurrency:", str(result.settings["concurrency"])
    if isinstance(rate, float) and not math.isinf(rate):
        yield "Session rate configured (sessions/s):", number(rate)
    yield "Benchmark duration (s):", number(seconds)
    yield "Total input tokens:", number(summary.prompt_tokens)
    yield "Total generated tokens:", number(summary.output_tokens)
    yield "Request throughput (req/s):", number(summary.completed / seconds)
    if summary.goodput is not None:
        yield "Request goodput (req/s):", number(summary.goodput)
    yield "Output token throughput (tok/s):", number(_rate(summary.output_tokens, seconds))
    both = _both(summary.prompt_tokens, summary.output_tokens)
    yield "Total token throughput (tok/s):", number(_rate(both, seconds))
    if summary.late is not None and summary.late.p99 > 0.05:
        yield "P99 sent late (ms):", number(summary.late.p99 * 1000)


def _cache(result: RunResult) -> Iterator[tuple[str, str]]:
    summary = result.summary
    yield "Total prompt tokens:", number(summary.prompt_tokens)
    yield "Total cached tokens:", number(summary.cached_tokens)
    yield "Prefill tokens computed:", number(summary.prefill_tokens)
    if 0 < summary.tokens.counted < summary.completed:
        yield "  over requests that reported both:", f"{summary.tokens.counted} of {summary.completed}"
    yield "Cache hit rate:", percent(summary.hit_rate)
    yield f"Ideal hit rate ({'exact' if summary.ideal_exact else 'approx.'}):", percent(summary.ideal_hit_rate)
    if result.engines is not None:
        yield "Cache hit rate (engine counters):", percent(result.engines.hit_rate)
        yield "Prefill tokens (engine counters):", number(result.engines.computed)
    seen = summary.prediction
    if seen is not None:
        yield "Predicted cached tokens:", number(seen.matched_tokens)
        yield "Actual cached tokens (same requests):", number(seen.cached_tokens)
        yield "Predicted exactly:", percent(seen.exact_share)
        yield "Mean prediction error (tokens):", number(seen.mean_error_tokens)


def _steps(result: RunResult) -> list[str]:
    rows = result.summary.steps
    if len(rows) < 2:
        return []
    lines = [
        f"{' By Agent Step ':-^{WIDTH}}",
        f"{'step':>4} {'requests':>9} {'hit rate':>9} {'prefill':>10} {'TTFT p50':>13}",
    ]
    for row in rows:
        ttft = UNKNOWN if row.ttft is None else f"{row.ttft.p50 * 1000:.1f} ms"
        lines.append(
            f"{row.step:>4} {row.tokens.requests:>9} {percent(row.tokens.hit_rate):>9} "
            f"{number(row.tokens.prefill):>10} {ttft:>13}"
        )
    return lines


def _spread(result: RunResult) -> list[str]:
    summary = result.summary
    lines = [f"{' Spread over Replicas ':-^{WIDTH}}"]
    lines.append(line("Stickiness (steps on the same replica):", percent(summary.stickiness)))
    size = f" of {summary.fleet_size}" if summary.fleet_size else ""
    lines.append(line("Hotspot (1 is even):", number(summary.hotspot) + (size if summary.hotspot is not None else "")))
    if result.engines is not None and result.engines.hotspot is not None:
        lines.append(line("Hotspot (engine counters):", number(result.engines.hotspot)))
    if summary.replicas:
        lines.append(f"{'replica':<20} {'requests':>9} {'prefill':>10} {'hit rate':>9}")
    lines += [
        f"{name:<20} {share.requests:>9} {number(share.prefill):>10} {percent(share.hit_rate):>9}"
        for name, share in summary.replicas.items()
    ]
    lines += [line(f"Reason {reason}:", str(count)) for reason, count in summary.reasons.items()]
    return lines


def _latency(name: str, values: Distribution | None, percentiles: Sequence[float]) -> list[str]:
    short = name.upper()
    rows = [f"{' ' + METRICS[name] + ' ':-^{WIDTH}}"]
    rows.append(line(f"Mean {short} (ms):", number(_ms(values.mean if values else None))))
    rows.append(line(f"Median {short} (ms):", number(_ms(values.p50 if values else None))))
    for wanted in percentiles:
        value = values.percentile(wanted) if values else None
        rows.append(line(f"{percentile_name(wanted).upper()} {short} (ms):", number(_ms(value))))
    return rows


def _json_latency(name: str, values: Distribution | None, percentiles: Sequence[float]) -> dict[str, float | None]:
    answer = {
        f"mean_{name}_ms": _ms(values.mean if values else None),
        f"median_{name}_ms": _ms(values.p50 if values else None),
        f"std_{name}_ms": _ms(values.std if values else None),
    }
    for wanted in percentiles:
        answer[f"{percentile_name(wanted)}_{name}_ms"] = _ms(values.percentile(wanted) if values else None)
    return answer


def _engines(result: RunResult) -> dict[str, Any] | None:
    fleet = result.engines
    if fleet is None:
        return None
    return {
        "cache_hit_rate": fleet.hit_rate,
        "prefill_tokens": fleet.computed,
        "hotspot": fleet.hotspot,
        "per_engine": [
            {"url": engine.url, "queried": engine.queried, "hit": engine.hit, "computed": engine.computed}
            for engine in fleet.engines
        ],
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _rate(tokens: int | None, seconds: float) -> float | None:
    return None if tokens is None else tokens / seconds


def _both(prompt: int | None, output: int | None) -> int | None:
    return None if prompt is None or output is None else prompt + output
