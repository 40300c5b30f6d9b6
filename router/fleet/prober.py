"""Keeps each replica's health, description and load up to date by asking the engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from time import time

import aiohttp

from router.engines import ENGINES, EngineError, recognise
from router.engines.ask import get, resting
from router.fleet.replica import Health, Replica

log = logging.getLogger(__name__)

RETRY_S = 0.5
"""A replica that failed a probe is probed again this soon."""
ANSWERS_S = 1.0
PAUSE_S = 0.05
"""Between a probe that was asked for and the next."""


IN_USE = (Health.UP, Health.PAUSED)


def _session(timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))


class Prober:
    """Probes every watched replica until told to stop.

    `joined(replica)` is awaited when a replica answered for the first time, or again after it was down (it may have
    restarted with other settings). `died(replica)` is called when one that was in use went down. `session` makes the
    client that engines are asked with.
    """

    def __init__(
        self,
        joined: Callable[[Replica], Awaitable[None]],
        *,
        interval_s: float,
        timeout_s: float,
        failures: int,
        load_interval_s: float,
        died: Callable[[Replica], None] = lambda replica: None,
        session: Callable[[aiohttp.ClientTimeout], aiohttp.ClientSession] = _session,
    ) -> None:
        self._joined = joined
        self._died = died
        self.configure(interval_s, timeout_s, failures, load_interval_s)
        self._make_session = session
        self._session: aiohttp.ClientSession | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wake: dict[str, asyncio.Event] = {}

    def configure(self, interval_s: float, timeout_s: float, failures: int, load_interval_s: float) -> None:
        """Times in seconds. `timeout_s` holds for clients made from now on."""
        self._interval = interval_s
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._failures = failures
        self._load_interval = load_interval_s

    def watch(self, replica: Replica) -> None:
        """Start probing a replica."""
        if self._session is None:
            self._session = self._make_session(self._timeout)
        self._wake[replica.id] = asyncio.Event()
        self._tasks[replica.id] = asyncio.create_task(self._watch(replica, self._session), name=f"probe {replica.id}")

    async def unwatch(self, replica_id: str) -> None:
        """Stop probing a replica."""
        self._wake.pop(replica_id, None)
        task = self._tasks.pop(replica_id, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        """Stop probing altogether."""
        for replica_id in list(self._tasks):
            await self.unwatch(replica_id)
        if self._session is not None:
            await self._session.close()
            self._session = None

    def suspect(self, replica: Replica, reason: str) -> None:
        """A connection to the replica was refused: take it out at once and probe it now."""
        if replica.health in IN_USE:
            self._down(replica, reason)
        self.check(replica)

    async def answers(self, replica: Replica) -> bool:
        """Whether it answers a probe now, within a second."""
        if replica.info is None or self._session is None:
            return False
        try:
            async with asyncio.timeout(ANSWERS_S):
                await self._ask(replica, self._session)
        except (EngineError, TimeoutError):
            return False
        return True

    def check(self, replica: Replica) -> None:
        """A request failed there: probe it now."""
        if replica.id in self._wake:
            self._wake[replica.id].set()

    async def _watch(self, replica: Replica, session: aiohttp.ClientSession) -> None:
        failed = 0
        next_health = next_load = 0.0
        loop = asyncio.get_running_loop()
        wake = self._wake[replica.id]
        while True:
            try:
                asked = wake.is_set()
                if asked or loop.time() >= next_health:
                    wake.clear()
                    await self._probe(replica, session)
                    if asked:
                        await asyncio.sleep(PAUSE_S)
                    failed = 0
                    next_health = loop.time() + self._interval
                if loop.time() >= next_load:
                    next_load = loop.time() + self._load_interval
                    await self._read_load(replica, session)
            except EngineError as error:
                failed += 1
                self._failed(replica, failed, str(error))
                next_health = loop.time() + min(self._interval, RETRY_S)
            except Exception:
                log.exception("probing replica %s", replica.id)
                next_health = loop.time() + self._interval
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(next_health, next_load) - loop.time())):
                    await wake.wait()

    async def _probe(self, replica: Replica, session: aiohttp.ClientSession) -> None:
        if replica.info is None or replica.health not in IN_USE:
            engine = ENGINES[replica.kind] if replica.kind else await recognise(session, replica.url)
            before, replica.info = replica.info, await engine.inspect(session, replica.url)
            if before is None or replica.health is Health.DOWN:
                await self._joined(replica)
        engine = ENGINES[replica.info.kind]
        await self._ask(replica, session)
        rest = await resting(session, replica.url, replica.info.rest_paths)
        if not rest and replica.reported is not None and replica.reported.asleep:
            rest = "sleeping"
        if replica.health is Health.DRAINING:
            return
        if rest:
            if replica.mark(Health.PAUSED, f"its engine is {rest}"):
                log.warning("replica %s gets no requests: its engine is %s", replica.id, rest)
        elif replica.mark(Health.UP, ""):
            log.info("replica %s is up: %s %s", replica.id, engine.kind, ", ".join(replica.info.models))

    async def _ask(self, replica: Replica, session: aiohttp.ClientSession) -> None:
        assert replica.info is not None
        if await get(session, replica.url, ENGINES[replica.info.kind].health_path) is None:
            # An older engine without that path; listing its models shows as much.
            await get(session, replica.url, "/v1/models")

    async def _read_load(self, replica: Replica, session: aiohttp.ClientSession) -> None:
        if replica.info is not None:
            load = await ENGINES[replica.info.kind].load(session, replica.url)
            if load is not None:
                load = load.of(replica.rank)
                fell_asleep = load.asleep and replica.health is Health.UP
                woke_up = replica.health is Health.PAUSED and not load.asleep
                replica.reported, replica.reported_at = load, time()
                if fell_asleep or woke_up:
                    self.check(replica)

    def _failed(self, replica: Replica, failed: int, reason: str) -> None:
        if replica.health is Health.NEW:
            if failed == 1:
                log.warning("replica %s can't be used yet: %s", replica.id, reason)
            replica.reason = reason
        elif replica.health in IN_USE and failed >= self._failures:
            self._down(replica, reason)

    def _down(self, replica: Replica, reason: str) -> None:
        if replica.mark(Health.DOWN, reason):
            log.warning("replica %s is down: %s", replica.id, reason)
            self._died(replica)
