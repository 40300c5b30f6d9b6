"""Which replica is asked for token ids that the router can't know itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import aiohttp

from router.api.parity import poster
from router.fleet.fleet import Fleet
from router.fleet.replica import Health
from router.prompt.engine_ids import Post


class AskedReplicas:
    """Takes turns over the replicas that are up and serve the model. Its connections are its own."""

    def __init__(
        self,
        fleet: Fleet,
        seconds: float,
        session: Callable[[], aiohttp.ClientSession] = aiohttp.ClientSession,
    ) -> None:
        """`seconds`: limit for one question. `session`: makes the client, at the first one."""
        self._make_session = session
        self._fleet = fleet
        self._seconds = seconds
        self._session: aiohttp.ClientSession | None = None
        self._turns = itertools.count()

    def __call__(self, engine: str, model: str) -> Post | None:
        """How to post to the next replica of this kind; None if none is up."""
        able = [r for r in self._fleet.candidates(model) if r.info and r.info.kind == engine and r.health is Health.UP]
        if not able:
            return None
        if self._session is None:
            self._session = self._make_session()
        return poster(self._session, able[next(self._turns) % len(able)].url, self._seconds)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None
