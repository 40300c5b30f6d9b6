"""Requests are pushed only where there is room; the others wait here, where they can still go anywhere."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from time import monotonic

from router.proxy.queue import FairQueue, QueueFull, Waiter


class Refused(Exception):
    """A request that got no turn. reason: `share`, `queue_full` or `deadline`; retry_after_s: when to come again."""

    def __init__(self, reason: str, retry_after_s: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


class Admission:
    """One queue for all models. `slots(model)`: how many sequences more the replicas of a model can take.

    A request that was let in counts against the slots until `landed`: then its replica's own counters have it.
    """

    def __init__(self, slots: Callable[[str | None], float], *, size: int = 4096) -> None:
        self.queue = FairQueue(size)
        self.refused = dict.fromkeys(("share", "queue_full", "deadline"), 0)
        self.waited = 0
        """Requests that had to wait and got their turn."""
        self._slots = slots
        self._coming: dict[str | None, int] = {}
        self._turns: deque[float] = deque(maxlen=64)  # when the last turns were given

    def open_to(self, model: str | None, sequences: int) -> bool:
        """Let a request in at once if there is room and nobody waits before it; it counts as coming."""
        if self.queue and self.queue.waits_for(model):
            return False
        if self._slots(model) - self._coming.get(model, 0) <= 0:
            return False
        self._coming[model] = self._coming.get(model, 0) + sequences
        return True

    def landed(self, model: str | None, sequences: int) -> None:
        """A request that was let in was sent, or never will be."""
        left = self._coming.get(model, 0) - sequences
        if left > 0:
            self._coming[model] = left
        else:
            self._coming.pop(model, None)

    async def wait(self, waiter: Waiter, deadline: float) -> None:
        """Until it is the waiter's turn; then it counts as coming. Raises Refused. `deadline`: monotonic seconds."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def wake(go: bool) -> None:
            if not future.done():
                future.set_result(go)

        waiter.wake = wake
        try:
            self.queue.push(waiter)
        except QueueFull as full:
            raise self._refuse("share" if full.share else "queue_full") from None
        self.pump()
        try:
            async with asyncio.timeout(max(0.0, deadline - monotonic())):
                turn = await future
        except TimeoutError:
            self.queue.remove(waiter)
            if future.cancelled() or not future.done():
                raise self._refuse("deadline") from None
            turn = future.result()  # it came in the same moment
        except asyncio.CancelledError:
            self.queue.remove(waiter)
            if future.done() and not future.cancelled() and future.result():
                self.landed(waiter.model, waiter.sequences)
                self.pump()
            raise
        if not turn:
            raise self._refuse("share")
        self.waited += 1

    def pump(self) -> None:
        """Give turns while there is room. Called when a request ended, and every 0.1 s."""
        if not self.queue:
            return
        left: dict[str | None, float] = {}

        def may_go(waiter: Waiter) -> bool:
            model = waiter.model
            if model not in left:
                left[model] = self._slots(model) - self._coming.get(model, 0)
            return left[model] > 0

        while (waiter := self.queue.pop(may_go)) is not None:
            left[waiter.model] -= waiter.sequences
            self._coming[waiter.model] = self._coming.get(waiter.model, 0) + waiter.sequences
            self._turns.append(monotonic())
            waiter.wake(True)

    def _refuse(self, reason: str) -> Refused:
        self.refused[reason] += 1
        return Refused(reason, self._retry_after_s())

    def _retry_after_s(self) -> int:
        """When those that wait now will have had their turn, at the pace of the last turns; 1 to 60 s."""
        if len(self._turns) < 2:
            return 1
        pace = len(self._turns) / max(0.1, monotonic() - self._turns[0])
        return min(60, max(1, math.ceil(len(self.queue) / pace)))
