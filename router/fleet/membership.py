"""Carries out what discovery reports: replicas are added, drained and removed, one change after the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from router.fleet.discovery import Changes, Endpoint, Roster, Source
from router.fleet.fleet import Fleet
from router.fleet.replica import Health, Replica

log = logging.getLogger(__name__)


ADMIN = "admin API"
"""The source of replicas that an operator added at run time."""


@dataclass(slots=True)
class Wishes:
    """What operators asked for at run time: replicas `added`, and ids that are `drained` or `removed` whoever names
    them. Kept in memory only.
    """

    added: list[Endpoint] = field(default_factory=list)
    drained: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)


class Membership:
    """The one place that changes which replicas exist. `report` may be called by any number of sources.

    A terminating or unready endpoint gets nothing new and finishes what it has; a ready one is used once it answered
    a probe.
    """

    def __init__(self, fleet: Fleet, add: Callable[[Replica], None], remove: Callable[[str], Awaitable[None]]) -> None:
        self._fleet = fleet
        self._add = add
        self._remove = remove
        self._roster = Roster()
        self._reports: asyncio.Queue[tuple[str, Callable[[], Changes]]] = asyncio.Queue()
        self._sources: dict[Hashable, tuple[Source, asyncio.Task[None]]] = {}
        self._worker: asyncio.Task[None] | None = None
        self._said: set[str] = set()

    def start(self) -> None:
        """Begin to carry out reports."""
        self._worker = asyncio.create_task(self._carry_out(), name="membership")

    async def follow(self, sources: Mapping[Hashable, Source]) -> None:
        """Follow these sources and no others. One whose key is followed already goes on as it is; what a source that
        is no longer followed reported leaves the fleet.
        """
        for key in [key for key in self._sources if key not in sources]:
            source, task = self._sources.pop(key)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._reports.put_nowait((source.name, partial(self._roster.report, source.name, None)))
        for key, source in sources.items():
            if key not in self._sources:

                def update(endpoints: list[Endpoint], name: str = source.name) -> None:
                    self.report(name, endpoints)

                self._sources[key] = source, asyncio.create_task(source.run(update), name=source.name)

    async def close(self) -> None:
        """Stop following; the fleet stays as it is."""
        tasks = [task for _, task in self._sources.values()] + ([] if self._worker is None else [self._worker])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def report(self, source: str, endpoints: Iterable[Endpoint]) -> None:
        """What `source` knows now; carried out soon."""
        known = list(endpoints)
        self._reports.put_nowait((source, lambda: self._roster.report(source, known)))

    def learned(self, replica: Replica) -> bool:
        """Take note of the data-parallel ranks of an engine that answered.

        True when they are not those it is listed by: it is soon replaced by one replica for each rank, `ID/dpN`.
        """
        assert replica.info is not None
        whole = replica.id if replica.rank is None else replica.id.removesuffix(f"/dp{replica.rank}")
        listed = self._roster.ranks(whole)
        ranks = replica.info.ranks if len(replica.info.ranks) > 1 else ()
        if ranks == listed or (replica.rank is not None and not listed):  # a source may list the ranks itself
            return False
        said = f"{whole} has {len(ranks) or 1} data-parallel ranks"
        self._reports.put_nowait((said, lambda: self._roster.split(whole, ranks)))
        return True

    async def wish(self, wishes: Wishes) -> None:
        """What operators want from now on; carried out when this returns."""
        self._reports.put_nowait((ADMIN, lambda: self._roster.report(ADMIN, wishes.added)))
        self._reports.put_nowait((ADMIN, lambda: self._roster.override(wishes.drained, wishes.removed)))
        await self._reports.join()

    def sources(self, replica_id: str) -> list[str]:
        """Who names a replica."""
        return self._roster.sources(replica_id)

    def removed(self) -> list[str]:
        """Replicas that operators keep out of the fleet."""
        return sorted(self._roster.removed)

    def problems(self) -> list[str]:
        """Sources that can't be read, for /ready."""
        return [
            f"discovery by {source.name}: {source.problem}" for source, _ in self._sources.values() if source.problem
        ]

    async def _carry_out(self) -> None:
        while True:
            source, report = await self._reports.get()
            try:
                await self._apply(source, report())
            except Exception:
                log.exception("discovery: what %s reported could not be carried out", source)
            finally:
                self._reports.task_done()

    async def _apply(self, source: str, changes: Changes) -> None:
        for conflict in changes.conflicts:
            if conflict not in self._said:
                self._said.add(conflict)
                log.warning("discovery: %s", conflict)
        for replica_id in changes.removed:
            log.info("replica %s left the fleet (%s)", replica_id, source)
            await self._remove(replica_id)
        for endpoint in changes.added:
            log.info("replica %s joined the fleet at %s (%s)", endpoint.id, endpoint.url, source)
            replica = Replica(
                endpoint.id,
                endpoint.url,
                kind=endpoint.kind,
                rank=endpoint.rank,
                events=endpoint.events,
                labels=endpoint.labels,
            )
            try:
                self._add(replica)
            except ValueError as error:
                log.warning("replica %s can't be used: %s (%s)", endpoint.id, error, source)
                continue
            self._turn(replica, endpoint)
        for endpoint in changes.turned:
            known = self._fleet.get(endpoint.id)
            if known is not None:
                known.labels = endpoint.labels
                self._turn(known, endpoint)

    def _turn(self, replica: Replica, endpoint: Endpoint) -> None:
        if endpoint.terminating or not endpoint.ready:
            why = "terminating" if endpoint.terminating else "discovery says it is not ready"
            replica.mark(Health.DRAINING, f"drained by the {ADMIN}" if self._roster.is_drained(endpoint.id) else why)
        elif replica.health is Health.DRAINING:
            replica.mark(Health.DOWN, "ready again, waiting for a probe")
