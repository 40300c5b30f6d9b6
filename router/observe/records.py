"""What is remembered of each request that is over. On the request's way it is only put aside; `told` makes it JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from router.observe.attribution import Attribution
from router.observe.breaks import Break, Relation
from router.prompt.stage import UNREAD
from router.proxy.plan import Outcome
from router.routing.types import Price, Terms


class Offer(msgspec.Struct, frozen=True, gc=False):
    """One candidate of a decision, as it was then. Tokens of the prompt; `price`: if its cost was compared."""

    replica: str
    matched: int
    predicted: int
    lower: int
    price: Price | None

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "replica": self.replica,
            "matched_tokens": self.matched,
            "predicted_tokens": self.predicted,
            "lower_tier_tokens": self.lower,
            "cost_s": None if self.price is None else Terms.of(self.price)._asdict(),
        }


class Record(msgspec.Struct, gc=False):
    """A request. `found`: why its tokens were computed, None if nobody answered. Token counts are None where
    the prompt was not read."""

    id: str
    at: float
    path: str
    model: str
    tenant: str
    session: str | None
    step: int | None
    relation: Relation | None
    broken: Break | None
    status: int
    outcome: Outcome
    reason: str
    prompt_tokens: int | None
    matched: int | None
    best: int | None
    tokens: str
    seconds: Mapping[str, float]
    offers: Sequence[Offer]
    found: Attribution | None
    seq: int = 0

    def told(self) -> dict[str, Any]:
        """As JSON."""
        outcome, usage, found = self.outcome, self.outcome.usage, self.found
        return {
            "id": self.id,
            "at": round(self.at, 3),
            "path": self.path,
            "model": self.model,
            "tenant": self.tenant,
            "session": self.session,
            "step": self.step,
            "relation": self.relation,
            "status": self.status,
            "replica": outcome.target_id,
            "reason": self.reason,
            "prompt_tokens": self.prompt_tokens,
            "matched_tokens": self.matched,
            "best_matched_tokens": self.best,
            "cached_tokens": usage.cached_tokens if usage is not None else None,
            "engine_prompt_tokens": usage.prompt_tokens if usage is not None else None,
            "completion_tokens": usage.completion_tokens if usage is not None else None,
            "tokens": self.tokens,
            "cause": found.cause if found is not None else None,
            "computed_tokens": {str(cause): tokens for cause, tokens in found.tokens.items()} if found else {},
            "break": self.broken.told() if self.broken is not None else None,
            "ttft_ms": None if outcome.ttft_s is None else round(outcome.ttft_s * 1000, 2),
            "total_ms": round(outcome.total_s * 1000, 2),
            "stages_ms": {stage: round(taken * 1000, 3) for stage, taken in self.seconds.items()},
            "tries": [[attempt.target_id, attempt.error] for attempt in outcome.attempts],
            "error": outcome.error,
            "candidates": [offer.told() for offer in self.offers],
            "seq": self.seq,
        }


class Passed(msgspec.Struct, gc=False):
    """A request that was passed on with its prompt unread; its record is made when somebody asks for it."""

    id: str
    path: str
    model: str
    tenant: str
    reason: str
    seconds: dict[str, float]
    at: float = 0.0
    status: int = 0
    outcome: Outcome = msgspec.field(default_factory=Outcome)
    seq: int = 0

    def told(self) -> dict[str, Any]:
        """As JSON, with the fields of every record; None where only reading the prompt would tell."""
        return Record(
            id=self.id,
            at=self.at,
            path=self.path,
            model=self.model,
            tenant=self.tenant,
            session=None,
            step=None,
            relation=None,
            broken=None,
            status=self.status,
            outcome=self.outcome,
            reason=self.reason,
            prompt_tokens=None,
            matched=None,
            best=None,
            tokens=UNREAD,
            seconds=self.seconds,
            offers=(),
            found=None,
            seq=self.seq,
        ).told()
