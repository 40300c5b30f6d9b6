"""One generation request in flight: its sequences, its reply, and the faults that may hit it."""

from __future__ import annotations

from typing import Protocol

from .engine import Engine
from .faults import Faults
from .http import Reply
from .sequence import Sequence
from .shapes import DONE, ENGINE_DIED, error_body, sse

EVENT_STREAM = "text/event-stream; charset=utf-8"


class AnswerShape(Protocol):
    """How one answer is written down."""

    def opening(self, seq: Sequence) -> bytes: ...
    def token(self, seq: Sequence) -> bytes: ...
    def closing(self, sequences: list[Sequence], prompt_tokens: int) -> bytes: ...
    def whole(self, sequences: list[Sequence], prompt_tokens: int) -> bytes: ...


class Generation:
    """Connects sequences to a reply: tokens flow out as the engine makes them; a lost client aborts the sequences."""

    def __init__(
        self, engine: Engine, faults: Faults, reply: Reply, sequences: list[Sequence], shape: AnswerShape, *, n: int,
        stream: bool,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._faults = faults
        self._reply = reply
        self._sequences = sequences
        self._shape = shape
        self._left = len(sequences)
        self._events = 0
        self._prompt_tokens = sum(seq.prompt_len for seq in sequences[::n])
        for seq in sequences:
            seq.on_token = self._on_token if stream else self._on_quiet_token
        reply.on_disconnect = self._on_disconnect
        engine.submit(sequences)

    def _on_disconnect(self) -> None:
        self._engine.abort(self._sequences)

    def _on_quiet_token(self, seq: Sequence) -> None:
        if not seq.finished:
            return
        self._left -= 1
        if self._left == 0:
            self._reply.send(200, self._shape.whole(self._sequences, self._prompt_tokens))

    def _on_token(self, seq: Sequence) -> None:
        reply = self._reply
        if reply.done:
            return
        if not reply.started:
            reply.start(200, EVENT_STREAM)
        fault = self._faults.stream_fault(self._events)
        if fault:
            self._break(fault)
            return
        data = self._shape.token(seq)
        if seq.generated == 1:
            data = self._shape.opening(seq) + data
        self._events += 1
        reply.chunk(data)
        if seq.finished:
            self._left -= 1
            if self._left == 0:
                closing = self._shape.closing(self._sequences, self._prompt_tokens)
                if closing:
                    reply.chunk(closing)
                reply.end()

    def _break(self, fault: str) -> None:
        if fault == "reset":
            self._reply.reset()
        else:
            error = {"message": ENGINE_DIED, "type": "InternalServerError", "param": None, "code": 500}
            self._reply.chunk(sse({"error": error}) + DONE)
            self._reply.end()
        self._engine.abort(self._sequences)


def engine_died(kind: str) -> bytes:
    """The body of a 500 when the engine behind the HTTP server died."""
    return error_body(kind, 500, ENGINE_DIED, "InternalServerError")
