"""Requests that wait for room: who goes next, and who has to leave when too many wait. No I/O, no clock."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

REMEMBERED_TENANTS = 4096


class QueueFull(Exception):
    """share: the tenant has more than its part of the queue; else there are too many altogether."""

    def __init__(self, share: bool) -> None:
        super().__init__("queue full")
        self.share = share


@dataclass(order=True, slots=True)
class Waiter:
    """One request in the queue. A smaller `rank` goes first among its tenant's; then who came first (`number`)."""

    rank: int
    number: int
    tenant: str = field(compare=False)
    model: str | None = field(compare=False)
    sequences: int = field(compare=False, default=1)
    cost: float = field(compare=False, default=1.0)
    """What it takes from its tenant's fair share: prompt and answer tokens."""
    wake: Callable[[bool], None] = field(compare=False, default=lambda go: None)
    """Called with True when it is its turn, with False when it has to leave for another tenant's request."""


class FairQueue:
    """At most `size` waiters. Tenants take turns by the tokens they were given so far; one that comes back after a
    while starts level with those that wait. Within a tenant smaller ranks go first, then older ones.

    When it is full, the tenant with the most waiters gives way: its last one leaves for the newcomer. If that is the
    newcomer's own tenant, the newcomer is refused.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._numbers = count()
        self._waiting: dict[str, dict[str | None, list[Waiter]]] = {}
        self._counts: dict[str, int] = {}
        self._given: OrderedDict[str, float] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def number(self) -> int:
        """The next arrival's. One that has to wait once more keeps its own."""
        return next(self._numbers)

    def waits_for(self, model: str | None) -> bool:
        """Somebody waits for this model."""
        return any(model in models for models in self._waiting.values())

    def push(self, waiter: Waiter) -> None:
        """Raises QueueFull."""
        if self._length >= self._size:
            largest = max(self._counts, key=self._counts.__getitem__, default=waiter.tenant)
            if self._counts.get(waiter.tenant, 0) >= self._counts.get(largest, 0):
                raise QueueFull(share=len(self._counts) > 1)
            last = max(max(heap) for heap in self._waiting[largest].values())
            self.remove(last)
            last.wake(False)
        if waiter.tenant not in self._waiting:
            # Who had nothing waiting can't have saved up its turns meanwhile.
            level = min((self._given[tenant] for tenant in self._waiting), default=0.0)
            self._given[waiter.tenant] = max(level, self._given.pop(waiter.tenant, 0.0))
            while len(self._given) > REMEMBERED_TENANTS:
                oldest = next(tenant for tenant in self._given if tenant not in self._waiting)
                del self._given[oldest]
        heapq.heappush(self._waiting.setdefault(waiter.tenant, {}).setdefault(waiter.model, []), waiter)
        self._counts[waiter.tenant] = self._counts.get(waiter.tenant, 0) + 1
        self._length += 1

    def remove(self, waiter: Waiter) -> None:
        """It waits no more; nothing if it did not."""
        heap = self._waiting.get(waiter.tenant, {}).get(waiter.model, [])
        for position, each in enumerate(heap):
            if each is waiter:
                heap[position] = heap[-1]
                heap.pop()
                heapq.heapify(heap)
                self._removed(waiter)
                return

    def pop(self, may_go: Callable[[Waiter], bool]) -> Waiter | None:
        """The next one whose model has room, charged to its tenant; None if there is none."""
        for tenant in sorted(self._waiting, key=self._given.__getitem__):
            heads = [heap[0] for heap in self._waiting[tenant].values() if may_go(heap[0])]
            if heads:
                waiter = min(heads)
                heapq.heappop(self._waiting[tenant][waiter.model])
                self._given[tenant] += waiter.cost
                self._removed(waiter)
                return waiter
        return None

    def _removed(self, waiter: Waiter) -> None:
        self._length -= 1
        models = self._waiting[waiter.tenant]
        if not models[waiter.model]:
            del models[waiter.model]
        self._counts[waiter.tenant] -= 1
        if not models:
            del self._waiting[waiter.tenant]
            del self._counts[waiter.tenant]
