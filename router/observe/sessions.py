"""Sessions as they went: each step, what of it was resent, reused, recomputed, and where its prefix broke.

A session is one tenant's conversation with one model, under the name the client gave it or the one that lineage
(routing.lineage) found for it. A client that changes its history every time hides from lineage; such a step is
recognized by its messages: the last message of the step before is still among them.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import xxhash

from router.observe.attribution import Attribution, Cause
from router.observe.breaks import Break, BreakClass, Comparison, Relation, compare
from router.observe.digest import Digest, Digester
from router.observe.marks import ChainMarks
from router.prompt.requests import ApiRequest

MAX_STEPS = 200
MAX_BREAKS = 20
MAX_HEADS = 6
"""Branches of a session whose last request is remembered: parallel sub-agents, steps tried again."""
_STEP_BYTES = 700
_LOOK_BACK = 8
_TELLING_CHARS = 24
_SAME_SESSION = (Relation.EXTENDS, Relation.REPEATS, Relation.BROKEN)


class Step(msgspec.Struct, gc=False):
    """One request of a session. Token counts; `resent`: in common with the step before, at least.

    `reused`: what the engine says it did not compute (`assumed`: it says nothing, the prediction is taken); None until
    the request is answered. `lost`: of the step before, what this one can't reuse.
    """

    number: int
    at: float
    request_id: str
    prompt: int
    relation: Relation
    resent: int = 0
    lost: int = 0
    resent_exactly: bool = True
    mutated_to: int = 0
    broken: Break | None = None
    replica: str = ""
    reason: str = ""
    matched: int = 0
    reused: int | None = None
    assumed: bool = False
    cause: Cause | None = None
    ttft_s: float | None = None

    def told(self) -> dict[str, Any]:
        """As JSON."""
        reused = self.reused or 0
        return {
            "step": self.number,
            "at": round(self.at, 3),
            "request": self.request_id,
            "prompt_tokens": self.prompt,
            "resent_tokens": self.resent,
            "reused_tokens": self.reused,
            "recomputed_tokens": max(0, self.resent - reused) if self.reused is not None else None,
            "prefilled_tokens": self.prompt - reused if self.reused is not None else None,
            "assumed": self.assumed,
            "relation": self.relation,
            "break": self.broken.told() if self.broken is not None else None,
            "replica": self.replica,
            "reason": self.reason,
            "cause": self.cause,
            "ttft_ms": None if self.ttft_s is None else round(self.ttft_s * 1000, 1),
        }


class _Head(msgspec.Struct, eq=False, gc=False):
    """The last request of one branch."""

    digest: Digest
    marks: ChainMarks
    step: int
    tail: int | None = None
    """A hash that the next step's messages should contain; None where the last message says too little."""

    def __post_init__(self) -> None:
        last = self.digest.messages[-1] if self.digest.messages else None
        self.tail = last.hash if last is not None and last.chars >= _TELLING_CHARS else None


@dataclass(slots=True)
class Totals:
    """Sums over steps, in tokens; `saved_s`: estimated seconds of prefill not done."""

    steps: int = 0
    prompt: int = 0
    resent: int = 0
    reused: int = 0
    lost: int = 0
    saved_s: float = 0.0

    def told(self) -> dict[str, Any]:
        """As JSON: also what would have been prefilled without reuse, and what was."""
        return {
            "steps": self.steps,
            "prompt_tokens": self.prompt,
            "resent_tokens": self.resent,
            "reused_tokens": self.reused,
            "prefilled_tokens": self.prompt - self.reused,
            "lost_to_breaks_tokens": self.lost,
            "hit_rate": round(self.reused / self.prompt, 4) if self.prompt else None,
            "saved_gpu_seconds": round(self.saved_s, 3),
        }


@dataclass(slots=True, eq=False)
class Session:
    """One session's record. `id`: for URLs and lists; `name`: the client's, or lineage's."""

    id: str
    tenant: str
    model: str
    name: str
    named: bool
    began: float
    parent: str | None = None
    last: float = 0.0
    totals: Totals = field(default_factory=Totals)
    replicas: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    steps: deque[Step] = field(default_factory=lambda: deque(maxlen=MAX_STEPS))
    breaks: deque[Step] = field(default_factory=lambda: deque(maxlen=MAX_BREAKS))
    heads: list[_Head] = field(default_factory=list)
    size: int = 0

    def told(self) -> dict[str, Any]:
        """As JSON, without the steps."""
        return {
            "id": self.id,
            "name": self.name,
            "named_by_client": self.named,
            "tenant": self.tenant,
            "model": self.model,
            "parent": self.parent,
            "began": round(self.began, 3),
            "last": round(self.last, 3),
            **self.totals.told(),
            "replicas": dict(self.replicas.most_common(16)),
            "breaks": dict(self.classes),
        }


class Asked(msgspec.Struct, frozen=True, gc=False):
    """A routed request, as sessions need it. `parent`: name of the session it forks from. `fresh`: lineage has not seen
    its session before."""

    request: ApiRequest
    request_id: str
    tenant: str
    model: str
    name: str
    named: bool
    chain: Sequence[int]
    prompt_tokens: int
    block_size: int
    parent: str | None = None
    fresh: bool = False


class Sessions:
    """The table; at most `max_bytes` of it (about), the longest unused sessions are forgotten. For one thread."""

    def __init__(self, digester: Digester, max_bytes: int = 64 << 20, clock: Callable[[], float] = time.time) -> None:
        self.bytes = 0
        self.forgotten = 0
        self.tenants: OrderedDict[tuple[str, str], Totals] = OrderedDict()
        """(tenant, model) -> sums over all steps ever, of the 1000 last used."""
        self._digester = digester
        self._max_bytes = max_bytes
        self._clock = clock
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._tails: dict[tuple[str, str, int], str] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def warm(self, request: ApiRequest) -> Iterator[None]:
        """Before `step`, for a request with many messages: the same work, some of it at a time."""
        return self._digester.warm(request)

    def step(self, asked: Asked) -> tuple[Session, Step]:
        """A request was routed: its session, and what it is to the session's steps before."""
        session = self._sessions.get(_id(asked.tenant, asked.model, asked.name))
        digest = None
        if session is None and not asked.named:
            parent = self._sessions.get(_id(asked.tenant, asked.model, asked.parent or ""))
            if parent is None and asked.fresh:
                digest = self._digester.digest(asked.request)
                parent = self._by_messages(asked, digest)
            if parent is not None:
                digest = digest or self._digester.digest(asked.request)
                if self._closest(parent, asked, digest)[0].relation in _SAME_SESSION:
                    session = parent
        if session is None:
            session = self._begin(asked)
        step = self._take(session, asked, digest)
        session.last = step.at
        session.steps.append(step)
        session.totals.steps += 1
        if step.broken is not None:
            session.classes[step.broken.kind] += 1
            session.totals.lost += step.lost
            if step.broken.kind is not BreakClass.NEW:
                session.breaks.append(step)
        self._settle(session)
        return session, step

    def answered(self, session: Session, step: Step, attribution: Attribution | None, saved_s: float) -> None:
        """The request has its answer. `attribution` None: nobody answered. `saved_s`: seconds of prefill not done."""
        if step.replica:
            session.replicas[step.replica] += 1
        if attribution is None:
            return
        step.cause, step.reused, step.assumed = attribution.cause, attribution.reused, attribution.assumed
        key = (session.tenant, session.model)
        total = self.tenants.get(key)
        if total is None:
            total = self.tenants[key] = Totals()
            if len(self.tenants) > 1000:
                self.tenants.popitem(last=False)
        self.tenants.move_to_end(key)
        total.steps += 1
        total.lost += step.lost
        for each in (session.totals, total):
            each.prompt += step.prompt
            each.resent += step.resent
            each.reused += attribution.reused
            each.saved_s += saved_s

    def find(self, wanted: str, tenant: str | None = None) -> list[Session]:
        """The session of that id, or all of that name; with `tenant`, only its own."""
        by_id = self._sessions.get(wanted)
        found = [by_id] if by_id is not None else [each for each in self._sessions.values() if each.name == wanted]
        return [each for each in found if tenant is None or each.tenant == tenant]

    def latest(self, tenant: str | None = None, model: str | None = None) -> Iterator[Session]:
        """Sessions, last used first; with `tenant`, only its own."""
        for session in reversed(self._sessions.values()):
            if (tenant is None or session.tenant == tenant) and (model is None or session.model == model):
                yield session

    def savings(self, tenant: str | None = None) -> list[dict[str, Any]]:
        """Sums per tenant and model; with `tenant`, only its own."""
        return [
            {"tenant": owner, "model": model, **total.told()}
            for (owner, model), total in self.tenants.items()
            if tenant is None or owner == tenant
        ]

    def _begin(self, asked: Asked) -> Session:
        key = _id(asked.tenant, asked.model, asked.name)
        now = self._clock()
        parent = None if asked.parent is None else _id(asked.tenant, asked.model, asked.parent)
        made = Session(key, asked.tenant, asked.model, asked.name, asked.named, now, parent)
        self._sessions[key] = made
        return made

    def _by_messages(self, asked: Asked, digest: Digest) -> Session | None:
        """The session whose last message is among the request's."""
        for message in reversed(digest.messages[-_LOOK_BACK:]):
            key = self._tails.get((asked.tenant, asked.model, message.hash))
            if key is not None and key in self._sessions:
                return self._sessions[key]
        return None

    def _closest(self, session: Session, asked: Asked, digest: Digest) -> tuple[Comparison, _Head | None]:
        """The branch a request has most to do with, and what it is to that one."""
        best: tuple[tuple[bool, int, int], Comparison, _Head] | None = None
        for head in session.heads:
            compared = compare(head.digest, digest, asked.request)
            rank = (compared.relation is not Relation.UNRELATED, compared.shared, head.step)
            if best is None or rank > best[0]:
                best = rank, compared, head
        return (Comparison(Relation.FIRST, 0), None) if best is None else (best[1], best[2])

    def _take(self, session: Session, asked: Asked, digest: Digest | None) -> Step:
        number = session.totals.steps + 1
        marks = ChainMarks(asked.chain)
        before = [head for head in session.heads if head.marks.blocks and head.marks.run_through(asked.chain)]
        step = Step(number, self._clock(), asked.request_id, asked.prompt_tokens, Relation.FIRST)
        if before:
            head = max(before, key=lambda each: (each.marks.blocks, each.step))
            digest = digest or self._digester.digest(asked.request, head.digest)
            same = len(digest.messages) == len(head.digest.messages) and marks.blocks == head.marks.blocks
            step.relation = Relation.REPEATS if same else Relation.EXTENDS
        else:
            digest = digest or self._digester.digest(asked.request)
            compared, closest = self._closest(session, asked, digest)
            step.relation, step.broken = compared.relation, compared.broken
            if closest is None:
                self._push(session, _Head(digest, marks, number), None)
                return step
            head = closest
        common = head.marks.common(asked.chain) * asked.block_size
        step.resent = min(common, asked.prompt_tokens)
        self._judge(step, head, asked, common)
        replaces = step.relation in (Relation.EXTENDS, Relation.REPEATS, Relation.BROKEN)
        self._push(session, _Head(digest, marks, number), head if replaces else None)
        return step

    def _judge(self, step: Step, head: _Head, asked: Asked, common: int) -> None:
        """What the token chains say about what the messages say."""
        lost = head.marks.blocks * asked.block_size - common
        if step.relation is Relation.UNRELATED:
            step.broken = Break(BreakClass.NEW, None, "", "")
        elif step.relation is Relation.EXTENDS and lost > 2 * asked.block_size:
            # A generation prompt that the next step does not repeat takes a block or two.
            step.broken = Break(BreakClass.TEMPLATE, None, "", "")
            step.relation = Relation.BROKEN
        if step.relation is Relation.BROKEN and step.broken is not None:
            step.lost = lost
            step.mutated_to = head.marks.blocks * asked.block_size
            step.broken = replace(step.broken, tokens_lost=lost)

    def _push(self, session: Session, head: _Head, replaced: _Head | None) -> None:
        kept = [each for each in session.heads if each is not replaced]
        kept.append(head)
        for gone in ([replaced] if replaced is not None else []) + kept[: -MAX_HEADS or None]:
            if gone.tail is not None:
                self._tails.pop((session.tenant, session.model, gone.tail), None)
        session.heads = kept[-MAX_HEADS:]
        if head.tail is not None:
            self._tails[session.tenant, session.model, head.tail] = session.id

    def _settle(self, session: Session) -> None:
        """Books on memory; the longest unused sessions go."""
        heads = sum(head.digest.size + 10_000 for head in session.heads)
        size = 2000 + _STEP_BYTES * (len(session.steps) + len(session.breaks)) + heads
        self.bytes += size - session.size
        session.size = size
        self._sessions.move_to_end(session.id)
        while self.bytes > self._max_bytes and len(self._sessions) > 1:
            _, gone = self._sessions.popitem(last=False)
            self.bytes -= gone.size
            self.forgotten += 1
            for head in gone.heads:
                if head.tail is not None:
                    self._tails.pop((gone.tenant, gone.model, head.tail), None)


def _id(tenant: str, model: str, name: str) -> str:
    return xxhash.xxh3_64_hexdigest("\0".join((tenant, model, name)).encode("utf-8", "surrogatepass"))


def totals_of(sessions: Mapping[tuple[str, str], Totals]) -> Totals:
    """The sum of all."""
    whole = Totals()
    for each in sessions.values():
        for name in Totals.__slots__:
            setattr(whole, name, getattr(whole, name) + getattr(each, name))
    return whole
