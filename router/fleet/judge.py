"""What the tries of one request say about the replicas they went to."""

from __future__ import annotations

from router.fleet.outliers import Outliers
from router.fleet.replica import Replica

_BROKEN = frozenset(("lost", "timeout", "bad_response", "cut", "engine_error"))


class Judge:
    """One request's. Each `sent` is followed by exactly one `ended`.

    A replica that answers 500, or an error before its first token, may be right: the request can be what fails. So it
    is blamed only once another replica did answer the same request.
    """

    __slots__ = ("_blamed", "_outliers", "_trial")

    def __init__(self, outliers: Outliers) -> None:
        self._outliers = outliers
        self._blamed: list[Replica] = []
        self._trial = False

    def sent(self, replica: Replica) -> None:
        """The replica gets the request."""
        self._trial = self._outliers.sent(replica)

    def answered(self, replica: Replica, status: int) -> None:
        """The first byte of an answer that goes to the client."""
        if status >= 500:
            return
        self._outliers.succeeded(replica)
        for other in self._blamed:
            self._outliers.failed(other, "it failed over a request that another replica answered")
        self._blamed.clear()

    def ended(self, replica: Replica, error: str | None, status: int | None, message: str, *, full: bool) -> None:
        """The try is over; error, status and message as in proxy.plan.Attempt. full: the engine said it has no room."""
        if error == "connect":
            self._outliers.refused(replica, message)
        elif error in _BROKEN:
            self._outliers.failed(replica, message or str(error))
        elif full or error == "pool_full":
            self._outliers.full(replica)
        elif error == "status":
            if status in (200, 500):
                self._blamed.append(replica)
            else:
                self._outliers.failed(replica, message)
        if self._trial:
            self._outliers.ended(replica)
            self._trial = False
