"""Runs against a real HTTP server: what is sent, what is measured, what counts as an error."""

from __future__ import annotations

import math
from typing import Any

import pytest

from loadtest.progress import Progress
from loadtest.run import run_workload
from loadtest.types import COMPLETIONS, Workload, WorkloadError
from loadtest.workloads import agents, mixed, shared_prefix, shipped_sessions


def small(sessions: int = 4, steps: int = 3) -> Workload:
    return agents(sessions=sessions, steps=steps, initial_tokens=20, step_tokens=10, output_tokens=3)


async def test_measures_a_stream(engine: Any) -> None:
    engine.cached = lambda number: 5
    engine.matched = lambda number: 5 if number else 9
    seen: list[tuple[int, int]] = []

    def watch(state: Progress) -> None:
        seen.append((state.done, state.total))

    result = await run_workload(engine.url, small(), model="tiny", concurrency=2, progress=watch)
    summary = result.summary
    prompts = sum(record.prompt_tokens or 0 for record in result.records)
    assert (summary.requests, summary.errors, summary.completed) == (12, 0, 12)
    assert summary.prompt_tokens == prompts == engine.queried
    assert summary.cached_tokens == 60
    assert summary.prefill_tokens == prompts - 60
    assert summary.hit_rate == pytest.approx(60 / prompts)
    assert summary.output_tokens == 36
    assert summary.ttft and summary.itl and summary.tpot and summary.e2el
    assert len(summary.ttft.values) == 12
    assert all(0 < r.ttft_s <= r.e2el_s for r in result.records if r.ttft_s and r.e2el_s)
    assert all(len(record.itl_s) <= 2 for record in result.records)
    assert summary.prediction is not None
    assert summary.prediction.exact_share == pytest.approx(11 / 12)
    assert summary.prediction.mean_error_tokens == pytest.approx(4 / 12)
    assert summary.reasons == {"prefix": 12}
    assert seen == [(done, 12) for done in range(1, 13)]


async def test_body_and_headers_on_the_wire(engine: Any) -> None:
    workload = agents(sessions=1, steps=2, initial_tokens=8, step_tokens=4, output_tokens=7)
    await run_workload(
        engine.url, workload, model="tiny", session_header="x-session-id", headers={"x-a": "b"}, extra_body={"seed": 3}
    )
    first, second = engine.bodies
    assert (first["model"], first["max_tokens"], first["stream"], first["seed"]) == ("tiny", 7, True, 3)
    assert first["stream_options"] == {"include_usage": True}
    assert second["messages"][:1] == first["messages"]
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    assert engine.headers[0]["x-session-id"] == "agent-0"
    assert engine.headers[0]["x-a"] == "b"


async def test_whole_answers_have_no_ttft(engine: Any) -> None:
    result = await run_workload(engine.url, small(), model="tiny", stream=False)
    assert result.summary.errors == 0
    assert (result.summary.ttft, result.summary.itl, result.summary.tpot) == (None, None, None)
    assert result.summary.e2el is not None
    assert result.summary.hit_rate is not None
    assert "stream" not in engine.bodies[0]


async def test_unknown_cached_tokens_are_not_zero(engine: Any) -> None:
    engine.cached = lambda number: None
    summary = (await run_workload(engine.url, small(), model="tiny")).summary
    assert (summary.hit_rate, summary.cached_tokens, summary.prefill_tokens) == (None, None, None)
    assert summary.prompt_tokens is not None
    assert all(row.tokens.hit_rate is None for row in summary.steps)
    assert summary.ideal_hit_rate is not None


async def test_partly_known_cached_tokens_count_where_known(engine: Any) -> None:
    engine.cached = lambda number: 6 if number % 2 else None
    result = await run_workload(engine.url, small(), model="tiny", concurrency=1)
    known = [r for r in result.records if r.cached_tokens is not None]
    assert result.summary.tokens.counted == 6
    assert result.summary.hit_rate == pytest.approx(36 / sum(r.prompt_tokens or 0 for r in known))


async def test_zero_cached_tokens_are_a_hit_rate_of_zero(engine: Any) -> None:
    engine.cached = lambda number: 0
    assert (await run_workload(engine.url, small(), model="tiny")).summary.hit_rate == 0.0


async def test_errors_by_kind(engine: Any) -> None:
    engine.fail = {0: "500", 1: "error_event", 2: "truncate", 3: "hang_up"}
    result = await run_workload(engine.url, small(steps=2), model="tiny", concurrency=1)
    summary = result.summary
    assert summary.errors_by_kind == {"http_500": 1, "stream_error": 1, "truncated": 1, "disconnected": 1}
    assert (summary.requests, summary.completed) == (8, 4)
    assert summary.ttft is not None and len(summary.ttft.values) == 4
    assert "broken" in (result.records[0].detail or "")


async def test_nobody_listens() -> None:
    summary = (await run_workload("http://127.0.0.1:9", small(1, 1), model="tiny")).summary
    assert summary.errors_by_kind == {"connect": 1}
    assert (summary.ttft, summary.hit_rate, summary.ideal_hit_rate) == (None, None, None)


async def test_steps_are_sequential_and_agents_bounded(engine: Any) -> None:
    await run_workload(engine.url, small(sessions=9), model="tiny", concurrency=3, session_header="x-session-id")
    assert not engine.overlapped
    assert engine.most_running <= 3
    assert len(engine.bodies) == 27


async def test_stickiness_and_hotspot(engine: Any) -> None:
    engine.replicas = ("a", "b")
    engine.cached = lambda number: 0
    summary = (await run_workload(engine.url, small(sessions=1, steps=4), model="tiny", replicas=4)).summary
    assert summary.replica_requests == {"a": 2, "b": 2}
    assert summary.stickiness == 0.0
    assert summary.fleet_size == 4
    prefill = [share.prefill or 0 for share in summary.replicas.values()]
    assert summary.hotspot == pytest.approx(4 * max(prefill) / sum(prefill))


async def test_engine_counters(engine: Any) -> None:
    engine.queried, engine.hit = 1000, 900
    result = await run_workload(engine.url, small(), model="tiny", engine_metrics=[engine.url])
    assert result.engines is not None
    assert result.engines.hit_rate == pytest.approx(result.summary.hit_rate)
    assert result.engines.computed == result.summary.prefill_tokens
    with pytest.raises(ConnectionError, match=r"--engine-metrics-url http://127\.0\.0\.1:9"):
        await run_workload(engine.url, small(), model="tiny", engine_metrics=["http://127.0.0.1:9"])


async def test_goodput(engine: Any) -> None:
    every = await run_workload(engine.url, small(), model="tiny", goodput={"ttft": 60.0, "tpot": 60.0, "e2el": 60.0})
    assert every.summary.goodput == pytest.approx(12 / every.summary.duration_s)
    none = await run_workload(engine.url, small(), model="tiny", goodput={"ttft": 0.0})
    assert none.summary.goodput == 0.0
    assert (await run_workload(engine.url, small(), model="tiny")).summary.goodput is None


async def test_open_loop_at_once_and_completions(engine: Any) -> None:
    workload = shared_prefix(groups=2, requests_per_group=3, prefix_tokens=64, endpoint=COMPLETIONS)
    summary = (await run_workload(engine.url, workload, model="tiny", request_rate=math.inf)).summary
    assert (summary.completed, summary.errors) == (6, 0)
    assert all(isinstance(body["prompt"], str) for body in engine.bodies)


async def test_shipped_text_replays_the_same_bytes(engine: Any) -> None:
    workload = shipped_sessions(limit=3, max_tokens=2)
    await run_workload(engine.url, workload, model="tiny", concurrency=1)
    first = list(engine.bodies)
    engine.bodies.clear()
    engine.answer = ("something", "else")
    await run_workload(engine.url, shipped_sessions(limit=3, max_tokens=2), model="tiny", concurrency=1)
    assert engine.bodies == first
    assert mixed().requests == 279 + 285


async def test_refuses_what_cannot_run(engine: Any) -> None:
    with pytest.raises(WorkloadError, match="no requests"):
        await run_workload(engine.url, Workload("empty", []), model="tiny")
    with pytest.raises(WorkloadError, match="concurrency must be at least 1"):
        await run_workload(engine.url, small(), model="tiny", concurrency=0)
