"""What routers tell each other about requests: which session's step went where, and which replica keeps which state.

A capped stream carries one batch of notes for each flush of a router; every router reads all of it, so that nothing is
asked on the request path. Notes are hints: one that is lost costs a session its affinity once. State notes (a response
that only one replica can continue) are flushed at once, the others within `interval_s`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from router.index.redis.health import STORE_ERRORS, Backoff, Health
from router.index.redis.layout import Layout
from router.index.redis.store import Store

log = logging.getLogger(__name__)

STREAM_CAP = 2048
"""Batches kept: what a router that starts reads first."""
MAX_WAITING = 4096
"""Notes kept while Redis is away; older ones go."""


class StepNote(msgspec.Struct, frozen=True, array_like=True):
    """A session's latest step. `block`, `tail`: where its prompt ended (routing.lineage)."""

    tenant: str
    id: str
    named: bool
    parent: str | None
    home: str
    prompt_tokens: int
    shared_tokens: int
    steps: int
    kind: int
    block: int
    tail: bytes


class StateNote(msgspec.Struct, frozen=True, array_like=True):
    """Where a state is kept (routing.sticky)."""

    tenant: str
    kind: str
    id: str
    home: str


class _Batch(msgspec.Struct, array_like=True):
    router: str
    steps: list[StepNote]
    states: list[StateNote]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Batch).decode


class NoteStream:
    """`learn_step` and `learn_state`, set by the owner, get the other routers' notes in order."""

    def __init__(self, store: Store, layout: Layout, router_id: str, *, interval_s: float = 0.05) -> None:
        self._store, self._key, self._router_id = store, layout.notes, router_id
        self.learn_step: Callable[[StepNote], None] = lambda note: None
        self.learn_state: Callable[[StateNote], None] = lambda note: None
        self._interval_s = interval_s
        self._steps: dict[tuple[str, str], StepNote] = {}
        self._states: list[StateNote] = []
        self._wake = asyncio.Event()
        self._now = asyncio.Event()
        self.health = Health(f"notes of router {router_id}", log)
        self.malformed = 0

    def step(self, note: StepNote) -> None:
        """Tell the others, soon; a session's later step replaces an earlier one that still waits."""
        self._steps[note.tenant, note.id] = note
        if len(self._steps) > MAX_WAITING:
            del self._steps[next(iter(self._steps))]
        self._wake.set()

    def state(self, note: StateNote) -> None:
        """Tell the others now."""
        self._states.append(note)
        del self._states[:-MAX_WAITING]
        self._wake.set()
        self._now.set()

    async def run(self) -> None:
        """Tell and listen until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell())
            tasks.create_task(self._listen())

    async def _tell(self) -> None:
        backoff = Backoff()
        while True:
            await self._wake.wait()
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._now.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            self._now.clear()
            steps, self._steps = self._steps, {}
            states, self._states = self._states, []
            batch = _encode(_Batch(self._router_id, list(steps.values()), states))
            try:
                await self._store.execute("XADD", self._key, "MAXLEN", "~", STREAM_CAP, "*", "d", batch)
                self.health.ok()
                backoff.reset()
            except STORE_ERRORS as error:
                self.health.fail(error)
                self._steps = steps | self._steps
                self._states = states + self._states
                self._wake.set()
                await backoff.wait()

    async def _listen(self) -> None:
        after: bytes = b"0"
        backoff = Backoff()
        block = min(500, int(self._store.timeout_s * 500))
        while True:
            try:
                answer = await self._store.execute("XREAD", "COUNT", 64, "BLOCK", block, "STREAMS", self._key, after)
                backoff.reset()
            except STORE_ERRORS as error:
                self.health.fail(error)
                await backoff.wait()
                continue
            for number, fields in _entries(answer):
                after = number
                self._take(fields.get(b"d", b""))
            if answer:
                await asyncio.sleep(0)

    def _take(self, data: bytes) -> None:
        try:
            batch = _decode(data)
        except msgspec.DecodeError:
            self.malformed += 1
            return
        if batch.router != self._router_id:
            for step in batch.steps:
                self.learn_step(step)
            for state in batch.states:
                self.learn_state(state)


def _entries(answer: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    if not answer:
        return []
    found = next(iter(answer.values()))[0] if isinstance(answer, dict) else answer[0][1]
    return list(found)
