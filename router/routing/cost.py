"""What it costs to send a request to a replica: predicted seconds, of this request and of what it brings about.

    cost    = base + queue + crowd + prefill + later - affinity

    base    = what any request waits there: network, the step under way
    queue   = work queued there / rate, less the time since the first of it began to be computed
              (at most half of that prompt's: an answer that hasn't begun says no more)
    crowd   = decode_tokens x sequences running there / rate        each takes its share of every step
            + ANSWER_WEIGHT x answer_s x busy / (1 - busy)          others' prefills slow down our answer
            + company_s x context                                   and so do their answers: a step reads all KV
              context: prompt tokens of all requests there. company_s: learnt (fleet.pace); ANSWER_WEIGHT x half of an
              answer's steps, since two answers are there together for half of their time, and what the first token
              waits for. Half of it for a session that has a home: who leaves because of others who answer there now
              meets others the next time.
    prefill = (recompute_weight x work + ANSWER_WEIGHT x sequences running there x still) / rate
              The first weight is above 1 because recomputing uses up what waiting does not, and puts everyone behind;
              the second because an engine computes prompts in the steps of its running sequences: every answer under
              way there stands still meanwhile. A long new prompt goes where few answers wait for it.
              work: of the session's own uncached tokens + shared / users + LOWER_COST x lower, each token dearer the
              more it attends to (fleet.speed.effort). shared: uncached tokens that other sessions have too; a new copy
              of those also serves the next sessions that begin so (users = copy_users / SPREAD, from 1 to MAX_USERS).
              lower: held, but below the GPU. still: the same with shared / sqrt(users), of up to MAX_CROWD users: who
              stands still now has less of a copy than those who come later, so that a crowd's prefix is not computed
              everywhere at once.
    later   = horizon x crowded + evictions x evicted / rate
              crowded  = (base + step_tokens / rate + decode_tokens x usual sequences / rate) / (1 - busy)
                                                                    a later step, among those who are usually there
              evicted  = tokens of warm sessions that don't fit beside this one; beside a new copy of shared, too,
                         counted once and not for each step
              A session that is placed here comes back here. One that is looking for its first home chooses for all its
              steps (horizon = evictions = steps_left), and early: evicted counts in proportion to how full the cache
              already is, beyond FREE_SHARE of it. One that has a home can still move when its time comes: it looks
              HOME_STEPS ahead, and only what really doesn't fit is counted, once. The same horizon for a replica's
              speed and for the crowd on it: sessions that leave a slow replica for its slowness crowd the fast ones.

    affinity: a session prefers its home by affinity_tokens / rate. The least of several predictions is less than what
              it predicts, so that the home must be beaten by more than what predictions are wrong by.

rate and base: of the fleet, divided by and multiplied with the replica's learnt slowness (fleet.speed); affinity goes
by the fleet's. busy (share of time it prefills) and usual sequences: of the last half minute (fleet.load); crowded is
the mean response time of a server with that utilization (M/M/1). steps_left, step_tokens, answer_s: learnt
(routing.habits, routing.placement).

One currency, so no thresholds: a replica that holds the prompt is left exactly when waiting for it is predicted to cost
more than computing the prompt elsewhere. Without `later`, agents that take turns (no load at any decision) would all
follow the common system prompt to one replica, and a slow replica would keep its sessions for ever, since each single
step is cheaper where the prompt is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from router.fleet.load import RECENT_S, epoch
from router.fleet.speed import ATTENTION_TOKENS
from router.routing.types import Ask, Candidate, Price

ANSWER_WEIGHT = 0.25
"""A second of the whole answer against a second before its first token."""
LOWER_COST = 0.2
"""Loading a token's KV from host memory against computing it: PCIe moves it several times faster than a prefill."""
MAX_USERS = 4.0
"""A copy is never cheaper than a quarter of its price: whoever is sent there first does wait for it."""
MAX_CROWD = 10.0
"""How many users of a copy count for those who stand still for it: in a crowd's first seconds nobody knows of more."""
SPREAD = 3.0
"""Of the sessions that begin with a prefix, one in so many is expected to use one more copy of it."""
FREE_SHARE = 0.1
HOME_STEPS = 4.0
"""Steps that a session with a home plans ahead: moving to a faster replica must pay within these."""
MAX_BUSY = 0.9
HOME_COMPANY = 0.5


@dataclass(slots=True, frozen=True)
class Weights:
    """The knobs. `decode_tokens`: what a running sequence costs a newcomer, in uncached prefill tokens.
    `affinity_tokens`: by how much a session prefers its home, where all else is equal or uncertain."""

    recompute: float = 2.0
    decode_tokens: float = 64.0
    affinity_tokens: float = 512.0


def prices(ask: Ask, candidates: Sequence[Candidate], weights: Weights) -> list[Price]:
    """Each candidate's cost, in seconds. Deterministic, no side effects.

    One loop with nothing made for a candidate but its numbers: a fleet of hundreds is priced for every request.
    """
    decode, recompute, affinity = weights.decode_tokens, weights.recompute, weights.affinity_tokens
    prompt, hittable, home, kept, steps = (
        ask.prompt_tokens,
        ask.hittable_tokens,
        ask.home,
        ask.kept_tokens,
        ask.steps_left,
    )
    common = min(ask.shared_tokens, prompt)
    users = min(MAX_CROWD, max(1.0, ask.copy_users / SPREAD))
    copy, delay = 1.0 / min(users, MAX_USERS), 1.0 / math.sqrt(users)
    horizon = min(HOME_STEPS, steps) if home else steps
    evictions = max(1.0, steps)
    token_s, base_s, growth, kept_too = 1.0 / ask.rate, ask.base_s, ask.step_tokens, kept + ask.shared_tokens
    answer_s, company = ANSWER_WEIGHT * ask.answer_s, ask.company_s * (HOME_COMPANY if home else 1.0)
    now = ask.now
    start, fade = epoch(now)
    attention = 2 * ATTENTION_TOKENS
    longer = 1.0 + prompt / attention
    new, new_still = (prompt - common + common * copy) * longer, (prompt - common + common * delay) * longer
    """Work where nothing is cached: on most replicas."""
    known = per_token = base = alone = 0.0
    found: list[Price] = []
    for place, candidate in enumerate(candidates):
        replica = candidate.replica
        load, slowness = replica.load, replica.speed.slowness
        if slowness != known:  # most replicas are as fast as the one before
            known = slowness
            per_token = slowness * token_s
            base = base_s * slowness
            alone = base + growth * per_token
        if load.start != start:
            load.at(start)
        sequences = load.running + load.other_running
        busy = (load.prefilled * fade + load.other_recent) / RECENT_S * per_token
        if busy > MAX_BUSY:
            busy = MAX_BUSY
        slack = 1.0 - busy

        cached = candidate.held_tokens
        if not cached:
            copied, work, still = common, new, new_still
        else:
            if cached > hittable:
                cached = hittable
            copied = common - cached if common > cached else 0
            longer = 1.0 + (prompt + cached) / attention  # see fleet.speed.effort
            own = prompt - cached - copied
            work, still = (own + copied * copy) * longer, (own + copied * delay) * longer
            if candidate.lower_tokens:
                lower = LOWER_COST * min(candidate.lower_tokens, cached)
                work += lower
                still += lower

        later = 0.0
        if steps:
            usual = sequences - load.absent * fade
            later = horizon * (alone + decode * usual * per_token) / slack
        info = replica.info
        capacity = info.kv_tokens if info is not None else None
        preferred = 0.0
        full = load.warm_tokens + kept_too
        if home:
            if replica.id == home:
                full -= ask.own_warm
                preferred = affinity * token_s
            if capacity and full > capacity:
                later += min(kept + copied, full - capacity) * per_token
        elif capacity and full > FREE_SHARE * capacity:
            share = (full / capacity - FREE_SHARE) / (1.0 - FREE_SHARE)
            later += (evictions * kept + copied) * min(1.0, share) * per_token
        queue = (load.pending_prefill + load.other_prefill) * per_token
        head = load.head
        if head is not None and now > load.since:  # as Load.left
            queue -= min(0.5 * head.prefill * per_token, now - load.since)
        crowd = decode * sequences * per_token + answer_s * busy / slack + company * load.context * slowness
        prefill = (recompute * work + ANSWER_WEIGHT * sequences * still) * per_token
        total = base + queue + crowd + prefill + later - preferred
        found.append((total, load.turn, place, base, queue, crowd, prefill, later, preferred))
    return found
