"""What one agent publishes about one replica (an engine, or one of its data-parallel ranks)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from time import time

import aiohttp

from router.engines import Engine, EngineError, EngineInfo, EventSource
from router.index.intake import FeedStatus
from router.index.ledger import CacheLedger
from router.index.redis.health import STORE_ERRORS
from router.index.redis.layout import Layout
from router.index.redis.leases import ReplicaLoad, ReplicaMeta
from router.index.redis.store import Store
from router.index.redis.writer import RedisWriter
from router.index.subscriber import EventSubscriber

log = logging.getLogger(__name__)


class Publication:
    """Engine events -> ledger -> writer -> Redis, and the engine's load with the lease.

    `source` None: no events; only load and capacity are published, and routers model the cache themselves.
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
        ranks: int = 1,
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
            rank=source.rank if source else 0,
            ranks=ranks,
            events=source is not None,
        )
        self.writer = RedisWriter(
            store, layout, replica_id, meta, self.ledger.snapshot, lease_s=lease_s, renew_s=interval_s
        )
        self.subscriber: EventSubscriber | None = None
        if source is not None:
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
        self._interval = interval_s
        self._state = ""

    async def run(self, engine: Engine, session: aiohttp.ClientSession, engine_url: str) -> None:
        """Until cancelled, or until a newer agent has claimed the replica. A clean end gives the lease back."""
        helpers = [asyncio.create_task(self._sample(engine, session, engine_url))]
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

    async def _sample(self, engine: Engine, session: aiohttp.ClientSession, engine_url: str) -> None:
        while True:
            live = self.ledger.live_blocks
            try:
                load = await engine.load(session, engine_url)
                self.writer.report(
                    ReplicaLoad(
                        running=load.running if load else 0,
                        waiting=load.waiting if load else 0,
                        kv_use=load.kv_usage if load else 0.0,
                        live_blocks=live,
                        sampled=time(),
                    )
                )
            except EngineError as error:
                self.writer.report(ReplicaLoad(live_blocks=live, sampled=time(), ready=False, trouble=str(error)))
            await asyncio.sleep(self._interval)

    def _say(self, status: FeedStatus) -> None:
        if status.state != self._state:
            self._state = status.state
            log.info("replica %s: events %s %s", self._replica_id, status.state, status.reason)
