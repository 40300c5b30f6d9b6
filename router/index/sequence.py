"""The order of one rank's event batches: gaps, restarts, replays. A state machine fed with batches; no I/O, no clock.

The publisher numbers its batches from 0 and starts again from 0 when the engine restarts; nothing else on the wire
tells a restart. A restarted publisher may have passed the last number seen here, so a number that fits proves
nothing: a replay always starts *with* the last batch seen, and its bytes must be those remembered. If they differ, or
it is not there any more, everything known is dropped: cold is allowed, stale is not.

    happening                            actions
    connect, nothing seen                RequestReplay(0)
    connect again, last seen n           RequestReplay(n): the same batch n -> go on from n+1; else Clear
    live n+1                             Apply
    live, seen already, same bytes       none (a replay and the live stream overlap)
    live <= n, other bytes               Clear, RequestReplay(0): restarted
    live > n+1                           RequestReplay(n), hold what comes live until the replay ends
    a gap or a connect without replay    Clear, go on with what comes
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

import xxhash

RESTARTED = "the engine restarted"


@dataclass(slots=True, frozen=True)
class Apply:
    """Decode and apply this batch; it is the next one."""

    seq: int
    payload: bytes


@dataclass(slots=True, frozen=True)
class RequestReplay:
    """Ask for batches from `start`; answers to an earlier request must not be fed any more."""

    start: int


@dataclass(slots=True, frozen=True)
class Clear:
    """Drop everything known of this rank. `restarted`: because the engine did, not because batches are missing."""

    reason: str

    @property
    def restarted(self) -> bool:
        return self.reason.endswith(RESTARTED)


Action: TypeAlias = Apply | RequestReplay | Clear

REMEMBERED = 4096
"""Batches whose digests are kept (0.6 MB), and the most that are held: a replay cannot overlap the live stream by
more, which would look like a restart."""


class Sequencer:
    """One rank's stream. Call what happened; carry out the actions returned, in order.

    `max_held` bounds the live batches kept while a replay runs; those beyond are dropped, and
    asked for when it ends.
    """

    def __init__(self, *, can_replay: bool, max_held: int = REMEMBERED) -> None:
        self.can_replay = can_replay
        self.max_held = max_held
        self.last = -1
        """The last batch applied; -1: none since the last clear."""
        self.replaying = False
        self.gaps = 0
        self._first = 0
        self._missed = -1
        self._connected_before = False
        self._digests: dict[int, int] = {}
        self._held: deque[tuple[int, bytes]] = deque()
        self._verify = False
        self._progress = False
        self._for_held = False
        """Whether the latest request was made with live batches held: its answer reaches up to them."""

    def on_connect(self) -> list[Action]:
        """The transport (re)connected: call before feeding any message of the new connection."""
        again, self._connected_before = self._connected_before, True
        self._held.clear()
        self._missed = -1
        if self.can_replay:
            return self._replay()
        return self._forget("reconnected, and no replay to prove that nothing was missed") if again else []

    def on_live(self, seq: int, payload: bytes) -> list[Action]:
        """A published batch."""
        if self.replaying:
            if len(self._held) < self.max_held:
                self._held.append((seq, payload))
            else:
                self._missed = seq
            return []
        if seq == self.last + 1 or (self.last < 0 and not self.can_replay):
            return [self._take(seq, payload)]
        if seq <= self.last:
            if self._digests.get(seq) == xxhash.xxh3_64_intdigest(payload):
                return []
            actions = self._forget(f"sequence went back: {RESTARTED}")
        else:
            self.gaps += 1
            if self.can_replay:
                self._held.append((seq, payload))
                return self._replay()
            return [*self._forget("gap without replay"), self._take(seq, payload)]
        if self.can_replay:
            self._held.append((seq, payload))
            return actions + self._replay()
        return [*actions, self._take(seq, payload)]

    def on_replay(self, seq: int, payload: bytes) -> list[Action]:
        """A replayed batch of the latest request."""
        if not self.replaying:
            return []
        if self._verify:
            self._verify = False
            if seq == self.last:
                if self._digests.get(seq) == xxhash.xxh3_64_intdigest(payload):
                    return []
                return self._forget(f"another batch under the last number seen: {RESTARTED}") + self._replay()
            return [*self._forget("the replay no longer reaches back to the last batch seen"), self._take(seq, payload)]
        if seq == self.last + 1 or self.last < 0:
            return [self._take(seq, payload)]
        if seq <= self.last:
            return []
        return [*self._forget("batches missing within a replay"), self._take(seq, payload)]

    def on_replay_end(self) -> list[Action]:
        """The end marker of the latest request."""
        if not self.replaying:
            return []
        if self._verify:  # the publisher does not have the last batch seen: it is behind it, so it is another one
            return self._forget(f"the replay does not have the last batch seen: {RESTARTED}") + self._replay()
        self.replaying = False
        return self._release(again=self._progress or not self._for_held)

    def on_replay_failed(self) -> list[Action]:
        """No answer in time: go on as if there were no replay, this once."""
        if not self.replaying:
            return []
        self.replaying = False
        actions = self._forget("no answer to the replay request") if self._verify else []
        self._verify = False
        return actions + self._release(again=False, failed=True)

    def _replay(self) -> list[Action]:
        self.replaying, self._progress, self._verify = True, False, self.last >= 0
        self._for_held = bool(self._held)
        return [RequestReplay(max(self.last, 0))]

    def _forget(self, reason: str) -> list[Action]:
        empty = self.last < 0
        self.last = -1
        self._digests.clear()
        return [] if empty else [Clear(reason)]

    def _take(self, seq: int, payload: bytes) -> Apply:
        if self.last < 0:
            self._first = seq
        self.last = seq
        self._progress = True
        self._digests[seq] = xxhash.xxh3_64_intdigest(payload)
        self._digests.pop(seq - REMEMBERED, None)
        return Apply(seq, payload)

    def _release(self, *, again: bool, failed: bool = False) -> list[Action]:
        """Feed what was held. `again`: a hole may be asked for once more. This ends: it takes progress, or a request
        that was made before anything was held, whose answer may be older than the batches missing."""
        actions: list[Action] = []
        while self._held and not self.replaying:
            seq, payload = self._held.popleft()
            if seq < self._first <= self.last:  # overtaken by a replay that starts after it
                continue
            if not again and seq > self.last + 1:
                actions += [*self._forget("gap that the replay did not fill"), self._take(seq, payload)]
                continue
            held, self._held = self._held, deque()
            actions += self.on_live(seq, payload)
            self._held += held
        if self._missed > self.last and not self.replaying:
            if self._progress and not failed:
                actions += self._replay()
            else:
                actions += self._forget("more live batches than can be held during a replay")
        if not self.replaying:
            self._missed = -1
        return actions
