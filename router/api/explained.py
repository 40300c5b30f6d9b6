"""A decision in words, for those who ask why: what is sent for POST /explain."""

from __future__ import annotations

from typing import Any

from router.api.routed import Routed
from router.routing.placement import Placement
from router.routing.pools import Pools


def explained(routed: Routed, placement: Placement, pools: Pools) -> dict[str, Any]:
    """The decision and everything it was made from."""
    past, order = routed.past, routed.decision.order
    parsed, first = routed.parsed, order[0].replica
    assert first.info is not None
    prompt, session = routed.known[first.info.kind].prompt, past.found.session or past.found.parent
    return {
        "model": parsed.model,
        "endpoint": parsed.endpoint.value,
        "tokens": {"prompt": prompt.tokens, "exact": prompt.exact, "reason": prompt.reason},
        "chain": {
            "block_size": prompt.block_size,
            "blocks": len(prompt.chain),
            "first": [f"{one:016x}" for one in prompt.chain[:2]],
            "last": [f"{one:016x}" for one in prompt.chain[-2:]],
        },
        "session": {
            "found_by": past.found.how if past.found.parent is None else "fork",
            "id": None if session is None else session.id,
            "steps": None if session is None else session.steps,
            "home": past.ask.home or None,
            "shared_tokens": past.shared_tokens,
            "expected_steps": round(past.ask.steps_left, 1),
            "expected_tokens_a_step": round(past.ask.step_tokens),
            "class": "light" if pools.is_light(past) else "heavy",
        },
        "decision": {"replica": first.id, "reason": routed.decision.reason, "policy": placement.policy.name},
        "candidates": [
            offer.told()
            | {
                "health": candidate.replica.health,
                "running": candidate.replica.load.running,
                "queued_prefill_tokens": candidate.replica.load.queued_tokens,
                "warm_tokens": round(candidate.replica.load.warm_tokens),
                "slowness": round(candidate.replica.speed.slowness, 2),
                "feed": candidate.replica.feed,
            }
            for offer, candidate in zip(routed.offers(), order, strict=True)
        ],
    }
