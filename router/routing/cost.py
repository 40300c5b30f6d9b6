"""What it costs to send a request to a replica: predicted seconds, of this request and of what it brings about.

    cost    = base + queue + crowd + prefill + later - affinity

    base    = what any request waits there: network, the step under way
    queue   = uncached prompt tokens queued there / rate
    crowd   = decode_tokens x sequences running there / rate        each takes its share of every step
            + ANSWER_WEIGHT x answer_s x busy / (1 - busy)          others' prefills slow down our answer
    prefill = recompute_weight x (own + shared / users + LOWER_COST x lower) / rate
              own, shared: uncached tokens of this prompt that are the session's own, or that other sessions have too;
              a new copy of those also serves the next sessions that begin so
              (users = copy_users / SPREAD, from 1 to MAX_USERS). lower: held,
              but below the GPU. The weight is above 1 because recomputing uses up what waiting does not, and puts
              everyone behind.
    later   = steps_left x alone + horizon x (crowded - alone) + horizon x evicted / rate
              alone    = base + step_tokens / rate                  a later step, if nobody else were there
              crowded  = (alone + decode_tokens x usual sequences / rate) / (1 - busy)
              evicted  = tokens of warm sessions that don't fit beside this one
              A session that is placed here comes back here. One that is looking for its first home chooses for all its
              steps (horizon = steps_left), and early: evicted counts in proportion to how full the cache already is,
              beyond FREE_SHARE of it. One that has a home can still move when its time comes, and load differences
              seldom last: horizon = 1, and only what really doesn't fit is counted.

rate and base: of the fleet, divided by and multiplied with the replica's learnt slowness (fleet.speed). busy (share of
time it prefills) and usual sequences: of the last half minute (fleet.load); crowded is the mean response time of a
server with that utilization (M/M/1). steps_left, step_tokens, answer_s: learnt (routing.habits, routing.placement).

One currency, so no thresholds: a replica that holds the prompt is left exactly when waiting for it is predicted to cost
more than computing the prompt elsewhere. Without `later`, agents that take turns (no load at any decision) would all
follow the common system prompt to one replica, and a slow replica would keep its sessions for ever, since each single
step is cheaper where the prompt is.
"""

from __future__ import annotations

from dataclasses import dataclass

from router.routing.types import Ask, Candidate, Terms

ANSWER_WEIGHT = 0.25
"""A second of the whole answer against a second before its first token."""
LOWER_COST = 0.2
"""Loading a token's KV from host memory against computing it: PCIe moves it several times faster than a prefill."""
MAX_USERS = 4.0
"""A copy is never cheaper than a quarter of its price: whoever is sent there first does wait for it."""
SPREAD = 3.0
"""Of the sessions that begin with a prefix, one in so many is expected to use one more copy of it."""
FREE_SHARE = 0.1
MAX_BUSY = 0.9


@dataclass(slots=True, frozen=True)
class Weights:
    """The knobs. `decode_tokens`: what a running sequence costs a newcomer, in uncached prefill tokens.
    `affinity_tokens`: by how much a session prefers its home, where all else is equal or uncertain."""

    recompute: float = 2.0
    decode_tokens: float = 64.0
    affinity_tokens: float = 128.0


def terms(ask: Ask, candidate: Candidate, weights: Weights) -> Terms:
    """The cost of one candidate, in seconds. Deterministic, no side effects."""
    replica = candidate.replica
    load = replica.load
    rate = ask.rate / replica.speed.slowness
    base = ask.base_s * replica.speed.slowness
    prefill_rate, sequences = load.recent(ask.now)
    busy = min(MAX_BUSY, prefill_rate / rate)
    slack = 1.0 - busy
    at_home = replica.id == ask.home

    cached = candidate.cached(ask)
    shared = max(0, min(ask.shared_tokens, ask.prompt_tokens) - cached)
    own = ask.prompt_tokens - cached - shared
    users = min(MAX_USERS, max(1.0, ask.copy_users / SPREAD))
    prefill = weights.recompute * (own + shared / users + LOWER_COST * min(candidate.lower_tokens, cached)) / rate

    alone = base + ask.step_tokens / rate
    crowded = (alone + weights.decode_tokens * sequences / rate) / slack
    horizon = min(1.0, ask.steps_left) if ask.home else ask.steps_left
    later = ask.steps_left * alone + horizon * (crowded - alone)
    if replica.kv_tokens:
        kept, capacity = ask.kept_tokens, replica.kv_tokens
        full = load.warm_tokens - (ask.own_warm if at_home else 0.0) + kept + ask.shared_tokens
        if ask.home:
            evicted = min(kept, max(0.0, full - capacity))
        else:
            evicted = kept * min(1.0, max(0.0, full / capacity - FREE_SHARE) / (1.0 - FREE_SHARE))
        later += max(1.0, horizon) * evicted / rate
    return Terms(
        base=base,
        queue=load.queued_tokens / rate,
        crowd=weights.decode_tokens * load.sequences / rate + ANSWER_WEIGHT * ask.answer_s * busy / slack,
        prefill=prefill,
        later=later,
        affinity=weights.affinity_tokens / rate if at_home else 0.0,
    )
