"""Fault switches of a simulated replica: what POST /sim/faults sets."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from typing import Any


@dataclass(slots=True)
class Faults:
    """Defaults mean: healthy. Counts go down as they are used; -1 is off (stream faults) or unlimited (times)."""

    hang: bool = False
    """Accept and read requests, never answer."""
    paused: bool = False
    """The engine makes no steps and doesn't say so (after /pause it does): requests wait, /health is 200."""
    slow: float = 1.0
    """Every step takes this many times as long."""
    status: int = 0
    """Answer inference requests with this status, `status_times` times, each with `status_probability`."""
    status_times: int = -1
    status_probability: float = 1.0
    close_before_head: int = 0
    """Drop the connection of the next n inference requests without a byte."""
    die: bool = False
    """The next inference request kills the process: its connections are reset, nothing listens any more."""
    half_head: int = 0
    """Send half a response head to the next n inference requests, then close."""
    reset_after_events: int = -1
    """Reset a stream's connection after n of its token events, for `stream_fault_times` streams."""
    error_after_events: int = -1
    """After n token events of a stream: the engine-died event, [DONE], and a clean end."""
    stream_fault_times: int = -1
    drop_events: int = 0
    """The next n KV event batches are lost (also for replay)."""

    def change(self, values: dict[str, Any]) -> None:
        """Set several at once. Raises ValueError that names the field; then nothing is changed."""
        known = {item.name: type(getattr(Faults(), item.name)) for item in fields(self)}
        clean: dict[str, Any] = {}
        for name, value in values.items():
            kind = known.get(name)
            if kind is None:
                raise ValueError(f"fault {name!r} is unknown; one of: {', '.join(known)}, kill, restart, clear")
            if kind is float and type(value) is int:
                value = float(value)
            if type(value) is not kind:
                raise ValueError(f"fault {name!r} must be of type {kind.__name__}, got {value!r}")
            clean[name] = value
        for name, value in clean.items():
            setattr(self, name, value)

    def take_status(self) -> int:
        """The error status for this request, 0 for none."""
        if not self.status or not self.status_times or random.random() >= self.status_probability:
            return 0
        if self.status_times > 0:
            self.status_times -= 1
        return self.status

    def take_close(self) -> bool:
        self.close_before_head = max(0, (before := self.close_before_head) - 1)
        return before > 0

    def take_half_head(self) -> bool:
        self.half_head = max(0, (before := self.half_head) - 1)
        return before > 0

    def stream_fault(self, events: int) -> str:
        """What happens to a stream that sent `events` token events: "", "reset" or "error"."""
        if not self.stream_fault_times:
            return ""
        fault = "reset" if events == self.reset_after_events else "error" if events == self.error_after_events else ""
        if fault and self.stream_fault_times > 0:
            self.stream_fault_times -= 1
        return fault
