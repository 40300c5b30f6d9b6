"""Several sources' endpoints as one list, and what changed in it. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from router.fleet.discovery.endpoint import Endpoint


@dataclass(slots=True)
class Changes:
    """What the fleet has to do, in this order: `removed`, `added`, `turned`.

    An endpoint whose address, engine or event source changed is another engine under an old name: it is in `removed`
    and in `added`. `turned`: only `ready`, `terminating` or labels changed.
    """

    removed: list[str] = field(default_factory=list)
    added: list[Endpoint] = field(default_factory=list)
    turned: list[Endpoint] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    """Endpoints left out because another one has their id or place; a line for the log each."""

    def __bool__(self) -> bool:
        return bool(self.removed or self.added or self.turned)


class Roster:
    """The endpoints of all sources. An id or URL belongs to the source that was first to name it.

    An engine of several data-parallel ranks, once known as such, stands in the list as one endpoint for each rank.
    """

    def __init__(self) -> None:
        self.drained: frozenset[str] = frozenset()
        self.removed: frozenset[str] = frozenset()
        self._by_source: dict[str, list[Endpoint]] = {}
        self._current: dict[str, Endpoint] = {}
        self._ranks: dict[str, tuple[int, ...]] = {}

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._current.values())

    def sources(self, endpoint_id: str) -> list[str]:
        """Who names an endpoint (or the engine that it is a rank of), the one it belongs to first."""
        names = {endpoint_id, whole(endpoint_id)}
        return [name for name, known in self._by_source.items() if any(each.id in names for each in known)]

    def is_drained(self, endpoint_id: str) -> bool:
        """Whether an override drains it, or the engine that it is a rank of."""
        return endpoint_id in self.drained or whole(endpoint_id) in self.drained

    def report(self, source: str, endpoints: Iterable[Endpoint] | None) -> Changes:
        """Take what `source` knows now (None: it is no longer a source); returns what changed in the whole."""
        if endpoints is None:
            self._by_source.pop(source, None)
        else:
            self._by_source[source] = list(endpoints)
        return self._merge()

    def override(self, drained: Iterable[str], removed: Iterable[str]) -> Changes:
        """Whatever sources say, `drained` ids get nothing new and `removed` ones don't exist; returns what changed."""
        self.drained, self.removed = frozenset(drained), frozenset(removed)
        return self._merge()

    def ranks(self, endpoint_id: str) -> tuple[int, ...]:
        """The ranks by which an endpoint is listed; none while it is one endpoint."""
        return self._ranks.get(endpoint_id, ())

    def split(self, endpoint_id: str, ranks: tuple[int, ...]) -> Changes:
        """List the endpoint that sources call `endpoint_id` by these ranks, as `ID/dpN`; none: as one again."""
        self._ranks[endpoint_id] = ranks
        return self._merge()

    def _split(self, endpoints: Iterable[Endpoint]) -> Iterator[Endpoint]:
        for whole in endpoints:
            ranks = self.ranks(whole.id) if whole.rank is None else ()
            if not ranks:
                yield whole
            for rank in ranks:
                events = whole.events and whole.events.of_rank(rank - ranks[0])
                yield replace(whole, id=f"{whole.id}/dp{rank}", rank=rank, events=events)

    def _merge(self) -> Changes:
        changes = Changes()
        merged: dict[str, Endpoint] = {}
        places: dict[tuple[str, int | None], str] = {}
        for name, reported in self._by_source.items():
            for endpoint in self._split(reported):
                place = endpoint.url, endpoint.rank
                owner = endpoint.id if endpoint.id in merged else places.get(place)
                if owner is None:
                    merged[endpoint.id] = endpoint
                    places[place] = endpoint.id
                elif owner == endpoint.id and merged[owner].url == endpoint.url:
                    # The same engine by two sources: whoever says that it is going away is right.
                    known = merged[owner]
                    terminating = known.terminating or endpoint.terminating
                    ready = known.ready and endpoint.ready
                    merged[owner] = replace(known, terminating=terminating, ready=ready and not terminating)
                else:
                    changes.conflicts.append(f"{name}: {endpoint.id} at {endpoint.url} is left out: taken by {owner}")
        merged = {
            name: replace(endpoint, ready=False, terminating=True) if self.is_drained(name) else endpoint
            for name, endpoint in merged.items()
            if not {name, whole(name)} & self.removed
        }
        for known in self._current.values():
            now = merged.get(known.id)
            if now is None or not _same_engine(known, now):
                changes.removed.append(known.id)
        for endpoint in merged.values():
            before = self._current.get(endpoint.id)
            if before is None or not _same_engine(before, endpoint):
                changes.added.append(endpoint)
            elif before != endpoint:
                changes.turned.append(endpoint)
        self._current = merged
        return changes


def whole(endpoint_id: str) -> str:
    """The id of the engine that `ID/dpN` is a rank of; any other id as it is."""
    return re.sub(r"/dp\d+\Z", "", endpoint_id)


def _same_engine(one: Endpoint, other: Endpoint) -> bool:
    return replace(one, ready=True, terminating=False, labels={}) == replace(
        other, ready=True, terminating=False, labels={}
    )
