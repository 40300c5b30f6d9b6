"""OpenTelemetry traces of requests, for `observe.traces`; needs the extra `otel`.

    POST /v1/chat/completions      server span; its parent is the client's traceparent
      parse, render, ..., decide   one span a stage, made when the request is over from the times measured anyway
      forward REPLICA              client span, one a try; the replica gets it as its traceparent

Where spans go, and how many, is for OpenTelemetry's own variables: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER,
OTEL_SERVICE_NAME. Spans are sent by a thread of the SDK's. They never hold a prompt.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from router.http.errors import Headers
from router.http.message import Request
from router.prompt.stage import Took
from router.proxy.plan import Attempt

_W3C = TraceContextTextMapPropagator()
_TOLD = {
    "model": "gen_ai.request.model",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "prompt_tokens": "prefix_router.prompt_tokens",
    "matched_tokens": "prefix_router.matched_tokens",
    "cached_tokens": "prefix_router.cached_tokens",
    "replica": "prefix_router.replica",
    "reason": "prefix_router.reason",
    "cause": "prefix_router.cause",
    "session": "prefix_router.session",
    "step": "prefix_router.step",
    "id": "prefix_router.request",
    "tokens": "prefix_router.tokens",
}


class Tracing:
    """`provider`: where spans go; the default sends them by OTLP over HTTP."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider or _exporting()
        self._tracer = self._provider.get_tracer("prefix-router")

    @contextmanager
    def request(self, request: Request, took: Took) -> Iterator[Traced]:
        """One request, from before its first stage. An exception with a `status` is the answer it got."""
        carrier = {
            name: value.decode("latin-1")
            for name in ("traceparent", "tracestate")
            if (value := request.header(name.encode())) is not None
        }
        began = time.time_ns() - int(sum(took.seconds.values()) * 1e9)
        attributes = {"http.request.method": request.method, "url.path": request.path}
        context = _W3C.extract(carrier)
        name = f"{request.method} {request.path}"
        span = self._tracer.start_span(name, context, SpanKind.SERVER, attributes, start_time=began)
        traced = Traced(self._tracer, span)
        try:
            yield traced
        except Exception as error:
            traced.answered(getattr(error, "status", 500))
            raise
        except BaseException:
            traced.answered(499)
            raise
        finally:
            traced.stages(took.seconds, began)
            span.end()

    def close(self) -> None:
        """Send what is left; may take the exporter's time-out."""
        self._provider.shutdown()


class Traced:
    """One request's spans."""

    __slots__ = ("_context", "_span", "_tracer", "_tries")

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._context = set_span_in_context(span)
        self._tries: dict[str, Span] = {}

    def sending(self, replica_id: str) -> Headers:
        """A try begins: the headers that the replica gets, in the place of the client's."""
        attributes = {"prefix_router.replica": replica_id}
        span = self._tracer.start_span(f"forward {replica_id}", self._context, SpanKind.CLIENT, attributes)
        self._tries[replica_id] = span
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, set_span_in_context(span))
        return [(name.encode(), value.encode("latin-1")) for name, value in carrier.items()]

    def sent(self, attempt: Attempt) -> None:
        """A try is over."""
        span = self._tries.pop(attempt.target_id, None)
        if span is None:
            return
        if attempt.status is not None:
            span.set_attribute("http.response.status_code", attempt.status)
        span.set_attribute("prefix_router.connect_ms", round(attempt.connect_s * 1000, 3))
        if attempt.error is not None:
            span.set_attribute("error.type", attempt.error)
            span.set_status(Status(StatusCode.ERROR, attempt.message or None))
        span.end()

    def told(self, record: Mapping[str, Any]) -> None:
        """What is known of the answered request (as in /requests/ID)."""
        for name, attribute in _TOLD.items():
            if record[name] is not None:
                self._span.set_attribute(attribute, record[name])
        self.answered(record["status"])

    def answered(self, status: int) -> None:
        """The client's status."""
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))

    def stages(self, seconds: Mapping[str, float], began: int) -> None:
        """Spans of the stages, one after the other from `began` (ns since 1970)."""
        if not self._span.is_recording():
            return
        at = began
        for stage, took in seconds.items():
            if stage == "connect":  # part of a try
                continue
            end = at + int(took * 1e9)
            self._tracer.start_span(stage, self._context, start_time=at).end(end)
            at = end


def _exporting() -> TracerProvider:
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": "prefix-router"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
