"""The admin port of a router of several workers: each page is asked of all of them and put together.

Lists are merged, records are found wherever they are, loads are added up. A session whose steps came to several
workers is shown as one, its steps in order of time.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

from aiohttp import web

from router.api.admin_auth import TENANT
from router.api.dashboard import BREAKS, MAX_ROWS, PREFIXES, SESSIONS, Page
from router.api.report import MAX_LIMIT, ReportError, whole

OWNER = "x-prefix-router-owner"
"""From supervisor to worker: the tenant whose records the caller may see."""
_SUMS = (
    *("steps", "prompt_tokens", "resent_tokens", "reused_tokens", "prefilled_tokens", "lost_to_breaks_tokens"),
    "saved_gpu_seconds",
)
Answer = tuple[int, Any]


class Worker(Protocol):
    """A worker that is up."""

    async def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """(status, decoded JSON). Raises OSError when it is gone."""


class Gathered:
    """`workers`: those that are up."""

    def __init__(self, workers: Callable[[], Sequence[Worker]]) -> None:
        self._workers = workers
        self._turn = 0
        self._run = uuid.uuid4().hex

    def routes(self) -> list[web.RouteDef]:
        """For the admin application."""
        return [
            web.get("/requests", self._json(self._requests)),
            web.get("/requests/{id}", self._json(self._request)),
            web.get("/sessions", self._json(self._sessions)),
            web.get("/sessions/{id}", self._json(self._session)),
            web.get("/savings", self._json(self._savings)),
            web.post("/explain", self._explain),
            web.get("/", Page().get),
            web.get("/live", self._json(self._live)),
        ]

    async def everyone(self, path: str, headers: dict[str, str] | None = None) -> list[Answer]:
        """The answers of all workers; those that are gone are left out."""
        asked = await asyncio.gather(
            *(worker.ask("GET", path, headers=headers) for worker in self._workers()), return_exceptions=True
        )
        for answer in asked:
            if isinstance(answer, BaseException) and not isinstance(answer, OSError):
                raise answer
        return [answer for answer in asked if not isinstance(answer, BaseException)]

    async def replicas(self) -> dict[str, Any]:
        """What /replicas answers."""
        pages = [page for status, page in await self.everyone("/replicas") if status == 200]
        return merged_replicas(pages)

    @staticmethod
    def _json(answer: Callable[[web.Request], Awaitable[Any]]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handler(request: web.Request) -> web.Response:
            try:
                return web.json_response(await answer(request))
            except ReportError as error:
                return error.answer()

        return handler

    async def _ask(self, request: web.Request, path: str) -> list[Any]:
        """What the workers answer that know it. Raises ReportError with the answer of one if none does."""
        owner = request.get(TENANT)
        answers = await self.everyone(path, None if owner is None else {OWNER: owner})
        if not answers:
            raise ReportError(503, "no worker is up")
        good = [answer for status, answer in answers if status == 200]
        if not good:
            status, answer = next((each for each in answers if each[0] != 404), answers[0])
            raise ReportError(status, answer["error"]["message"], answer["error"]["field"])
        return good

    async def _requests(self, request: web.Request) -> dict[str, Any]:
        limit = whole(request, "limit", 50, MAX_LIMIT)
        # Workers answer one after the other: what is later than the question is left for the next.
        seq = time.time_ns() // 1000
        pages = await self._ask(request, request.path_qs)
        found = [record for page in pages for record in page["requests"] if record["seq"] <= seq]
        found.sort(key=lambda record: record["seq"], reverse=True)
        return {"requests": found[:limit], "seq": seq}

    async def _request(self, request: web.Request) -> Any:
        return (await self._ask(request, request.path_qs))[0]

    async def _sessions(self, request: web.Request) -> dict[str, Any]:
        limit, start = whole(request, "limit", 50, MAX_LIMIT), whole(request, "start", 0, 10_000_000, least=0)
        wanted, found = start + limit + 1, []
        for at in range(0, wanted, MAX_LIMIT):
            query = dict(request.query) | {"limit": str(MAX_LIMIT), "start": str(at)}
            pages = await self._ask(request, str(request.rel_url.with_query(query)))
            found += [session for page in pages for session in page["sessions"]]
            if not any(page["next"] for page in pages):
                break
        merged = merged_sessions(found)
        more = len(merged) > start + limit
        return {"sessions": merged[start : start + limit], "next": start + limit if more else None}

    async def _session(self, request: web.Request) -> dict[str, Any]:
        limit, start = whole(request, "limit", 100, MAX_LIMIT), whole(request, "start", 0, 10_000_000, least=0)
        parts: list[dict[str, Any]] = []
        firsts: list[dict[str, Any]] = []
        at: int | None = 0
        while at is not None:
            query = {"limit": str(MAX_LIMIT), "start": str(at)}
            pages = await self._ask(request, str(request.rel_url.with_query(query)))
            parts += pages
            firsts = firsts or pages
            at = next((page["next"] for page in pages if page["next"]), None)
        if len({part["id"] for part in parts}) > 1:
            ids = ", ".join(sorted({part["id"] for part in parts})[:5])
            raise ReportError(409, f"several sessions have this name; ask by id: {ids}", "id")
        told = merged_sessions(firsts)[0]
        breaks = {(each["at"], each["request"]): each for part in parts for each in part["recent_breaks"]}
        table = merged_steps(parts, told)
        return {
            **told,
            "recent_breaks": [breaks[key] for key in sorted(breaks)],
            "table": table[start : start + limit],
            "next": start + limit if len(table) > start + limit else None,
        }

    async def _savings(self, request: web.Request) -> dict[str, Any]:
        pages = await self._ask(request, request.path_qs)
        sums: dict[tuple[str, str], dict[str, Any]] = {}
        for line in (line for page in pages for line in page["savings"]):
            key = line["tenant"], line["model"]
            sums[key] = {**line, **_added(sums[key], line)} if key in sums else line
        return {"savings": list(sums.values())}

    async def _live(self, request: web.Request) -> dict[str, Any]:
        seq = time.time_ns() // 1000
        pages = await self._ask(request, request.path_qs)
        requests, breaks = (
            sorted((row for page in pages for row in page[name]), key=lambda row: row["seq"], reverse=True)
            for name in ("requests", "breaks")
        )
        sessions = merged_sessions(session for page in pages for session in page["sessions"])
        prefixes: dict[Any, dict[str, Any]] = {}
        for told in (told for page in pages for told in page["prefixes"]):
            known = prefixes.get(told["key"])
            prefixes[told["key"]] = (
                told if known is None else {**told, "requests": known["requests"] + told["requests"]}
            )
        hottest = sorted(prefixes.values(), key=lambda told: told["requests"] * told["tokens"], reverse=True)
        totals = pages[0]["totals"]
        for page in pages[1:]:
            totals = {**totals, **_added(totals, page["totals"])}
        ready = [page["ready"] for page in pages]
        return {
            "run": self._run,
            "now": round(time.time(), 3),
            "seq": seq,
            "ready": {"status": max((each["status"] for each in ready), key=_STATES.index), **merged_ready(ready)},
            "replicas": merged_replicas(pages)["replicas"],
            "timeline": merged_timeline(pages),
            "requests": [row for row in requests if row["seq"] <= seq][:MAX_ROWS],
            "breaks": breaks[:BREAKS],
            "sessions": sessions[:SESSIONS],
            "session_count": max(page["session_count"] for page in pages),
            "prefixes": hottest[:PREFIXES],
            "totals": totals,
        }

    async def _explain(self, request: web.Request) -> web.Response:
        """Asked of one worker, in turns: each knows the fleet, and the others' work."""
        body, workers = await request.read(), list(self._workers())
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OWN_HEADERS}
        for _ in workers:
            self._turn += 1
            try:
                status, answer = await workers[self._turn % len(workers)].ask("POST", request.path_qs, body, headers)
            except OSError:
                continue
            return web.json_response(answer, status=status)
        return ReportError(503, "no worker is up").answer()


_OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection", "authorization"})


_STATES = ("ready", "degraded", "unavailable", "draining")
"""The better first."""


def merged_timeline(pages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same times added up."""
    buckets: dict[int, dict[str, Any]] = {}
    for bucket in (bucket for page in pages for bucket in page["timeline"]):
        known = buckets.get(bucket["at"])
        sums = {} if known is None else {name: known[name] + value for name, value in bucket.items() if name != "at"}
        buckets[bucket["at"]] = {**bucket, **sums}
    return [buckets[at] for at in sorted(buckets)]


def merged_replicas(pages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """As one worker tells it, with the work of all; `health_by_worker` where they don't agree."""
    views: dict[str, list[dict[str, Any]]] = {}
    for replica in (replica for page in pages for replica in page["replicas"]):
        views.setdefault(replica["id"], []).append(replica)
    found = []
    for same in views.values():
        told = dict(same[0])
        for name in ("running", "pending_prefill_tokens"):
            told[name] = sum(view[name] for view in same)
        health = [view["health"] for view in same]
        if len(set(health)) > 1:
            told["health_by_worker"] = health
        found.append(told)
    return {"replicas": found, "removed": pages[0].get("removed", []) if pages else []}


def merged_ready(pages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`replicas_up` as the worker tells it that knows the fewest; what only some say is marked with their number."""
    said = Counter(trouble for page in pages for trouble in set(page["degraded"]))
    return {
        "replicas": max((page["replicas"] for page in pages), default=0),
        "replicas_up": min((page["replicas_up"] for page in pages), default=0),
        "degraded": [
            trouble if count == len(pages) else f"{trouble} ({count} of {len(pages)} workers say so)"
            for trouble, count in said.items()
        ],
    }


def merged_sessions(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each id, last used first."""
    sessions: dict[str, dict[str, Any]] = {}
    for told in found:
        known = sessions.get(told["id"])
        if known is not None:
            told = {
                **told,
                **_added(known, told),
                "began": min(known["began"], told["began"]),
                "last": max(known["last"], told["last"]),
                "parent": known["parent"] or told["parent"],
                **{name: dict(Counter(known[name]) + Counter(told[name])) for name in ("replicas", "breaks")},
            }
        sessions[told["id"]] = told
    return sorted(sessions.values(), key=lambda told: told["last"], reverse=True)


def merged_steps(parts: Sequence[dict[str, Any]], session: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of one session as several workers tell them, by time, with their sums anew: the last ones are those of
    `session` as a whole, of which the oldest steps may be forgotten."""
    rows = sorted((row for part in parts for row in part["table"]), key=lambda row: row["at"])
    known = [row for row in rows if row["reused_tokens"] is not None]
    without = session["prompt_tokens"] - sum(row["prompt_tokens"] for row in known)
    done = session["prefilled_tokens"] - sum(row["prefilled_tokens"] for row in known)
    merged = []
    for row in rows:
        without += row["prompt_tokens"] if row["reused_tokens"] is not None else 0
        done += row["prefilled_tokens"] or 0
        merged.append({**row, "sum_without_reuse": without, "sum_prefilled": done})
    return merged


def _added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    sums = {name: round(one[name] + other[name], 3) for name in _SUMS}
    sums["hit_rate"] = round(sums["reused_tokens"] / sums["prompt_tokens"], 4) if sums["prompt_tokens"] else None
    return sums
