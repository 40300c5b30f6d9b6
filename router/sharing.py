"""What this router, or worker, learns of sessions and of state in one replica: told to the others, theirs learnt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from router.index.redis.notes import StateNote, StepNote
from router.routing.lineage import Lineage, Session
from router.routing.sticky import Key, StickyTable


class Notes(Protocol):
    """A way to others: routers with the same Redis, workers of the same router."""

    learn_step: Callable[[StepNote], None]
    learn_state: Callable[[StateNote], None]

    def step(self, note: StepNote) -> None:
        """Tell them of a session's latest step."""

    def state(self, note: StateNote) -> None:
        """Tell them where a state is kept."""


def share_sessions(ways: Sequence[Notes], lineage: Lineage, sticky: StickyTable) -> None:
    """Connect the tables with all of them, both ways. What one tells is not passed on to another."""

    def tell_step(session: Session) -> None:
        block, tail = session.ends[-1] if session.ends else (0, b"")
        note = StepNote(
            session.tenant,
            session.id,
            session.named,
            session.parent,
            session.home,
            session.prompt_tokens,
            session.shared_tokens,
            session.steps,
            session.kind,
            block,
            tail,
        )
        for way in ways:
            way.step(note)

    def learn_step(note: StepNote) -> None:
        lineage.learn(
            note.tenant,
            note.id,
            named=note.named,
            parent=note.parent,
            home=note.home,
            prompt_tokens=note.prompt_tokens,
            shared_tokens=note.shared_tokens,
            steps=note.steps,
            kind=note.kind,
            end=(note.block, note.tail) if note.block else None,
        )

    def tell_state(key: Key, replica_id: str) -> None:
        for way in ways:
            way.state(StateNote(*key, replica_id))

    def learn_state(note: StateNote) -> None:
        sticky.learn((note.tenant, note.kind, note.id), note.home)

    if ways:
        lineage.tell, sticky.tell = tell_step, tell_state
    for way in ways:
        way.learn_step, way.learn_state = learn_step, learn_state
