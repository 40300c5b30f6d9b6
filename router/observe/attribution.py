"""Why prompt tokens were computed though they, or a part of them, might have been reused. Pure.

A prompt's tokens from `cached` on were computed. Each has one cause, found from where it lies:

    0 ......... cached ......... matched ......... best ......... known ......... hittable
    reused      |  the chosen    |  another         |  computed      |  never seen by this router: `new`, or `mutated`
                |  replica was   |  replica holds   |  once, held    |  where the session's last step had other tokens
                |  thought to    |  it: `spilled`   |  by nobody     |  and a change by the client is why they are lost
                |  hold it       |  (see below)     |  now           |

| cause | tokens |
|---|---|
| `new` | not computed before, as far as the router knows |
| `mutated` | in the place of tokens that the session's last step had: the client changed what came before |
| `evicted` | the replica had them and dropped them to make room, or was told to |
| `spilled` | another replica holds them; this one was chosen (load, policy) |
| `replica_gone` | they were on a replica that left, restarted, or failed this request |
| `index_stale` | the index was wrong: events were lost, a prediction did not come true, a modelled cache differed |
| `token_mismatch` | the replica's token ids are not the router's |
| `unknown` | none of these can be shown |

The order `cached <= matched <= best <= known` need not hold; a part that is empty has no tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec


class Cause(StrEnum):
    """Why a token was computed."""

    NEW = "new"
    MUTATED = "mutated"
    EVICTED = "evicted"
    SPILLED = "spilled"
    GONE = "replica_gone"
    STALE = "index_stale"
    MISMATCH = "token_mismatch"
    UNKNOWN = "unknown"

    __hash__ = str.__hash__  # the enumeration's own is a call of Python


class Facts(msgspec.Struct, gc=False):
    """What is known of one answered request. Counts are prompt tokens.

    `prompt`: all; `hittable`: the most an engine can reuse. `cached`: what the engine says it reused, None if it says
    nothing. `matched`: what the chosen replica was thought to hold; `confirmed`: of it, what events had confirmed.
    `best`: the most any replica was thought to hold. `known`: the most that was computed before, anywhere.
    `mutated_from`, `mutated_to`: the part whose tokens differ from the session's last step because of a prefix break.
    `block`: tokens a block. `exact`: the router's token ids are the engine's. `engine_prompt`: prompt tokens by the
    engine's count. `tried`: an earlier try of this request failed on the replica that holds the most.
    `lost`: why what `known` counts is held by nobody: causes, each up to so many tokens. `not_held`: up to where
    others were thought to hold what they did not (see Past.likely and observe.doubt).
    `dropped`: the first block that was expected and missed is known to be evicted since the decision. `renewed`: since
    the decision the chosen replica restarted. `followed`: the chosen replica's events say what it holds; else its cache
    is modelled.
    """

    prompt: int
    hittable: int
    matched: int
    best: int
    known: int
    cached: int | None = None
    confirmed: int | None = None
    mutated_from: int = 0
    mutated_to: int = 0
    block: int = 16
    exact: bool = True
    engine_prompt: int | None = None
    distrusted: bool = False
    tried: bool = False
    lost: Sequence[tuple[int, Cause]] = ()
    not_held: int = 0
    dropped: bool = False
    renewed: bool = False
    followed: bool = True


class Attribution(msgspec.Struct, frozen=True, gc=False):
    """`reused` tokens, and the computed ones by cause; `cause`: the one with most tokens, `new` only if alone.

    `assumed`: the engine did not say what it reused; the prediction is taken for it.
    """

    cause: Cause
    reused: int
    tokens: Mapping[Cause, int] = {}
    assumed: bool = False


def attribute(facts: Facts) -> Attribution:
    """The causes of one request's computed tokens; they add up to the prompt less what was reused."""
    assumed = facts.cached is None
    reused = min(facts.matched if facts.cached is None else facts.cached, facts.prompt)
    tokens: dict[Cause, int] = {}
    at, end = reused, max(reused, facts.hittable)
    if facts.prompt > end:
        tokens[Cause.NEW] = facts.prompt - end  # no engine reuses a prompt's last tokens
    for until, cause in _parts(facts) if at < end else ():
        until = min(until, end)
        if until > at:
            tokens[cause] = tokens.get(cause, 0) + until - at
            at = until
    # Less than a block is no miss: engines round down to whole blocks of their own, and the router's may be larger.
    main, most = Cause.NEW, facts.block - 1
    for cause, count in tokens.items():
        if count > most and cause is not Cause.NEW:
            main, most = cause, count
    return Attribution(main, reused, tokens, assumed)


def _parts(facts: Facts) -> list[tuple[int, Cause]]:
    """The parts of the prompt in order: up to which token, and the cause of what was computed there."""
    lost = facts.lost
    mismatch = facts.distrusted or (
        facts.exact and facts.engine_prompt is not None and facts.engine_prompt != facts.prompt
    )
    if mismatch:
        known = [
            (max(facts.matched, facts.best), Cause.MISMATCH),
            (facts.not_held, Cause.STALE),
            (max(facts.known, lost[-1][0] if lost else 0), Cause.MISMATCH),
        ]
    else:
        known = [
            (facts.matched, _unkept(facts)),
            (facts.best, Cause.GONE if facts.tried else Cause.SPILLED),
            (facts.not_held, Cause.STALE),
            *lost,
            (facts.known, lost[-1][1] if lost else Cause.UNKNOWN),
        ]
    return [*known, (facts.mutated_from, Cause.NEW), (facts.mutated_to, Cause.MUTATED), (facts.prompt, Cause.NEW)]


def _unkept(facts: Facts) -> Cause:
    """Why the chosen replica did not have what it was thought to hold."""
    if facts.renewed:
        return Cause.GONE
    if not facts.followed:
        return Cause.STALE
    if facts.dropped:
        return Cause.EVICTED
    return Cause.STALE
