"""The publisher `prefix_router` of vLLM's KV events: what an agent does, in a thread of the engine process.

vLLM hands over a batch per scheduler step; the thread's event loop applies it to the ledger and writes to Redis.
Nothing that happens here reaches the scheduler: when Redis is away deltas wait and merge, and what cannot be kept is
dropped and said so.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from typing import Any

import msgspec
from vllm.distributed.kv_events import EventPublisher

from replica.asking import answered, base_url, engine_key, engine_session
from replica.publication import LoadReader, Publication
from router.engines import ENGINES, EngineInfo
from router.index.redis.connect import SCHEMES, connect
from router.index.redis.layout import Layout
from router.index.redis.store import Store
from router.index.types import Cleared

log = logging.getLogger("vllm.prefix_router")

SLICE_S = 0.002
STOP_S = 5.0


class PrefixRouterPublisher(EventPublisher):  # type: ignore[misc]  # vLLM is not installed where this is type-checked
    """`endpoint`: the Redis URL; `topic`: the pool. The rest from the environment, as docs/shared-index.md lists it.

    Raises ValueError for an endpoint that is no Redis URL and RedisConfigError for one that cannot work: vLLM says so
    and does not start.
    """

    def __init__(
        self,
        data_parallel_rank: int = 0,
        endpoint: str = "",
        topic: str = "",
        max_queue_size: int = 100_000,
        **others: Any,
    ) -> None:
        super().__init__(data_parallel_rank)
        if endpoint.partition("://")[0] not in SCHEMES:
            raise ValueError(
                f"kv-events-config: publisher prefix_router needs the Redis URL as its endpoint "
                f"({', '.join(f'{scheme}://' for scheme in SCHEMES)}), got {endpoint!r}"
            )
        env = os.environ.get
        self._store = connect(
            endpoint,
            username=env("PREFIX_ROUTER_REDIS_USERNAME"),
            password=env("PREFIX_ROUTER_REDIS_PASSWORD"),
            password_file=env("PREFIX_ROUTER_REDIS_PASSWORD_FILE"),
            ca_file=env("PREFIX_ROUTER_REDIS_CA_FILE"),
            cluster=bool(env("PREFIX_ROUTER_REDIS_CLUSTER")),
        )
        self._layout = Layout(topic or "default")
        self._url = base_url(env("PREFIX_ROUTER_ENGINE_URL", "http://127.0.0.1:8000"))
        self._advertised = base_url(env("PREFIX_ROUTER_ADVERTISE_URL") or self._url)
        self._key = engine_key(env("PREFIX_ROUTER_ENGINE_API_KEY_FILE"))
        self._rank = data_parallel_rank
        self._waiting: deque[Any] = deque()
        self._most = max_queue_size
        self._lost = self._ended = False
        self._loop = asyncio.new_event_loop()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="prefix-router publisher", daemon=True)
        self._thread.start()

    def publish(self, events: Any) -> None:
        """Hand a batch over; called by the scheduler in each step that changed the cache."""
        if self._ended or self._lost:
            return
        if len(self._waiting) < self._most:
            self._waiting.append(events)
        else:
            self._lost = True
        self._loop.call_soon_threadsafe(self._wake.set)

    def shutdown(self) -> None:
        """Give the lease back and end the thread, in `STOP_S` at most."""
        if not self._ended:
            self._loop.call_soon_threadsafe(self._stop)
        self._thread.join(STOP_S)

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._task = self._loop.create_task(self._publish())
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except Exception:
            log.exception("publishing KV events to Redis ended; routers model this engine's cache from now on")
        finally:
            self._ended = True
            self._waiting.clear()

    async def _publish(self) -> None:
        url = self._url
        engine = ENGINES["vllm"]
        try:
            async with engine_session(self._key) as session:
                info = await answered(lambda: engine.inspect(session, url), "waiting for this engine's own HTTP server")
                publication = self._publication(info, self._store)
                async with asyncio.TaskGroup() as tasks:
                    work = tasks.create_task(self._apply(publication))
                    await publication.run(LoadReader(engine, session, url, 0.25))
                    work.cancel()
        finally:
            await self._store.close()

    def _publication(self, info: EngineInfo, store: Store) -> Publication:
        env = os.environ.get
        name = env("PREFIX_ROUTER_REPLICA_ID") or self._advertised.split("://", 1)[1]
        several = len(info.ranks) > 1
        return Publication(
            f"{name}/dp{self._rank}" if several else name,
            self._advertised,
            info,
            None,
            store,
            self._layout,
            model=env("PREFIX_ROUTER_MODEL") or info.models[0],
            block_size=int(env("PREFIX_ROUTER_BLOCK_SIZE") or max(16, info.block_size or 16)),
            rank=self._rank if several else None,
            in_process=True,
        )

    async def _apply(self, publication: Publication) -> None:
        """Apply what was handed over, with the loop free every 2 ms."""
        assert publication.intake is not None
        while True:
            await self._wake.wait()
            self._wake.clear()
            end = time.monotonic() + SLICE_S
            while self._waiting:
                if self._lost:  # nothing is handed over while it is set
                    self._waiting.clear()
                    publication.intake.clear(Cleared.LOST, f"more than {self._most} batches waited")
                    self._lost = False
                    break
                publication.intake.apply(msgspec.msgpack.encode(self._waiting.popleft()))
                if time.monotonic() >= end:
                    await asyncio.sleep(0)
                    end = time.monotonic() + SLICE_S
