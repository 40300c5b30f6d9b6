"""The admin API's replicas: added, drained and removed at run time.

| request | effect |
|---|---|
| POST /replicas {"url", "id", "engine", "labels", "events"} | joins (201); one that was removed may join again |
| POST /replicas/ID/drain | gets nothing new, finishes what it has |
| POST /replicas/ID/undrain | gets requests again once it answered a probe |
| DELETE /replicas/ID | leaves at once; its running answers are finished |

ID may be that of an engine of several data-parallel ranks (`ID/dp0`, `ID/dp1`): then all of them are meant.
Whoever else names a replica (configuration, discovery, agents), these wishes come first, until they are undone or the
router restarts.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from router.fleet.discovery.file import Entry
from router.fleet.discovery.roster import whole
from router.fleet.membership import ADMIN, Wishes

View = Callable[[], Awaitable[list[dict[str, Any]]]]
"""What /replicas lists now."""


class ReplicaAdmin:
    """`carry_out` is awaited with all wishes after each change."""

    def __init__(self, wishes: Wishes, view: View, carry_out: Callable[[Wishes], Awaitable[None]]) -> None:
        self._wishes = wishes
        self._view = view
        self._carry_out = carry_out
        self._lock = asyncio.Lock()

    def routes(self) -> list[web.RouteDef]:
        """For the admin application."""
        return [
            web.post("/replicas", self._add),
            web.post("/replicas/{id:.+}/drain", self._drain),
            web.post("/replicas/{id:.+}/undrain", self._undrain),
            web.delete("/replicas/{id:.+}", self._remove),
        ]

    async def _add(self, request: web.Request) -> web.Response:
        try:
            endpoint = msgspec.json.decode(await request.read(), type=Entry).endpoint()
            urlsplit(endpoint.url).port  # noqa: B018  (raises ValueError for an impossible port)
        except msgspec.ValidationError as error:
            message, _, where = str(error).partition(" - at `$.")
            unnamed = re.search(r"field `(\w+)`", message)
            return refused(400, message, where.rstrip("`") or (unnamed[1] if unnamed else None))
        except msgspec.DecodeError as error:
            return refused(400, f'the body must be a JSON object such as {{"url": "http://10.0.0.7:8000"}}: {error}')
        except ValueError as error:
            return refused(400, str(error), "url")
        async with self._lock:
            wishes = self._wishes
            for known in await self._view():
                if endpoint.id == known["id"]:
                    return refused(409, f"replica {endpoint.id} exists already (named by {named(known)})", "id")
                if endpoint.url == known["url"]:
                    return refused(409, f"{endpoint.url} is replica {known['id']} already", "url")
            wishes.removed.discard(endpoint.id)
            wishes.drained.discard(endpoint.id)
            if endpoint.terminating:
                wishes.drained.add(endpoint.id)
            wishes.added = [each for each in wishes.added if each.id != endpoint.id]
            wishes.added.append(replace(endpoint, ready=True, terminating=False))
            return await self._carried_out(endpoint.id, 201)

    async def _drain(self, request: web.Request) -> web.Response:
        async with self._lock:
            replica_id = request.match_info["id"]
            if await self._find(replica_id) is None:
                return unknown(replica_id)
            self._wishes.drained.add(replica_id)
            return await self._carried_out(replica_id, 200)

    async def _undrain(self, request: web.Request) -> web.Response:
        async with self._lock:
            replica_id = request.match_info["id"]
            if await self._find(replica_id) is None:
                return unknown(replica_id)
            self._wishes.drained.discard(replica_id)
            return await self._carried_out(replica_id, 200)

    async def _remove(self, request: web.Request) -> web.Response:
        async with self._lock:
            replica_id = request.match_info["id"]
            wishes = self._wishes
            known = await self._find(replica_id)
            if known is None:
                return unknown(replica_id)
            wishes.added = [each for each in wishes.added if each.id != replica_id]
            wishes.drained.discard(replica_id)
            if known["sources"] != [ADMIN] or known["id"] == replica_id != whole(replica_id):
                wishes.removed.add(replica_id)
            await self._carry_out(wishes)
            return web.json_response({"id": replica_id, "removed": True})

    async def _find(self, replica_id: str) -> dict[str, Any] | None:
        """The replica of that id, or the first rank of the engine of that id."""
        return next((known for known in await self._view() if replica_id in (known["id"], whole(known["id"]))), None)

    async def _carried_out(self, replica_id: str, status: int) -> web.Response:
        await self._carry_out(self._wishes)
        known = await self._find(replica_id)
        if known is None:
            return refused(409, f"replica {replica_id} could not join: see the log")
        return web.json_response(known, status=status)


def refused(status: int, message: str, field: str | None = None) -> web.Response:
    """The admin API's error: {"error": {"message", "field"}}."""
    return web.json_response({"error": {"message": message, "field": field}}, status=status)


def unknown(replica_id: str) -> web.Response:
    """The answer about a replica that doesn't exist."""
    return refused(404, f"there is no replica {replica_id}; GET /replicas lists them", "id")


def named(known: dict[str, Any]) -> str:
    """Who names a replica, as a text."""
    return ", ".join(known["sources"]) or "nobody"
