"""What a policy is given and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from router.fleet.replica import Replica
from router.fleet.speed import PRIOR_BASE_S, PRIOR_RATE


class Ask(msgspec.Struct, frozen=True, gc=False):
    """What is known of a request when it is routed. Token counts are 0 for a request without a prompt.

    `session`: the name the client gives its session, for policies that go by it. `home`: the replica of the session's
    last step. `shared_tokens`: leading tokens that other sessions' prompts have too; `copy_users`: sessions expected to
    use another copy of those. `steps_left`, `step_tokens`: how often the session is expected to come back, and with how
    many new tokens each time. `kept_tokens`: what it will keep in the cache besides the shared part when it is over.
    `own_warm`: of its home's `Load.warm_tokens`, what stands for this session. `base_s`, `rate`: the fleet's speed
    (see fleet.speed); `answer_s`: how long answers take after their first token; `company_s`: by how much a request
    takes longer for each token of context that is decoded beside it (see routing.cost). `now`: seconds on the router's
    clock.
    """

    prompt_tokens: int = 0
    hittable_tokens: int = 0
    """The most an engine can reuse: whole blocks, and at least one token is always computed."""
    session: str | None = None
    home: str = ""
    shared_tokens: int = 0
    copy_users: float = 1.0
    steps_left: float = 0.0
    step_tokens: float = 0.0
    kept_tokens: float = 0.0
    own_warm: float = 0.0
    base_s: float = PRIOR_BASE_S
    rate: float = PRIOR_RATE
    answer_s: float = 0.0
    company_s: float = 0.0
    now: float = 0.0


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """A replica that may take the request, and how many leading prompt tokens the index says it holds.

    `lower_tokens` of them lie below the GPU (host memory, disk) and have to be loaded first.
    """

    replica: Replica
    held_tokens: int = 0
    lower_tokens: int = 0

    def cached(self, ask: Ask) -> int:
        """Prompt tokens it would not have to compute."""
        return min(self.held_tokens, ask.hittable_tokens)


class Terms(NamedTuple):
    """A candidate's cost in seconds, and what it is made of (routing.cost says how)."""

    total: float
    base: float
    queue: float
    crowd: float
    prefill: float
    later: float
    affinity: float

    @classmethod
    def of(cls, price: Price) -> Terms:
        """What a price is made of."""
        return cls(price[0], *price[3:])


Price = tuple[float, int, int, float, float, float, float, float, float]
"""Total, turn, place in the candidates' list: what candidates are ordered by; then the other fields of Terms."""


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The candidates, best first, and why the first is first.

    Reasons: `prefix` (holds more of the prompt than others), `cold` (nobody holds any of it), `shared` (all that
    are equally good hold as much), `spilled` (another holds more, but this one is predicted to answer sooner),
    `session`, `round_robin`, `random`, `least_load`, `only` (no choice), `sticky` (state that is in one replica).
    `prices`: the first candidates' costs, in the same order, where the policy has any.
    """

    order: Sequence[Candidate]
    reason: str
    prices: Sequence[Price] = ()

    @property
    def terms(self) -> list[Terms]:
        """The prices by name, for those who read them: few decisions are looked at."""
        return [Terms.of(price) for price in self.prices]


class Policy(Protocol):
    """Orders candidates. `select` gets at least one candidate and must not change anything but the policy itself.

    `uses_cache`: it looks at what replicas hold, or at sessions found from prompts. For a policy that does not, prompts
    are not read: candidates hold nothing, and a request's tokens are estimated from its body's size.
    """

    name: str
    uses_cache: bool

    def select(self, ask: Ask, candidates: Sequence[Candidate]) -> Decision: ...
