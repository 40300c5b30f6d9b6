"""Endpoints of a Kubernetes service: its EndpointSlices, listed and then watched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import aiohttp

from router.fleet.discovery.backoff import Backoff
from router.fleet.discovery.cluster import Cluster
from router.fleet.discovery.endpoint import Endpoint, Update
from router.fleet.discovery.slices import SERVICE_LABEL, Seen, Shape, merge, read_slice
from router.fleet.discovery.watch import Expired, Refused, SliceApi, spread

log = logging.getLogger(__name__)

TRIES = 5
"""Failed watches in a row before everything is listed again, with the CA file and the session made new."""


class KubernetesSource:
    """The pods behind `service`, or behind every service whose EndpointSlices match the label `selector` (a service's
    labels are copied to its slices), in one namespace.

    Needs `list` and `watch` on `endpointslices` (discovery.k8s.io) in that namespace and nothing else. While the API
    server can't be reached the last known endpoints stay.
    """

    def __init__(
        self,
        *,
        service: str | None = None,
        selector: str | None = None,
        namespace: str | None = None,
        shape: Shape | None = None,
        cluster: Callable[[], Cluster] = Cluster.from_pod,
        watch_s: float = 120.0,
        timeout_s: float = 10.0,
        first_pause_s: float = 0.5,
        longest_pause_s: float = 30.0,
    ) -> None:
        """`cluster` is called before every list and may raise ValueError. `watch_s`: length of one watch request.

        Raises ValueError unless `service`, `selector` or both are given.
        """
        wanted = [part for part in (f"{SERVICE_LABEL}={service}" if service else "", selector or "") if part]
        if not wanted:
            raise ValueError("give `service`, `selector`, or both")
        self._selector = ",".join(wanted)
        self.name = f"kubernetes {namespace + '/' if namespace else ''}{service or selector}"
        self.problem = "not listed yet"
        self._namespace, self._shape, self._cluster = namespace, shape or Shape(), cluster
        self._watch_s, self._timeout_s = watch_s, timeout_s
        self._backoff = Backoff(first_pause_s, longest_pause_s)
        self._slices: dict[str, list[Seen]] = {}
        self._unusable: dict[str, str] = {}
        self._known: list[Endpoint] | None = None

    async def run(self, update: Update) -> None:
        """See Source.run."""
        while True:
            pause = 0.0
            try:
                await self._list_and_watch(update)
            except Expired:
                # List at once, but a server that only ever says 410 is not to be hammered.
                log.info("%s: its history is gone, listing again", self.name)
                pause = self._backoff.pause()
            except (Refused, aiohttp.ClientError, OSError) as error:
                pause = self._failed(error)
            await asyncio.sleep(pause)

    async def _list_and_watch(self, update: Update) -> None:
        """One list, then watches, each from where the one before ended, until one of them needs a new list."""
        try:
            cluster = self._cluster()
        except ValueError as error:
            raise Refused(str(error)) from None
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=2)) as session:
            api = SliceApi(
                session, cluster, self._namespace or cluster.namespace, self._selector, timeout_s=self._timeout_s
            )
            items, version = await api.list_all()
            self._slices, self._unusable = {}, {}
            for item in items:
                self._take(item)
            self._tell(update)
            tries = 0
            while True:
                started = asyncio.get_running_loop().time()
                pause = 0.0
                try:
                    async with aclosing(api.watch(version, spread(self._watch_s))) as events:
                        async for kind, item in events:
                            if kind != "OPEN":
                                self._backoff.reset()
                                tries = 0
                                version = str((item.get("metadata") or {}).get("resourceVersion") or version)
                            if kind in ("ADDED", "MODIFIED", "DELETED"):
                                self._take(item, gone=kind == "DELETED")
                            self._tell(update)
                    if asyncio.get_running_loop().time() - started < self._watch_s / 2:
                        # A server that accepts and hangs up must be come back to ever more slowly.
                        pause = self._backoff.pause()
                except (Refused, aiohttp.ClientError, OSError) as error:
                    tries += 1
                    if tries > TRIES:
                        raise
                    pause = self._failed(error)
                await asyncio.sleep(pause)

    def _take(self, item: dict[str, Any], *, gone: bool = False) -> None:
        name = str((item.get("metadata") or {}).get("name") or "")
        self._unusable.pop(name, None)
        self._slices.pop(name, None)
        if gone:
            return
        try:
            self._slices[name] = read_slice(item, self._shape.port)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            # One slice that makes no sense must not hide the others.
            self._unusable[name] = str(error)

    def _tell(self, update: Update) -> None:
        found = merge(self._slices.values(), self._shape)
        if found != self._known:
            self._known = found
            update(found)
        self._say(next(iter(self._unusable.values()), ""))

    def _failed(self, error: Exception) -> float:
        self._say(str(error) or f"the API server does not answer ({type(error).__name__})")
        return self._backoff.pause(error.retry_s if isinstance(error, Refused) else 0.0)

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            log.log(logging.WARNING if problem else logging.INFO, "%s: %s", self.name, problem or "in step")
            self.problem = problem
