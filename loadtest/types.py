"""What a load test sends: workloads made of sessions, sessions made of steps.

A `Step` is one LLM call. Its prompt is built when it is sent, not before: a trace of 60M tokens must not sit in memory.
Every prompt is fixed before the run (teacher-forced: recorded or generated answers are put back into the history,
whatever the engine returns), so two runs send the same bytes and have the same possible hit rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


class WorkloadError(ValueError):
    """A workload cannot be made: the message names the file and line, or the option, and the fix."""


@dataclass(frozen=True, slots=True)
class PrefixChain:
    """A prompt's prefix structure, as far as it is known without the engine's tokenizer.

    keys: one per full block; equal keys at position i mean equal prompts up to and including block i.
    block: units (tokens or characters) per key; total: units of the whole prompt, at least `len(keys) * block`.
    exact: True where units are the engine's tokens; False where they are characters of an approximate rendering.
    """

    keys: Sequence[int]
    block: int
    total: int
    exact: bool


class Prompt(Protocol):
    """One prompt: the part of the request body that carries it, and its prefix structure."""

    @property
    def endpoint(self) -> str: ...

    def body(self) -> dict[str, Any]: ...

    def chain(self) -> PrefixChain: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One LLM call of a session.

    max_tokens: output tokens to ask for. think_s: pause after the previous step's answer before this one is sent (a
    tool running, a human typing). offset_s: not before this many seconds after the session's start (recorded times);
    the later of the two counts, and a step never overtakes the step before it.
    """

    prompt: Prompt
    max_tokens: int
    think_s: float = 0.0
    offset_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Session:
    """Steps that run strictly one after the other. start_s: seconds from the start of the run, None: on arrival."""

    id: str
    steps: Sequence[Step]
    start_s: float | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """A named list of sessions; `settings` says how it was made (for the report and the JSON result)."""

    name: str
    sessions: Sequence[Session]
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        return sum(len(session.steps) for session in self.sessions)

    @property
    def timed(self) -> bool:
        """True where every session has a start time of its own."""
        return bool(self.sessions) and all(session.start_s is not None for session in self.sessions)

    def head(self, sessions: int) -> Workload:
        """The first `sessions` sessions."""
        return replace(self, sessions=self.sessions[:sessions])

    def faster(self, speed_up: float) -> Workload:
        """All recorded times (starts, offsets, think times) divided by `speed_up`."""
        if speed_up <= 0:
            raise WorkloadError(f"speed-up must be above 0, got {speed_up}")
        return replace(
            self,
            sessions=[
                Session(
                    session.id,
                    [
                        replace(step, think_s=step.think_s / speed_up, offset_s=step.offset_s / speed_up)
                        for step in session.steps
                    ],
                    None if session.start_s is None else session.start_s / speed_up,
                )
                for session in self.sessions
            ],
        )

    def with_think_time(self, seconds: float) -> Workload:
        """The same steps with a fixed pause before each but the first, and no recorded offsets."""
        return replace(
            self,
            sessions=[
                Session(
                    session.id,
                    [
                        replace(step, think_s=seconds if position else 0.0, offset_s=0.0)
                        for position, step in enumerate(session.steps)
                    ],
                    session.start_s,
                )
                for session in self.sessions
            ],
        )

    def untimed(self) -> Workload:
        """The same sessions without start times or offsets: for closed loops and for arrivals drawn by the run."""
        return replace(
            self,
            sessions=[
                Session(session.id, [replace(step, offset_s=0.0) for step in session.steps])
                for session in self.sessions
            ],
        )
