"""What the workers of one router tell each other, through shared memory: a decision counts all of their work.

Told as a state, replaced whenever it changes: work under way on each replica, and what API keys have used of their
limits. Told as messages: prompts sent (so that a burst with one prefix stays together, whichever worker gets it),
answers that a modelled cache learns from, sessions' steps, state that one replica keeps, and requests suspected of
killing replicas.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from router.api.keys import Gate
from router.board import LARGEST_MESSAGE, Board
from router.fleet.feeds import Feeds
from router.fleet.fleet import Fleet
from router.index.redis.inflight import NONE, InFlight
from router.index.redis.notes import StateNote, StepNote
from router.proxy.poison import PoisonGuard

log = logging.getLogger(__name__)

SHORTEST_S, LONGEST_S = 0.001, 0.05
SHARE = 20
"""Telling, and listening, each takes at most a twentieth of the time: large fleets are told of less often."""
HEARTBEAT_S = 0.5
MOST_BLOCKS = LARGEST_MESSAGE // 8 - 64


class Work(msgspec.Struct, array_like=True):
    """On one replica: prompt tokens not yet prefilled, sequences, uncached tokens sent lately."""

    prefill: int
    running: int
    recent: float


class Used(msgspec.Struct, array_like=True):
    """By one API key: requests and tokens since the worker began, requests under way, what its buckets hold."""

    requests: int
    tokens: int
    running: int
    levels: tuple[float | None, float | None]


class State(msgspec.Struct, array_like=True):
    """One worker's. `life`: another number for another process in the same place."""

    life: int
    work: dict[str, Work]
    keys: dict[str, Used]


_encode = msgspec.msgpack.Encoder().encode
_decode_state = msgspec.msgpack.Decoder(State).decode
_decode_message = msgspec.msgpack.Decoder(list[Any]).decode


class _Pace:
    """When something that takes its time may be done again: `begin`, do it, `end`."""

    def __init__(self) -> None:
        self.due = 0.0
        self._began = 0.0

    def begin(self) -> None:
        # Of this thread, not of the clock: a process that had to wait for its core must not fall silent for it.
        self._began = time.thread_time()

    def end(self) -> None:
        took = time.thread_time() - self._began
        self.due = time.monotonic() + min(LONGEST_S, max(SHORTEST_S, took * SHARE))


class Siblings:
    """One worker's side. `changed` and `listen` are called on the request path; both do nothing most of the time.

    `routers`: the work of other routers on a replica, where an index is shared. `pump`: called when room may have come
    free elsewhere. `learn_step`, `learn_state`: set by the owner (router.sharing).
    """

    def __init__(
        self,
        board: Board,
        number: int,
        fleet: Fleet,
        feeds: Feeds,
        gate: Gate,
        poison: Callable[[], PoisonGuard],
        *,
        routers: Callable[[str], InFlight],
        pump: Callable[[], None],
    ) -> None:
        self._own = board.rows[number]
        self._others = {at: row for at, row in enumerate(board.rows) if at != number}
        self._states: dict[int, State] = {}
        self._fleet, self._feeds, self._gate, self._poison = fleet, feeds, gate, poison
        self._routers, self._pump = routers, pump
        self.learn_step: Callable[[StepNote], None] = lambda note: None
        self.learn_state: Callable[[StateNote], None] = lambda note: None
        self._life = time.time_ns() ^ os.getpid()
        self._work: dict[str, InFlight] = {}
        self._telling, self._listening = _Pace(), _Pace()
        self._later: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        fleet.changed, fleet.listen = self.changed, self.listen
        feeds.tell = self._say_chain
        self.watch_poison()
        self._hear(first=True)

    def watch_poison(self) -> None:
        """Have what the guard learns told to the others; again after it was replaced."""
        self._poison().tell = lambda *said: self._say("poison", *said)

    def step(self, note: StepNote) -> None:
        """Tell the others of a session's latest step."""
        self._say("step", note)

    def state(self, note: StateNote) -> None:
        """Tell the others where a state is kept."""
        self._say("state", note)

    def start(self) -> None:
        """Begin to tell and to listen by the clock as well."""
        self._task = asyncio.create_task(self._run(), name="siblings")

    async def close(self) -> None:
        """This worker has no work any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._later is not None:
            self._later.cancel()
        self._own.clear()

    def work(self, replica_id: str) -> InFlight:
        """What the others have sent to a replica and not finished."""
        return self._work.get(replica_id, NONE)

    def changed(self) -> None:
        """Work under way has changed: tell it now, or as soon as it is due."""
        wait = self._telling.due - time.monotonic()
        if wait <= 0:
            self._tell()
        elif self._later is None:
            self._later = asyncio.get_running_loop().call_later(wait, self._tell)

    def listen(self) -> None:
        """Take in what the others told since the last time."""
        now = time.monotonic()
        if now >= self._listening.due:
            self._listening.begin()
            self._hear()
            self._listening.end()

    async def _run(self) -> None:
        told = 0.0
        while True:
            await asyncio.sleep(0.02)
            now = time.monotonic()
            if now - told > HEARTBEAT_S:
                told = now
                self.changed()
            if now >= self._listening.due:
                self.listen()
                self._pump()

    def _tell(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._telling.begin()
        now, work = time.monotonic(), {}
        for replica in self._fleet:
            load = replica.load
            recent = load.own_recent(now)
            if load.running or load.pending_prefill or recent >= 1:
                work[replica.id] = Work(load.pending_prefill, load.running, recent)
        keys = {
            key.entry.name: Used(key.usage.requests, key.usage.tokens, key.usage.running, key.levels())
            for key in self._gate
            if key.limited and key.usage.requests
        }
        try:
            self._own.tell(_encode(State(self._life, work, keys)))
        except ValueError as error:
            log.error("the other workers can't see this one's work: %s", error)
        self._telling.end()

    def _hear(self, *, first: bool = False) -> None:
        changed = False
        for number, row in self._others.items():
            data = row.heard()
            if data is not None:
                changed = True
                self._take(number, _decode_state(data) if data else None, first)
            for message in row.said():
                self._do(_decode_message(message))
        if changed:
            self._sum()

    def _take(self, number: int, state: State | None, first: bool) -> None:
        before = self._states.pop(number, None)
        if state is None:
            return
        self._states[number] = state
        known = {} if before is None or before.life != state.life else before.keys
        for key in self._gate:
            used = state.keys.get(key.entry.name)
            if used is None or not key.limited:
                continue
            if first:  # the others were there before: their buckets know what has been used
                key.lower(used.levels)
                continue
            then = known.get(key.entry.name)
            key.used_elsewhere(
                used.requests - (then.requests if then else 0), used.tokens - (then.tokens if then else 0)
            )

    def _sum(self) -> None:
        states = self._states.values()
        self._work.clear()
        for replica in self._fleet:
            load, name = replica.load, replica.id
            told = [state.work[name] for state in states if name in state.work]
            siblings = InFlight(sum(each.prefill for each in told), sum(each.running for each in told))
            self._work[name] = siblings
            routers = self._routers(name)
            load.other_prefill = siblings.prefill_tokens + routers.prefill_tokens
            load.other_running = siblings.requests + routers.requests
            load.other_recent = sum(each.recent for each in told)
        for key in self._gate:
            if key.limited:
                name = key.entry.name
                key.running_elsewhere = sum(state.keys[name].running for state in states if name in state.keys)

    def _say(self, *message: Any) -> None:
        self._own.say(_encode(message))

    def _say_chain(self, kind: str, name: str, chain: Sequence[int], block_size: int) -> None:
        if chain:
            self._say(kind, name, array("Q", chain[:MOST_BLOCKS]).tobytes(), block_size)

    def _do(self, message: list[Any]) -> None:
        kind, *rest = message
        if kind == "step":
            self.learn_step(msgspec.convert(rest[0], StepNote))
        elif kind == "state":
            self.learn_state(msgspec.convert(rest[0], StateNote))
        elif kind == "poison":
            self._poison().heard(*rest)
        else:
            self._feeds.heard(kind, rest[0], _chain(rest[1]), rest[2])


def _chain(data: bytes) -> list[int]:
    chain = array("Q")
    chain.frombytes(data)
    return chain.tolist()
