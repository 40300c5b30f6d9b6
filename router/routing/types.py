"""What a policy is given and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from router.fleet.replica import Replica


@dataclass(slots=True, frozen=True)
class Ask:
    """What is known of a request when it is routed. Token counts are 0 for a request without a prompt."""

    prompt_tokens: int = 0
    hittable_tokens: int = 0
    """The most an engine can reuse: whole blocks, and at least one token is always computed."""
    session: str | None = None


@dataclass(slots=True, frozen=True)
class Candidate:
    """A replica that may take the request, and how many leading prompt tokens the index says it holds."""

    replica: Replica
    held_tokens: int = 0

    def cached(self, ask: Ask) -> int:
        """Prompt tokens it would not have to compute."""
        return min(self.held_tokens, ask.hittable_tokens)


@dataclass(slots=True, frozen=True)
class Decision:
    """The candidates, best first, and why the first is first.

    Reasons: `prefix` (holds more of the prompt than others), `cold` (nobody holds any of it), `shared` (all that
    are equally good hold as much), `spilled` (another holds more, but this one is predicted to answer sooner),
    `session`, `round_robin`, `random`, `least_load`, `only` (no choice).
    """

    order: Sequence[Candidate]
    reason: str
    costs: Sequence[float] | None = None


class Policy(Protocol):
    """Orders candidates. `select` gets at least one candidate and must not change anything but the policy itself."""

    name: str

    def select(self, ask: Ask, candidates: Sequence[Candidate]) -> Decision: ...
