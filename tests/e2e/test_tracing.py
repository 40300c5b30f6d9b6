"""Traces of real requests: spans by stage and try, the client's context passed on, nothing where it is off."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from e2e.conftest import MODEL, Build, Stack, receipt
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode
from support.waiting import until

from router.observe.tracing import Tracing

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hello " * 100}], "max_tokens": 4}


def traced(system: Stack, **options: Any) -> InMemorySpanExporter:
    """Spans of the system's requests from now on."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(**options)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    system.app.route.tracing = Tracing(provider)
    return exporter


async def over(exporter: InMemorySpanExporter, requests: int) -> None:
    """The spans of so many whole requests are over; a client may have its answer before."""
    await until(
        lambda: sum(span.kind is SpanKind.SERVER for span in exporter.get_finished_spans()) == requests, "the traces"
    )


async def spans(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    """Of one request, by name, once all of it is over."""
    await over(exporter, 1)
    return {span.name.split(" ")[0]: span for span in exporter.get_finished_spans()}


async def test_a_request_is_one_trace(build: Build) -> None:
    system = await build(replicas=2)
    exporter = traced(system)
    status, headers, _ = await system.post("/v1/chat/completions", BODY, traceparent=f"00-{TRACE}-{PARENT}-01")
    assert status == 200
    found = await spans(exporter)
    assert {"POST", "parse", "render", "tokenize", "hash", "lookup", "decide", "observe", "forward"} == set(found)
    whole = found.pop("POST")
    assert whole.parent is not None
    assert whole.context is not None
    assert f"{whole.parent.span_id:016x}" == PARENT
    for span in found.values():
        assert span.parent == whole.context
        assert f"{span.context.trace_id:032x}" == TRACE
        assert whole.start_time <= span.start_time <= span.end_time
    assert found["parse"].end_time <= found["render"].start_time
    assert whole.attributes["prefix_router.replica"] == receipt(headers, "replica")
    assert whole.attributes["prefix_router.reason"] == receipt(headers, "reason")
    assert whole.attributes["http.response.status_code"] == 200
    assert "hello" not in "".join(span.to_json() for span in exporter.get_finished_spans())


class Recording:
    """An engine's stand-in for what the router sends: keeps the traceparents it got."""

    def __init__(self) -> None:
        self.got: list[str | None] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.got.append(request.headers.get("traceparent"))
        return web.json_response({"usage": {"prompt_tokens": 1, "completion_tokens": 1}})


@pytest.mark.parametrize("mode", ["off", "on", "unsampled"])
async def test_the_context_reaches_the_replica(build: Build, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off: the client's header as it is. On: the try is the parent. Not sampled: no spans, yet passed on."""
    system = await build(replicas=1)
    engine = Recording()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", engine.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    replica = system.replica(0)
    origin = system.app.origins[replica.id]
    monkeypatch.setitem(system.app.origins, replica.id, type(origin)(origin.host, runner.addresses[0][1], origin.tls))
    exporter = traced(system, sampler=ParentBased(TraceIdRatioBased(1.0))) if mode != "off" else None
    sent = f"00-{TRACE}-{PARENT}-{'00' if mode == 'unsampled' else '01'}"
    try:
        await system.post("/v1/chat/completions", BODY, traceparent=sent)
    finally:
        await runner.cleanup()
    (got,) = engine.got
    assert got is not None
    if exporter is None:
        assert got == sent
    elif mode == "on":
        forward = (await spans(exporter))["forward"]
        assert got == f"00-{TRACE}-{forward.context.span_id:016x}-01"
    else:
        assert (got[:36], got[-2:]) == (sent[:36], "00")
        assert exporter.get_finished_spans() == ()


async def test_failed_tries_and_refusals_are_told(build: Build) -> None:
    system = await build(replicas=2)
    exporter = traced(system)
    system.fleet[0].fault(close_before_head=1)
    system.fleet[1].fault(close_before_head=1)
    for _ in range(2):
        await system.post("/v1/chat/completions", BODY)
    await over(exporter, 2)
    tries = [span for span in exporter.get_finished_spans() if span.name.startswith("forward")]
    failed = [span for span in tries if span.status.status_code is StatusCode.ERROR]
    assert failed
    assert {span.attributes["error.type"] for span in failed} <= {"lost", "status", "connect"}
    exporter.clear()
    status, _, _ = await system.post("/v1/chat/completions", {**BODY, "model": "nope"})
    assert status == 404
    found = await spans(exporter)
    assert found["POST"].attributes["http.response.status_code"] == 404
    assert set(found) == {"POST", "parse"}


async def test_spans_are_sent_by_otlp(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """observe.traces with the standard variables: a collector's stand-in gets them."""
    bodies: list[bytes] = []

    async def take(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        return web.Response(content_type="application/x-protobuf")

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{runner.addresses[0][1]}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    try:
        system = await build(replicas=1, settings={"observe.traces": True})
        await system.post("/v1/chat/completions", BODY)
        await until(lambda: b"tokenize" in b"".join(bodies), "the spans have arrived")  # in one piece or in several
        assert b"prefix-router" in bodies[0]
    finally:
        await runner.cleanup()
