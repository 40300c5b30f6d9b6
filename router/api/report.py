"""What the operators' listener tells of requests and sessions: lists with paging, single records, savings.

Everything here reads; a caller that is known by an API key sees only its tenant's, and of that nothing that would tell
what others have cached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from aiohttp import web

from router.observe.observer import Observer
from router.observe.sessions import Session

MAX_LIMIT = 500
TELLING = frozenset(
    {"reason", "matched_tokens", "best_matched_tokens", "candidates", "cause", "computed_tokens", "tries"}
)
"""Of a record or a step: what was expected to be cached, on this and on other replicas."""
Owner = Callable[[web.Request], str | None]
"""Whose records a request may see: a tenant's, or with None everyone's."""


class ReportError(Exception):
    """A question that can't be answered; `field`: the query parameter or path part at fault."""

    def __init__(self, status: int, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.field = field

    def answer(self) -> web.Response:
        """In the admin port's error format."""
        return web.json_response({"error": {"message": self.message, "field": self.field}}, status=self.status)


Handler = Callable[[web.Request], Any]


class Report:
    """The handlers. `owner`: whose records a request may see. `hides_matches`: tenants share caches, and must not learn
    from matches what others sent (see api.keys.Grant.visible).
    """

    def __init__(self, observer: Observer, owner: Owner, hides_matches: Callable[[], bool]) -> None:
        self._observer = observer
        self._owner = owner
        self._hides_matches = hides_matches

    def routes(self) -> list[web.RouteDef]:
        """For the admin application."""
        return [
            web.get("/requests", self._json(self._requests)),
            web.get("/requests/{id}", self._json(self._request)),
            web.get("/sessions", self._json(self._sessions)),
            web.get("/sessions/{id}", self._json(self._session)),
            web.get("/savings", self._json(self._savings)),
        ]

    @staticmethod
    def _json(answer: Handler) -> Callable[[web.Request], Any]:
        async def handler(request: web.Request) -> web.Response:
            try:
                return web.json_response(answer(request))
            except ReportError as error:
                return error.answer()

        return handler

    def _requests(self, request: web.Request) -> dict[str, Any]:
        limit, since = whole(request, "limit", 50, MAX_LIMIT), whole(request, "since", 0, 1 << 62, least=0)
        owner = self._owner(request)
        mine = (
            record
            for record in self._observer.recent.latest(1 << 30, since=since)
            if owner is None or record["tenant"] == owner
        )
        return {
            "requests": [self._shown(each, owner) for each in islice(mine, limit)],
            "seq": self._observer.recent.last_seq,
        }

    def _request(self, request: web.Request) -> dict[str, Any]:
        wanted = request.match_info["id"]
        owner = self._owner(request)
        record = self._observer.recent.get(wanted, owner)
        if record is None:
            raise ReportError(
                404, f"no request {_brief(wanted)} is remembered (observe.recent_requests bounds them)", "id"
            )
        return self._shown(record, owner)

    def _sessions(self, request: web.Request) -> dict[str, Any]:
        limit, start = whole(request, "limit", 50, MAX_LIMIT), whole(request, "start", 0, 10_000_000, least=0)
        owner = self._scope(request)
        found = self._observer.sessions.latest(owner, request.query.get("model"))
        if request.query.get("broken") in ("1", "true"):
            found = (session for session in found if session.breaks)
        page = [session.told() for session in islice(found, start, start + limit + 1)]
        return {"sessions": page[:limit], "next": start + limit if len(page) > limit else None}

    def _session(self, request: web.Request) -> dict[str, Any]:
        wanted = request.match_info["id"]
        limit, start = whole(request, "limit", 100, MAX_LIMIT), whole(request, "start", 0, 10_000_000, least=0)
        found = self._observer.sessions.find(wanted, self._owner(request))
        if not found:
            raise ReportError(404, f"no session {_brief(wanted)} is remembered", "id")
        if len(found) > 1:
            ids = ", ".join(session.id for session in found[:5])
            raise ReportError(409, f"{len(found)} sessions have the name {_brief(wanted)}; ask by id: {ids}", "id")
        session = found[0]
        page = list(islice(_steps(session), start, start + limit + 1))
        return {
            **session.told(),
            "recent_breaks": [step.told() for step in session.breaks],
            "table": [self._shown(step, self._owner(request)) for step in page[:limit]],
            "next": start + limit if len(page) > limit else None,
        }

    def _savings(self, request: web.Request) -> dict[str, Any]:
        return {"savings": self._observer.sessions.savings(self._scope(request))}

    def _shown(self, record: dict[str, Any], owner: str | None) -> dict[str, Any]:
        if owner is None or not self._hides_matches():
            return record
        return {name: value for name, value in record.items() if name not in TELLING}

    def _scope(self, request: web.Request) -> str | None:
        """The tenant asked for, if that may be seen."""
        owner, asked = self._owner(request), request.query.get("tenant")
        if owner is not None and asked not in (None, owner):
            raise ReportError(403, f"this key belongs to tenant {owner!r} and sees only that", "tenant")
        return asked if owner is None else owner


def _brief(given: str) -> str:
    """An id as the caller gave it, for a message: its beginning."""
    return repr(given if len(given) <= 80 else given[:80] + "...")


def _steps(session: Session) -> Iterator[dict[str, Any]]:
    """Each step kept, with the sums so far: prefilled without reuse and with."""
    dropped = session.totals.prompt - sum(step.prompt for step in session.steps if step.reused is not None)
    reused = session.totals.reused - sum(step.reused or 0 for step in session.steps)
    without, done = dropped, dropped - reused
    for step in session.steps:
        if step.reused is not None:
            without += step.prompt
            done += step.prompt - step.reused
        yield {**step.told(), "sum_without_reuse": without, "sum_prefilled": done}


def whole(request: web.Request, name: str, default: int, most: int, *, least: int = 1) -> int:
    """A whole number of the query. Raises ReportError."""
    text = request.query.get(name)
    if text is None:
        return default
    try:
        value = int(text) if len(text) <= 20 else most + 1
    except ValueError:
        raise ReportError(400, f"{name} must be a whole number, not {text[:40]!r}", name) from None
    if not least <= value <= most:
        raise ReportError(400, f"{name} must be between {least} and {most}, not {text[:40]}", name)
    return value
