"""What a replay sends: sessions of calls over block ids instead of tokens.

A session's blocks are one list that all its calls share: call k uses its first `prompt // block` ids as its prompt and,
once answered, leaves `(prompt + output - 1) // block` of them cached (the last token's KV is never computed). Ids are
made when the session starts and dropped when it ends, so a million requests do not sit in memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Call:
    """One LLM call. prompt, output: tokens. It is sent `think_s` after the answer before it, and not before
    `offset_s` after its session's start. keys: ids of its own, at least `(prompt + output) // block` of them, where the
    call does not continue the session's list."""

    prompt: int
    output: int
    think_s: float = 0.0
    offset_s: float = 0.0
    keys: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """Calls that run strictly one after the other, the first at `start_s`.

    Its ids are `head` (shared with other sessions), then `own` ids from `first_id` on. name: what clients would send
    as the session header, None: no header.
    """

    start_s: float
    calls: Sequence[Call]
    head: Sequence[int] = ()
    first_id: int = 0
    own: int = 0
    name: str | None = None

    def keys(self) -> list[int]:
        return [*self.head, *range(self.first_id, self.first_id + self.own)]


@dataclass(frozen=True, slots=True)
class Workload:
    """Sessions by start time. block: tokens an id stands for. kv_blocks, slow: what the workload is meant for (see
    Settings); None or empty: no wish."""

    name: str
    block: int
    sessions: Sequence[Session]
    kv_blocks: int | None = None
    slow: Mapping[int, float] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        return sum(len(session.calls) for session in self.sessions)


@dataclass(frozen=True, slots=True)
class Ideal:
    """Hit rates nobody can beat, over prompt tokens. infinite: one cache that forgets nothing. pooled: one LRU cache as
    large as all replicas' together, requests in the order of `nominal_order`."""

    infinite: float
    pooled: float


def ideal(workload: Workload, capacity_blocks: int) -> Ideal:
    """The ideals of a workload on a fleet of `capacity_blocks` blocks in all."""
    seen: set[int] = set()
    hit = total = 0
    for session in workload.sessions:
        known, own = 0, session.keys()
        for call in session.calls:
            keys, start = (own, known) if call.keys is None else (call.keys, 0)
            full = (call.prompt + call.output - 1) // workload.block
            matched = start
            while matched < full and keys[matched] in seen:
                matched += 1
            hit += min(matched, (call.prompt - 1) // workload.block) * workload.block
            total += call.prompt
            seen.update(keys[matched:full])
            known = full if call.keys is None else 0
    infinite = hit / total if total else 0.0
    return Ideal(infinite, infinite if len(seen) <= capacity_blocks else _pooled(workload, capacity_blocks))


NOMINAL_TOKEN_S = 0.01
"""Time a token of the answer takes where the order of requests must be guessed before any replay."""


def nominal_order(workload: Workload) -> Iterator[tuple[list[int], Call]]:
    """Calls by the time they would be sent on an idle fleet, with their ids."""
    times: list[tuple[float, int, int]] = []
    for number, session in enumerate(workload.sessions):
        at = session.start_s
        for step, call in enumerate(session.calls):
            at = max(at + call.think_s, session.start_s + call.offset_s)
            times.append((at, number, step))
            at += call.output * NOMINAL_TOKEN_S
    times.sort()
    live: dict[int, list[int]] = {}
    for _, number, step in times:
        session = workload.sessions[number]
        call = session.calls[step]
        keys = live.get(number) or live.setdefault(number, session.keys())
        yield (keys if call.keys is None else call.keys), call
        if step == len(session.calls) - 1:
            del live[number]


def _pooled(workload: Workload, capacity: int) -> float:
    """Hit rate of one LRU cache of `capacity` blocks; of one chain the tail goes before the head."""
    cache: OrderedDict[int, None] = OrderedDict()
    hit = total = 0
    for keys, call in nominal_order(workload):
        hittable = (call.prompt - 1) // workload.block
        matched = 0
        while matched < hittable and keys[matched] in cache:
            matched += 1
        hit += matched * workload.block
        total += call.prompt
        for key in reversed(keys[: (call.prompt + call.output - 1) // workload.block]):
            cache[key] = None
            cache.move_to_end(key)
        for _ in range(len(cache) - capacity):
            cache.popitem(last=False)
    return hit / total if total else 0.0
