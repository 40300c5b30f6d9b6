"""Proof that the router's token ids are each replica's: checked when a replica joins, and from time to time.

A replica whose ids differ is distrusted: nothing its events say can match this router's chains, so its cache is
modelled instead, which needs no more than chains that are consistent with themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import aiohttp

from router.api.parity import check_parity
from router.fleet.replica import Replica
from router.prompt.stage import PromptStage

log = logging.getLogger(__name__)


class Trust:
    """Checks each watched replica every `interval_s`; a check sends five tokenize requests and generates nothing."""

    def __init__(
        self,
        prompts: PromptStage,
        *,
        interval_s: float,
        session: Callable[[], aiohttp.ClientSession] = aiohttp.ClientSession,
    ) -> None:
        self._prompts = prompts
        self._interval = interval_s
        self._make_session = session
        self._session: aiohttp.ClientSession | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def watch(self, replica: Replica) -> None:
        """Check a replica that (re)joined, now and from now on."""
        if self._session is None:
            self._session = self._make_session()
        self.unwatch(replica.id)
        self._tasks[replica.id] = asyncio.create_task(self._watch(replica, self._session), name=f"parity {replica.id}")

    def unwatch(self, replica_id: str) -> None:
        """Stop checking a replica."""
        task = self._tasks.pop(replica_id, None)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """Stop checking."""
        tasks = list(self._tasks.values())
        for replica_id in list(self._tasks):
            self.unwatch(replica_id)
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _watch(self, replica: Replica, session: aiohttp.ClientSession) -> None:
        while True:
            try:
                await self._check(replica, session)
            except Exception:
                log.exception("replica %s: comparing its token ids failed", replica.id)
            await asyncio.sleep(self._interval)

    async def _check(self, replica: Replica, session: aiohttp.ClientSession) -> None:
        info = replica.info
        if info is None:
            return
        result = await check_parity(session, replica.url, info.kind, info.models[0], self._prompts)
        if result.ok:
            if replica.distrust and result.checked:
                log.info("replica %s: its token ids are the router's again", replica.id)
                replica.distrust = ""
            elif result.checked:
                log.debug("replica %s: token ids compared, %d probes equal", replica.id, result.checked)
            return
        reason = f"its token ids differ from the router's (probe {result.probe!r}): check models[].files and "
        reason += "tokenizer_class against the engine's model"
        if not replica.distrust:
            log.warning("replica %s: %s; its cache is modelled instead", replica.id, reason)
        replica.distrust = reason
