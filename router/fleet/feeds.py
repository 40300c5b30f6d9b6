"""How the index learns what each replica holds: its KV events, or a model of its cache where there are none.

A replica has two entries in the index, so that neither can disturb the other: one fed by its events, and its shadow,
fed with the prompts routed to it. The shadow answers for engines without events, and for prompts whose token ids the
router can't know (approximate keys, which no event will ever name).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router.engines import EventSource
from router.fleet.replica import Feed, Replica
from router.fleet.shared import SharedIndex
from router.index.intake import FeedStatus
from router.index.ledger import CacheLedger
from router.index.memory import MemoryIndex
from router.index.shadow import ShadowCache
from router.index.subscriber import EventSubscriber
from router.index.types import Clears, Match

log = logging.getLogger(__name__)

NOTHING = Match(0)
_NEVER = Clears()
ONE_BINDS = "events.bind takes connections in one process; set workers: 1"
NO_EVENTS = "the engine names no KV event source and none is configured"


@dataclass(slots=True)
class _Source:
    """What follows one replica."""

    shadow: ShadowCache
    subscriber: EventSubscriber | None = None
    settings: tuple[EventSource, str, int] | None = None
    task: asyncio.Task[None] | None = None
    block_size: int = 0


class Feeds:
    """The event subscribers and shadows of all replicas, over one index.

    With a `shared` index agents follow the events; only shadows and predictions are kept here then.
    """

    def __init__(self, index: MemoryIndex, *, shadow_blocks: int) -> None:
        self.index = index
        self.shared: SharedIndex | None = None
        self._shadow_blocks = shadow_blocks
        self._sources: dict[str, _Source] = {}
        self.tell: Callable[[str, str, Sequence[int], int], None] | None = None
        """Set when there are other workers: (what, replica or entry, chain, block size), for their `heard`."""

    @property
    def _owns_slots(self) -> bool:
        """A mirror gives replicas their slots in the index itself."""
        return self.shared is None or self.shared.mirror is None

    async def follow(self, replica: Replica, model: str, block_size: int) -> None:
        """Start, or restart after the replica was away or `block_size` (canonical, in tokens) changed."""
        assert replica.info is not None
        if self._owns_slots:
            self.index.add_replica(replica.id)
        self.index.add_replica(_shadow_id(replica.id))
        source = self._sources.get(replica.id)
        if source is None:
            capacity = replica.info.kv_tokens or self._shadow_blocks * block_size
            source = self._sources[replica.id] = _Source(ShadowCache(capacity))
        # A replica that was away may have restarted: its modelled cache starts empty, its events tell for themselves.
        self.index.apply(_shadow_id(replica.id), source.shadow.clear())
        if self.shared is not None:
            source.block_size = block_size
            replica.feed, replica.feed_reason = self.shared.feed(replica, block_size)
            return
        events, why = replica.events or replica.info.source(replica.rank), NO_EVENTS
        if events is not None and events.bind and self.tell is not None:
            events, why = None, ONE_BINDS
        settings = None if events is None else (events, model, block_size)
        if settings is not None and settings == source.settings:
            return
        await self._stop(source)
        self.index.clear_replica(replica.id)
        source.settings = settings
        replica.feed, replica.feed_reason = Feed.SHADOW, why if events is None else "connecting to its KV events"
        if events is not None:
            ledger = CacheLedger(model, block_size, counts_copies=replica.info.kind == "vllm")
            source.subscriber = EventSubscriber(
                replica.id,
                events.endpoint,
                events.replay_endpoint,
                events.topic,
                ledger,
                self.index,
                bind=events.bind,
                on_change=lambda status: _mark(replica, status),
            )
            source.task = asyncio.create_task(_run(replica, source.subscriber), name=f"events {replica.id}")
        else:
            log.warning("replica %s: %s: its cache is modelled (approximate)", replica.id, why)

    async def unfollow(self, replica_id: str) -> None:
        """Stop following a replica and forget what it holds."""
        source = self._sources.pop(replica_id, None)
        for entry in (replica_id, _shadow_id(replica_id)):
            self.index.clears.pop(entry, None)
        if source is not None:
            await self._stop(source)
        if self._owns_slots:
            self.index.remove_replica(replica_id)
        self.index.remove_replica(_shadow_id(replica_id))

    async def lookup(self, chain: Sequence[int]) -> Mapping[str, Match]:
        """Who holds how much of a prompt's chain; read the answer with `held`."""
        return await (self.index if self.shared is None else self.shared).lookup(chain)

    async def close(self) -> None:
        """Stop following everyone."""
        for replica_id in list(self._sources):
            await self.unfollow(replica_id)

    def held(self, replica: Replica, matches: Mapping[str, Match], exact: bool) -> Match:
        """Of a lookup's matches, the one that speaks for `replica` and a prompt with or without exact token ids."""
        if self.shared is not None and (source := self._sources.get(replica.id)) is not None:
            replica.feed, replica.feed_reason = self.shared.feed(replica, source.block_size)
        return matches.get(_entry(replica, exact), NOTHING) if matches else NOTHING

    def entry(self, replica: Replica, exact: bool) -> str:
        """The index's entry that speaks for `replica`: its own, fed by its events, or its shadow's."""
        return _entry(replica, exact)

    def followed(self, replica: Replica, exact: bool) -> bool:
        """Whether the replica's events say what it holds of such a prompt."""
        return _followed(replica, exact)

    @property
    def answers(self) -> bool:
        """Whether lookups tell what events say by now; not while a shared index can't be read."""
        return self.shared is None or self.shared.answers

    @property
    def failures(self) -> int:
        """How often a shared index could not be read."""
        return 0 if self.shared is None else self.shared.failures

    def history(self, entry: str) -> Clears:
        """How often all that an entry held was forgotten, and why."""
        return self.index.clears.get(entry, _NEVER)

    def heard_at(self, entry: str) -> float:
        """time.monotonic() of the last batch of events applied for an entry; 0 if there was none."""
        source = self._sources.get(entry)
        return (source.subscriber.status.last_event_at or 0.0) if source is not None and source.subscriber else 0.0

    def expect(self, replica: Replica, chain: Sequence[int], held: Match, exact: bool) -> None:
        """A prompt was just sent to `replica`: for a short while it counts as held there."""
        # Only what is not confirmed: the overlay is consulted just where confirmed blocks end. Confirmed blocks that
        # are not in this index (direct lookups) can't end there: the whole chain is predicted.
        direct = self.shared is not None and self._owns_slots
        unconfirmed = chain if direct else chain[held.blocks - held.predicted :]
        self.index.predict(_entry(replica, exact), unconfirmed)
        if self.tell is not None:
            self.tell("sent", _entry(replica, exact), unconfirmed, 0)

    def answered(self, replica: Replica, chain: Sequence[int], block_size: int, exact: bool) -> None:
        """`replica` has begun to answer the prompt: a modelled cache now has it; events tell for themselves."""
        source = self._sources.get(replica.id)
        if source is not None and not _followed(replica, exact):
            self.index.apply(_shadow_id(replica.id), source.shadow.touch(chain, block_size))
            if self.tell is not None:
                self.tell("answered", replica.id, chain, block_size)

    def heard(self, what: str, name: str, chain: Sequence[int], block_size: int) -> None:
        """Another worker sent a prompt, or got an answer that a modelled cache learns from."""
        if what == "sent":
            self.index.predict(name, chain)
        elif (source := self._sources.get(name)) is not None:
            self.index.apply(_shadow_id(name), source.shadow.touch(chain, block_size))

    def status(self) -> dict[str, dict[str, Any]]:
        """Per replica: its event feed's state and counters, and how many blocks the index has for it."""
        told: dict[str, dict[str, Any]] = {}
        for replica_id, source in self._sources.items():
            blocks = self.index.replica_blocks(replica_id) + self.index.replica_blocks(_shadow_id(replica_id))
            told[replica_id] = {"blocks": blocks}
            if source.subscriber is not None:
                status = source.subscriber.status
                told[replica_id] |= {
                    "endpoint": source.subscriber.endpoint,
                    "state": status.state,
                    "last_seq": status.last_seq,
                    "gaps": status.gaps,
                    "replays": status.replays,
                    "clears": status.clears,
                    "malformed": status.malformed,
                    "orphans": source.subscriber.ledger.orphans,
                    "lag_s": round(status.lag_s, 4),
                }
        return told

    async def _stop(self, source: _Source) -> None:
        if source.task is not None:
            source.task.cancel()
            await asyncio.gather(source.task, return_exceptions=True)
        source.task = source.subscriber = source.settings = None


def _followed(replica: Replica, exact: bool) -> bool:
    """Whether the replica's events say what it holds of such a prompt."""
    return exact and replica.feed is Feed.EVENTS and not replica.distrust


def _entry(replica: Replica, exact: bool) -> str:
    """The entry of the index that speaks for a replica: its own, or its shadow's."""
    return replica.id if _followed(replica, exact) else _shadow_id(replica.id)


def _shadow_id(replica_id: str) -> str:
    return f"{replica_id}\0shadow"


def _mark(replica: Replica, status: FeedStatus) -> None:
    if status.state == "live":
        if replica.feed is not Feed.EVENTS:
            log.info("replica %s: following its KV events", replica.id)
        replica.feed, replica.feed_reason = Feed.EVENTS, ""
    elif status.state == "unsupported":
        if replica.feed_reason != status.reason:
            log.warning("replica %s: its KV events can't be used: %s", replica.id, status.reason)
        replica.feed, replica.feed_reason = Feed.SHADOW, status.reason


async def _run(replica: Replica, subscriber: EventSubscriber) -> None:
    try:
        await subscriber.run()
    except asyncio.CancelledError:
        raise
    except Exception as error:
        log.exception("replica %s: following its KV events ended", replica.id)
        replica.feed, replica.feed_reason = Feed.SHADOW, f"following its KV events failed: {error}"
