"""What this router learns of sessions and of state in one replica, told to the other routers, and theirs learnt."""

from __future__ import annotations

from router.index.redis.notes import NoteStream, StateNote, StepNote
from router.routing.lineage import Lineage, Session
from router.routing.sticky import Key, StickyTable


def share_sessions(notes: NoteStream, lineage: Lineage, sticky: StickyTable) -> None:
    """Connect the tables with the stream, both ways."""

    def tell_step(session: Session) -> None:
        block, tail = session.ends[-1] if session.ends else (0, b"")
        notes.step(
            StepNote(
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
        )

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
        notes.state(StateNote(*key, replica_id))

    lineage.tell, notes.learn_step = tell_step, learn_step
    sticky.tell = tell_state
    notes.learn_state = lambda note: sticky.learn((note.tenant, note.kind, note.id), note.home)
