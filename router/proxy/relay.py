"""An answer's body on its way from the replica to the client."""

from __future__ import annotations

import time
from collections.abc import Callable

from router.http.framing import LAST_CHUNK, chunk, events_end
from router.http.response import Response
from router.http.upstream_head import Framing
from router.proxy.watch import ResponseWatcher, Usage

_HOLD_BYTES = 64 * 1024


class Relay:
    """Writes the body as it comes: chunked bytes as they are to clients that understand them, else the payload.

    Of an SSE answer that is not compressed, bytes after the last whole event are held back until the event is whole (no
    client could use them earlier), at most 64 kB. So a stream that breaks can be ended with a well-formed error event;
    one that breaks within a longer event, and every other body, is broken off so that the client sees it. `closing`
    makes a comment for the end of an SSE answer.
    """

    __slots__ = ("_appendable", "_at_boundary", "_closing", "_framed", "_held", "_held_bytes", "_response", "_watch")

    def __init__(
        self,
        response: Response,
        watch: ResponseWatcher,
        framing: Framing,
        closing: Callable[[Usage | None], bytes] | None = None,
    ) -> None:
        self._response = response
        self._watch = watch
        # A Content-Length body has no room for more, a compressed one no place.
        self._closing = closing if watch.sse and not watch.encoded and framing is not Framing.LENGTH else None
        self._framed = framing is Framing.CHUNKED and response.can_chunk and self._closing is None
        self._held: list[bytes] = []
        self._held_bytes = 0
        # A Content-Length body has no room for an error event.
        self._appendable = framing is not Framing.LENGTH
        self._at_boundary = self._appendable

    @property
    def framed(self) -> bool:
        """The client gets the replica's chunks as they are."""
        return self._framed

    def data(self, raw: bytes, payload: bytes, safe: int) -> None:
        """BodySink: from the replica."""
        if payload:
            self._watch.feed(payload, time.monotonic())
        if not self._framed:
            raw = payload
        if not self._watch.sse or self._watch.encoded:
            self._response.write(raw)
            return
        size = len(raw)
        if not self._framed:
            safe = events_end(raw)
            if not safe and self._held:  # the event's end may have begun before
                before = b"".join(piece[-2:] for piece in self._held[-2:])[-2:]
                safe = max(0, events_end(before + raw) - len(before))
        if safe == size and not self._held:
            self._response.write(raw)
            self._at_boundary = self._appendable
        elif safe:
            self._held.append(raw[:safe])
            self._flush()
            self._at_boundary = self._appendable
            if safe < size:
                self._hold(raw[safe:])
        elif size:
            self._hold(raw)

    def finish(self) -> None:
        """The body came whole."""
        in_event = bool(self._held)
        self._flush()
        if self._closing is not None and self._at_boundary and not in_event:
            self._response.write(self._closing(self._watch.usage()))
        self._response.end()

    def fail(self, status: int, message: str) -> None:
        """The body broke off: an error event and a clean end where that is possible, else the connection ends.

        After a clean end the connection stays open: its head promised so, and the client may use it at once.
        """
        response = self._response
        if not (self._watch.sse and self._at_boundary and not self._watch.encoded):
            response.abort()
            return
        event = response.errors.event(status, message)
        response.write(chunk(event) + LAST_CHUNK if self._framed else event)
        response.end()

    def _hold(self, raw: bytes) -> None:
        self._held.append(raw)
        self._held_bytes += len(raw)
        if self._held_bytes > _HOLD_BYTES:
            self._flush()
            self._at_boundary = False

    def _flush(self) -> None:
        if self._held:
            self._response.write(self._held[0] if len(self._held) == 1 else b"".join(self._held))
            self._held = []
            self._held_bytes = 0
