"""What the other routers have sent and not finished, so that several routers don't herd onto one replica.

Each router publishes its own work every `interval_s` in one script call that answers with everyone else's. Work of a
router that stops publishing vanishes after `expiry_s`, on the server's clock; without Redis, after `expiry_s` here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from router.index.redis import scripts
from router.index.redis.health import STORE_ERRORS, Health
from router.index.redis.layout import Layout
from router.index.redis.store import Store

log = logging.getLogger(__name__)


class InFlight(NamedTuple):
    """Work sent to one replica and not finished: prompt tokens not yet prefilled, and requests."""

    prefill_tokens: int = 0
    requests: int = 0


NONE = InFlight()
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, tuple[int, int]]).decode


class InFlightShare:
    """Example:
    share = InFlightShare(store, layout, "router-1", own=counters.snapshot)
    task = asyncio.create_task(share.run())
    share.others("replica-1")    # InFlight(prefill_tokens=9000, requests=3)
    """

    def __init__(
        self,
        store: Store,
        layout: Layout,
        router_id: str,
        own: Callable[[], dict[str, InFlight]],
        *,
        interval_s: float = 0.1,
        expiry_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if expiry_s < 2 * interval_s:
            raise ValueError(f"expiry_s must be at least twice interval_s ({interval_s}), got {expiry_s}")
        self._store, self._layout, self._router_id, self._own = store, layout, router_id, own
        self._interval_s, self._expiry_s, self._clock = interval_s, expiry_s, clock
        self._others: dict[str, InFlight] = {}
        self._read_at = float("-inf")
        self.routers = 0
        """Other routers seen in the last exchange."""
        self.health = Health(f"in-flight work of router {router_id}", log)

    def others(self, replica_id: str) -> InFlight:
        """The sum over the other routers; zero when unknown or too old."""
        if self._clock() - self._read_at > self._expiry_s:
            return NONE
        return self._others.get(replica_id, NONE)

    async def exchange(self) -> None:
        """Publish our work and read the others'. Errors are the store's."""
        work = {replica_id: tuple(work) for replica_id, work in self._own().items() if any(work)}
        await self._share(_encode(work))

    async def run(self) -> None:
        """Exchange until cancelled; then withdraw our numbers, as far as Redis can be reached."""
        try:
            while True:
                try:
                    await self.exchange()
                    self.health.ok()
                except STORE_ERRORS as error:
                    self.health.fail(error)
                except Exception:
                    log.exception("%s could not be exchanged", self.health.name)
                await asyncio.sleep(self._interval_s)
        finally:
            await self._leave()

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(self._interval_s):
                await self._share(b"")
        except STORE_ERRORS:
            log.debug("in-flight work of router %s is left to expire", self._router_id)

    async def _share(self, work: bytes) -> None:
        answer = await self._store.run(scripts.SHARE, self._layout, self._router_id, int(self._expiry_s * 1000), work)
        sums: dict[str, InFlight] = {}
        for packed in answer[1:]:
            try:
                theirs = _decode(packed)
            except msgspec.DecodeError:
                continue
            for replica_id, (tokens, requests) in theirs.items():
                known = sums.get(replica_id, NONE)
                sums[replica_id] = InFlight(known.prefill_tokens + tokens, known.requests + requests)
        self._others, self.routers, self._read_at = sums, len(answer) - 1, self._clock()
