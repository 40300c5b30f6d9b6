"""Light and heavy requests, and the parts of a fleet that are kept for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from router.routing.placement import Past
from router.routing.types import Candidate


@dataclass(slots=True, frozen=True)
class Pools:
    """Which replicas are for which class of requests, by labels; no labels: all of them.

    A request is light if it continues no session and has fewer than `light_tokens` tokens that nobody shares: little is
    lost wherever it goes, so it goes by load. All others are heavy.
    """

    light_tokens: int = 512
    light: Mapping[str, str] = field(default_factory=dict)
    heavy: Mapping[str, str] = field(default_factory=dict)

    @property
    def divided(self) -> bool:
        """Whether the class of a request matters."""
        return bool(self.light or self.heavy)

    def is_light(self, past: Past) -> bool:
        """The class of a request."""
        return past.found.session is None and past.ask.prompt_tokens - past.ask.shared_tokens < self.light_tokens

    def select(self, past: Past, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Those that are for the request's class; all, while none of them is there."""
        labels = self.light if self.is_light(past) else self.heavy
        if not labels:
            return candidates
        return [c for c in candidates if labels.items() <= c.replica.labels.items()] or candidates
