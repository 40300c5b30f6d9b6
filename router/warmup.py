"""A replica that joins is warmed with the hottest shared prefixes, so that its first sessions don't wait for them.

Each prefix is sent as a completion of one token, one after the other, and only while the replica has no prefill of
anybody waiting: real requests go first. It counts in the replica's load like any request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic

import aiohttp

from router.blocks import TOKEN_BYTES, unpack
from router.fleet.replica import Health, Replica
from router.fleet.speed import effort
from router.observe.scraped import Sample
from router.routing.placement import Placement

log = logging.getLogger(__name__)

LEAST_EXPECTED = 2.0
"""Sessions within a minute from which on a prefix counts as hot."""
GIVE_UP_S = 60.0
PAUSE_S = 0.05
TIMEOUT_S = 60.0


class Warmup:
    """`prefixes`: so many are sent to each replica that joins, at most; 0 sends none."""

    def __init__(
        self, placement: Placement, prefixes: int, session: Callable[[], aiohttp.ClientSession] = aiohttp.ClientSession
    ) -> None:
        self.prefixes = prefixes
        self.tokens = 0
        """Prompt tokens sent so far."""
        self._placement = placement
        self._make_session = session
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def joined(self, replica: Replica) -> None:
        """The replica is new, or back with a cache that may be empty."""
        if not self.prefixes or not self._placement.popularity.hottest(1, self._placement.clock()):
            return
        self.left(replica.id)
        self._tasks[replica.id] = asyncio.create_task(self._warm(replica), name=f"warm {replica.id}")

    def left(self, replica_id: str) -> None:
        """The replica is gone."""
        task = self._tasks.pop(replica_id, None)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """Stop warming."""
        tasks = list(self._tasks.values())
        for replica_id in list(self._tasks):
            self.left(replica_id)
        await asyncio.gather(*tasks, return_exceptions=True)

    def samples(self) -> list[Sample]:
        """For /metrics."""
        return [("warmup_tokens", (), self.tokens)]

    async def _warm(self, replica: Replica) -> None:
        try:
            async with self._make_session() as session:
                hottest = self._placement.popularity.hottest(self.prefixes, self._placement.clock())
                for prefix, expected in hottest:
                    if expected < LEAST_EXPECTED or not await self._idle(replica):
                        return
                    if replica.serves(prefix.model):
                        await self._send(session, replica, prefix.model, prefix.salt, prefix.ids)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.info("replica %s: not warmed: %s", replica.id, error or type(error).__name__)
        finally:
            if self._tasks.get(replica.id) is asyncio.current_task():
                del self._tasks[replica.id]

    async def _idle(self, replica: Replica) -> bool:
        """When nobody waits for a prefill there; False if that doesn't come, or the replica is not used."""
        until = monotonic() + GIVE_UP_S
        while monotonic() < until:
            if replica.health not in (Health.UP, Health.NEW) or replica.distrust:
                return False
            if replica.health is Health.UP and not replica.load.queued_tokens:
                return True
            await asyncio.sleep(PAUSE_S)
        return False

    async def _send(self, session: aiohttp.ClientSession, replica: Replica, model: str, salt: str, ids: bytes) -> None:
        tokens = len(ids) // TOKEN_BYTES
        body = {"model": model, "prompt": unpack(ids), "max_tokens": 1, "temperature": 0.0}
        if salt:
            body["cache_salt"] = salt
        headers = {} if replica.rank is None else {"X-data-parallel-rank": str(replica.rank)}
        ticket = replica.load.begin(int(effort(tokens, 0)), 1, self._placement.clock())
        try:
            async with session.post(
                f"{replica.url}/v1/completions",
                json=body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            ) as answer:
                await answer.read()
                if answer.status == 200:
                    self.tokens += tokens
                    log.info("replica %s: warmed with a prefix of %d tokens", replica.id, tokens)
                else:
                    log.info("replica %s: a warming request was answered %d", replica.id, answer.status)
        finally:
            ticket.end(self._placement.clock())
