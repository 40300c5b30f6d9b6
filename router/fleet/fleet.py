"""The set of replicas and what may be asked of it while a request is routed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from router.fleet.replica import Health, Replica


class Fleet:
    """Replicas by id, in the order they were added."""

    def __init__(self) -> None:
        self._replicas: dict[str, Replica] = {}
        self._turn = 0
        self.max_ejected_share = 0.5
        self.ramping = False
        """Some replica's weight is below 1."""
        self.bounded = False
        """Some replica's room is limited: requests may have to wait for it."""
        self.changed: Callable[[], None] = _nothing
        """To be called when the work on a replica has changed; other workers are told (router.siblings)."""
        self.listen: Callable[[], None] = _nothing
        """To be called before a decision: takes in what other workers told."""

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas.values())

    def __len__(self) -> int:
        return len(self._replicas)

    def get(self, replica_id: str) -> Replica | None:
        """The replica of that id, if there is one."""
        return self._replicas.get(replica_id)

    def add(self, replica: Replica) -> None:
        """Add a replica. Raises ValueError for an id that is taken."""
        if replica.id in self._replicas:
            raise ValueError(f"replica {replica.id} exists already")
        self._replicas[replica.id] = replica

    def remove(self, replica_id: str) -> Replica | None:
        """Take a replica out; what is under way on it goes on."""
        return self._replicas.pop(replica_id, None)

    def candidates(self, model: str | None = None) -> list[Replica]:
        """The replicas a request for `model` (None: any) may go to.

        Those that are up and not ejected; all that are up when more than `max_ejected_share` of them are ejected
        (panic: too few would take everybody's load). When none is up, those that are paused; when there are none of
        these, those that went down: probes can be wrong, and a request that fails there fails no worse than one
        refused here.
        """
        replicas = self._replicas.values()
        able = [
            r for r in replicas if r.info is not None and (model is None or model in r.info.models or r.serves(model))
        ]
        up = [r for r in able if r.health is Health.UP]
        admitting = [r for r in up if r.breaker.admits]
        if up and len(up) - len(admitting) <= self.max_ejected_share * len(up):
            return admitting
        return up or [r for r in able if r.health is Health.PAUSED] or [r for r in able if r.health is Health.DOWN]

    def models(self) -> list[dict[str, object]]:
        """The union of the replicas' /v1/models entries, each id once, from replicas that are not down if possible."""
        entries: dict[str, dict[str, object]] = {}
        for replica in sorted(self._replicas.values(), key=lambda r: r.health is Health.DOWN):
            for entry in replica.info.model_entries if replica.info else ():
                entries.setdefault(str(entry["id"]), dict(entry))
        return list(entries.values())

    def canonical_model(self, name: str) -> str:
        """The name that stands in block keys: an alias is replaced by its base model's first name."""
        for replica in self._replicas.values():
            if replica.info is not None and name in replica.info.models:
                return replica.info.models[0]
        return name

    def chosen(self, replica: Replica) -> None:
        """Note a dispatch, for breaking ties by least recent use."""
        self._turn += 1
        replica.load.turn = self._turn
        self.changed()


def _nothing() -> None:
    """There are no other workers."""
