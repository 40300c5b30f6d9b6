"""Which session a request continues, found from the prompt itself.

An agent resends its history with each step, so step k + 1's prompt begins with the whole of step k's prompt. A session
is remembered by where its last prompt *ended*: the hash of the last full block, and the tokens after it. A new prompt
that runs through that point continues the session. What sessions merely share (a system prompt, tools) ends no
prompt, so it neither ties sessions together nor tears them apart.

    step 1   [system][question]<|im_start|>assistant\\n            ends at E1
    step 2   [system][question]<|im_start|>assistant\\n[answer][tool result]<|im_start|>assistant\\n
                               E1 lies on this prompt: the same session; it ends at E2 now

A prompt that runs through an end which another step has already passed is a fork: a sub-agent, or a step tried again
another way. It becomes a session of its own that knows its parent. A name sent by the client (a header) decides where
prompts can't: after an edit of the history the name still says whose step this is.

Templates write something behind the last message that the next step's prompt does not have (a generation prompt with an
opened thought, say). Those tokens are the same in every prompt of a model, so the common tail of recent prompts is
left out of the end.

Bounded: `max_sessions` sessions, the longest unused are forgotten; each is 1 to 2 kB, most of it for its ends.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress

import msgspec

from router.blocks import TOKEN_BYTES
from router.routing.habits import Habits

ENDS_KEPT = 4
"""Ends of earlier steps that still show a fork or a repeated step."""
GROWTH_STEPS = 3.0
_SAME_END = 8
"""Sessions remembered for one block hash; more have the same prompt up to their last few tokens."""
_TAIL_TOKENS = 32
_TAILS_COMPARED = 8
_TAILS_KEPT = 256
_ALIVE_GAPS = 5.0
_ALIVE_S = (10.0, 600.0)


@dataclass(slots=True, eq=False)
class Session:
    """A conversation as the router sees it.

    `id`: the client's name for it, or one made here. `home`: the replica of its last step. `shared_tokens`: leading
    tokens that others' prompts had too when it began. `steps`: prompts sent. `growth`: tokens by which its last prompt
    was longer than the one before.
    """

    id: str
    tenant: str
    named: bool
    parent: str | None = None
    home: str = ""
    prompt_tokens: int = 0
    shared_tokens: int = 0
    steps: int = 0
    growth: int = 0
    active: int = 0
    last_used: float = 0.0
    kind: int = 0
    warm_at: str = ""
    warm: float = 0.0
    sent_here: bool = True
    ends: list[tuple[int, bytes]] = field(default_factory=list)
    """Of its last ENDS_KEPT steps, the current one last."""


class Found(msgspec.Struct, frozen=True, gc=False):
    """What is known of a request's past. `session` is None for the first step of one.

    `how`: `end` (runs through the session's last prompt), `name` (only the client's name says so: the prompt does not
    extend the last one), `new`. `parent`: the session this one forks from.
    """

    session: Session | None
    how: str
    parent: Session | None = None


NEW = Found(None, "new")


class Lineage:
    """The table of sessions of one router. For one thread. `clock`: seconds, steady."""

    def __init__(self, clock: Callable[[], float], max_sessions: int = 100_000, prefix: str = "s") -> None:
        """`prefix`: of the ids made here; routers that tell each other of their sessions need different ones."""
        if max_sessions < 1:
            raise ValueError(f"max_sessions must be at least 1, got {max_sessions}")
        self.max_sessions = max_sessions
        self.habits = Habits()
        self._clock = clock
        self._sessions: OrderedDict[int, Session] = OrderedDict()
        """By id(), least recently used first."""
        self._prefix = prefix
        self._ids: dict[tuple[str, str], Session] = {}
        """By (tenant, id)."""
        self._ends: dict[int, list[tuple[bytes, Session]]] = {}
        self._idle: OrderedDict[int, Session] = OrderedDict()
        """Sessions counted as warm somewhere, least recently used first."""
        self._made = 0
        self._tails: OrderedDict[tuple[str, bytes], tuple[bytes, deque[int]]] = OrderedDict()
        """(model, last token) -> the last prompt's tail, and what recent ones had in common with the one before."""
        self.tell: Callable[[Session], None] | None = None
        """Called at each step, for those who tell other routers."""
        self.warm_tokens: dict[str, float] = {}
        """Replica id -> tokens that its sessions are expected to come back for."""

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def find(self, chain: Sequence[int], ids: bytes | None, block_size: int, name: str | None, tenant: str) -> Found:
        """Whose step a prompt is; nothing is changed. `ids`: the prompt's packed token ids, if they are known."""
        named = self._ids.get((tenant, name)) if name is not None else None
        if named is not None and not named.named:
            named = None  # an id made here that a client happens to use as a name
        session, current = self._through(chain, ids, block_size, tenant)
        if session is not None and (name is None or not session.named or session is named):
            return Found(session, "end") if current else Found(None, "new", session)
        if named is not None:
            return Found(named, "name")
        return NEW if session is None else Found(None, "new", session)

    def _through(
        self, chain: Sequence[int], ids: bytes | None, block_size: int, tenant: str
    ) -> tuple[Session | None, bool]:
        """The session with the latest end that a prompt runs through, and whether that is its current end."""
        ends = self._ends
        # In C: a new prompt is gone through whole, and a long one has tens of thousands of blocks.
        for depth in compress(range(len(chain), 0, -1), map(ends.__contains__, reversed(chain))):
            bucket = ends[chain[depth - 1]]
            at = depth * block_size * TOKEN_BYTES
            best: tuple[int, bool, int, Session] | None = None
            for place, (tail, session) in enumerate(bucket):
                if session.tenant != tenant or (tail and (ids is None or ids[at : at + len(tail)] != tail)):
                    continue
                current = session.ends[-1] == (chain[depth - 1], tail)
                if best is None or (len(tail), current, place) > best[:3]:
                    best = (len(tail), current, place, session)
            if best is not None:
                return best[3], best[1]
        return None, False

    def sent(
        self,
        found: Found,
        replica_id: str,
        chain: Sequence[int],
        ids: bytes | None,
        block_size: int,
        prompt_tokens: int,
        shared_tokens: int,
        name: str | None,
        tenant: str,
        model: str = "",
    ) -> Session:
        """A prompt was sent to a replica: its session, new or moved on. `shared_tokens` counts for a new one."""
        now = self._clock()
        session = found.session
        if session is None:
            session = self._begin(found, name, tenant, prompt_tokens, shared_tokens)
        else:
            grown = prompt_tokens - session.prompt_tokens
            if grown > 0:
                session.growth = grown
                self.habits.continued(session.kind, grown, now - session.last_used if not session.active else None)
        session.steps += 1
        session.sent_here = True
        session.home = replica_id
        session.prompt_tokens = prompt_tokens
        session.shared_tokens = min(session.shared_tokens, prompt_tokens)
        session.active += 1
        session.last_used = now
        self._sessions.move_to_end(id(session))
        end = self._end_of(chain, ids, block_size, model)
        if end is not None:
            self._put_end(session, end)
        self._warm(session, now)
        if self.tell is not None:
            self.tell(session)
        return session

    def learn(
        self,
        tenant: str,
        session_id: str,
        *,
        named: bool,
        parent: str | None,
        home: str,
        prompt_tokens: int,
        shared_tokens: int,
        steps: int,
        kind: int,
        end: tuple[int, bytes] | None,
    ) -> None:
        """Another router sent a step of this session; older news than what is known is ignored."""
        session = self._ids.get((tenant, session_id))
        if session is None:
            session = self._add(Session(session_id, tenant, named, parent, kind=kind))
        elif session.steps >= steps:
            return
        session.home, session.steps, session.sent_here = home, steps, False
        session.prompt_tokens, session.shared_tokens = prompt_tokens, shared_tokens
        session.last_used = self._clock()
        self._sessions.move_to_end(id(session))
        if end is not None:
            self._put_end(session, end)
        self._warm(session, session.last_used)

    def moved(self, session: Session, replica_id: str) -> None:
        """The step just sent goes to another replica: the first one failed."""
        session.home = replica_id
        session.active += 1
        self._warm(session, self._clock())

    def ended(self, session: Session) -> None:
        """A step's answer is complete, or failed."""
        session.active = max(0, session.active - 1)
        session.last_used = self._clock()

    def expected_tokens(self, session: Session | None, kind: int, prompt_tokens: int, shared_tokens: int) -> float:
        """Tokens of its own that a session will have kept when it is over."""
        own = prompt_tokens - (session.shared_tokens if session is not None else shared_tokens)
        return max(0, own) + min(GROWTH_STEPS, self.habits.steps_left(kind)) * self.habits.growth(kind)

    def _begin(self, found: Found, name: str | None, tenant: str, prompt_tokens: int, shared_tokens: int) -> Session:
        self._made += 1
        made = Session(
            name if name is not None else f"{self._prefix}{self._made:x}",
            tenant,
            name is not None,
            parent=found.parent.id if found.parent is not None else None,
            shared_tokens=shared_tokens,
            kind=self.habits.kind(prompt_tokens, shared_tokens),
        )
        return self._add(made)

    def _add(self, made: Session) -> Session:
        self._sessions[id(made)] = made
        self._ids[made.tenant, made.id] = made
        while len(self._sessions) > self.max_sessions:
            self._forget(self._sessions.popitem(last=False)[1])
        return made

    def _forget(self, session: Session) -> None:
        self._cool(session)
        if self._ids.get((session.tenant, session.id)) is session:
            del self._ids[session.tenant, session.id]
        for end, tail in session.ends:
            self._drop_end(session, end, tail)

    def _end_of(self, chain: Sequence[int], ids: bytes | None, block_size: int, model: str) -> tuple[int, bytes] | None:
        """Where a prompt ends: its last full block before the generation prompt, and the ids behind that block."""
        if ids is None:
            return (chain[-1], b"") if chain else None
        size = block_size * TOKEN_BYTES
        until = len(ids) - self._generation_prompt(model, ids)
        depth = until // size
        if not 0 < depth <= len(chain):
            return None  # shorter than a block: nothing of it is cached anywhere
        return chain[depth - 1], ids[depth * size : until]

    def _put_end(self, session: Session, end: tuple[int, bytes]) -> None:
        """Moves the session's end."""
        if session.ends and session.ends[-1] == end:
            return  # the same prompt again
        if end in session.ends:
            session.ends.remove(end)
            self._drop_end(session, *end)
        elif len(session.ends) == ENDS_KEPT:
            self._drop_end(session, *session.ends.pop(0))
        session.ends.append(end)
        block, tail = end
        bucket = self._ends.setdefault(block, [])
        bucket.append((tail, session))
        if len(bucket) > _SAME_END:
            tail, other = bucket.pop(0)
            other.ends = [one for one in other.ends if one != (block, tail)]

    def _drop_end(self, session: Session, block: int, tail: bytes) -> None:
        bucket = self._ends.get(block)
        if bucket is None:
            return
        kept = [entry for entry in bucket if entry != (tail, session)]
        if kept:
            self._ends[block] = kept
        else:
            del self._ends[block]

    def _generation_prompt(self, model: str, ids: bytes) -> int:
        """Bytes at the end of `ids` that every recent prompt of the model with the same last token had as well."""
        tail = ids[-_TAIL_TOKENS * TOKEN_BYTES :]
        key = (model, tail[-TOKEN_BYTES:])
        last, lengths = self._tails.get(key) or (b"", deque(maxlen=_TAILS_COMPARED))
        if tail != last:
            self._tails[key] = tail, lengths
            self._tails.move_to_end(key)
            if last:
                lengths.append(_common_tail(tail, last))
            elif len(self._tails) > _TAILS_KEPT:
                self._tails.popitem(last=False)
        return min(lengths, default=0)

    def _warm(self, session: Session, now: float) -> None:
        """Count the session's expected tokens for its home, and no longer those of sessions that stayed away."""
        self._cool(session)
        share = self.habits.returns(session.kind)
        session.warm = share * self.expected_tokens(session, session.kind, session.prompt_tokens, 0)
        session.warm_at = session.home
        self.warm_tokens[session.home] = self.warm_tokens.get(session.home, 0.0) + session.warm
        self._idle[id(session)] = session
        low, high = _ALIVE_S
        alive = min(high, max(low, _ALIVE_GAPS * self.habits.gap_s))
        while self._idle:
            oldest = next(iter(self._idle.values()))
            if oldest.active or now - oldest.last_used < alive:
                break
            self._cool(oldest)
            if oldest.sent_here:
                self.habits.ended(oldest.kind)

    def _cool(self, session: Session) -> None:
        if self._idle.pop(id(session), None) is not None:
            left = self.warm_tokens.get(session.warm_at, 0.0) - session.warm
            if left > 0.5:
                self.warm_tokens[session.warm_at] = left
            else:
                self.warm_tokens.pop(session.warm_at, None)
            session.warm = 0.0


def _common_tail(one: bytes, other: bytes) -> int:
    """Bytes of the longest common tail, in whole tokens."""
    same = 0
    for at in range(TOKEN_BYTES, min(len(one), len(other)) + 1, TOKEN_BYTES):
        if one[-at : len(one) - at + TOKEN_BYTES] != other[-at : len(other) - at + TOKEN_BYTES]:
            break
        same = at
    return same
