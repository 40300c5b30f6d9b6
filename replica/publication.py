"""What one agent publishes about one replica (an engine, or one of its data-parallel ranks)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from time import monotonic, time

import aiohttp

from router.engines import Engine, EngineError, EngineInfo, EngineLoad, EventSource
from router.index.intake import FeedStatus, Intake
from router.index.ledger import CacheLedger
from router.index.redis.health import STORE_ERRORS
from router.index.redis.layout import Layout
from router.index.redis.leases import ReplicaLoad, ReplicaMeta
from router.index.redis.store import Store
from router.index.redis.writer import RedisWriter
from router.index.subscriber import EventSubscriber

log = logging.getLogger(__name__)


class LoadReader:
    """An engine's load, asked for at most once per `interval_s` however many of its ranks want it."""

    def __init__(self, engine: Engine, session: aiohttp.ClientSession, url: str, interval_s: float) -> None:
        self._engine, self._session, self._url = engine, session, url
        self._interval = interval_s
        self._lock = asyncio.Lock()
        self._read_at = float("-inf")
        self._load: EngineLoad | EngineError = EngineLoad()
        self.returned = asyncio.Event()
        """Set when it answers again after it did not: it may be another engine now."""

    async def read(self) -> EngineLoad:
        """The load; zeros when the engine doesn't say. Raises EngineError."""
        async with self._lock:
            if monotonic() - self._read_at > self._interval / 2:
                try:
                    load = await self._engine.load(self._session, self._url) or EngineLoad()
                    if isinstance(self._load, EngineError):
                        self.returned.set()
                    self._load = load
                except EngineError as error:
                    self._load = error
                self._read_at = monotonic()
        if isinstance(self._load, EngineError):
            raise self._load
        return self._load


class Publication:
    """Engine events -> ledger -> writer -> Redis, and the engine's load with the lease.

    `rank`: None for an engine of one rank. `source` None: no events; only load and capacity are published, and routers
    model the cache themselves. With `in_process` the events are not followed but handed to `intake` by the engine.
    """

    def __init__(
        self,
        replica_id: str,
        advertised_url: str,
        info: EngineInfo,
        source: EventSource | None,
        store: Store,
        layout: Layout,
        *,
        model: str,
        block_size: int,
        rank: int | None = None,
        in_process: bool = False,
        interval_s: float = 0.25,
        lease_s: float = 3.0,
    ) -> None:
        self.ledger = CacheLedger(model, block_size, counts_copies=info.kind == "vllm")
        meta = ReplicaMeta(
            advertised_url,
            model=model,
            engine=info.kind,
            engine_version=info.version,
            block_size=block_size,
            capacity_tokens=info.kv_tokens or 0,
            rank=rank or 0,
            ranks=1 if rank is None else len(info.ranks),
            events=source is not None or in_process,
        )
        self.writer = RedisWriter(
            store, layout, replica_id, meta, self.ledger.snapshot, lease_s=lease_s, renew_s=interval_s
        )
        self.intake: Intake | None = None
        self.subscriber: EventSubscriber | None = None
        if in_process:
            self.intake = Intake(replica_id, self.ledger, self.writer, FeedStatus(state="live"))
        elif source is not None:
            self.subscriber = EventSubscriber(
                replica_id,
                source.endpoint,
                source.replay_endpoint,
                source.topic,
                self.ledger,
                self.writer,
                bind=source.bind,
                on_change=self._say,
            )
        self._replica_id = replica_id
        self._rank = rank
        self._interval = interval_s
        self._state = ""
        self._followed = False
        """Whether its events were live once; a lost connection keeps what is known until it proves wrong."""

    async def run(self, load: LoadReader) -> None:
        """Until cancelled, or until a newer agent has claimed the replica. A clean end gives the lease back."""
        helpers = [asyncio.create_task(self._sample(load))]
        if self.subscriber is not None:
            helpers.append(asyncio.create_task(self.subscriber.run()))
        try:
            await self.writer.run()
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            with contextlib.suppress(*STORE_ERRORS):
                await self.writer.release()

    async def _sample(self, reader: LoadReader) -> None:
        while True:
            try:
                load, trouble = (await reader.read()).of(self._rank), ""
            except EngineError as error:
                load, trouble = EngineLoad(), str(error)
            self.writer.report(
                ReplicaLoad(
                    running=load.running,
                    waiting=load.waiting,
                    waiting_tokens=load.waiting_tokens or 0,
                    kv_use=load.kv_usage,
                    live_blocks=self.ledger.live_blocks,
                    sampled=time(),
                    ready=not trouble,
                    trouble=trouble,
                    events=self._events(),
                    stuck=self.writer.stuck,
                )
            )
            await asyncio.sleep(self._interval)

    def _events(self) -> str:
        """Why its cache is not followed; empty when it is."""
        feed = self.subscriber or self.intake
        if feed is None:
            return "its agent finds no KV events"
        if feed.status.state == "unsupported":
            return f"its KV events can't be used: {feed.status.reason}"
        return "" if self._followed or self.intake else "its agent is connecting to its KV events"

    def _say(self, status: FeedStatus) -> None:
        self._followed = self._followed or status.state == "live"
        if status.state != self._state:
            self._state = status.state
            log.info("replica %s: events %s %s", self._replica_id, status.state, status.reason)
