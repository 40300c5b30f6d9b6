"""A scripted Kubernetes API server that grants what a Role grants."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Self

from aiohttp import web

Step = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ApiServer:
    """EndpointSlices of one namespace, with list, watch, pages, bookmarks and history; `lists` and `watches` hold
    answers that are given once, in order, instead of the right one. Allows what `rules` (of a Role) grant there.

    Example:
        >>> async with ApiServer(rules) as api:
        ...     api.put({"metadata": {"name": "a"}, "addressType": "IPv4", "endpoints": []})
    """

    def __init__(self, rules: list[dict[str, Any]], namespace: str = "models") -> None:
        self.rules = rules
        self.namespace = namespace
        self.asked: set[tuple[str, str, str]] = set()
        """(API group, resource, verb) of every call."""
        self._runner: web.AppRunner | None = None
        self.slices: dict[str, dict[str, Any]] = {}
        self.version = 100
        self.oldest = 0
        self.page = 1000
        self.history: list[tuple[int, dict[str, Any]]] = []
        self.lists: deque[Step] = deque()
        self.watches: deque[Step] = deque()
        self.calls: list[tuple[str, dict[str, str], str]] = []
        self.token = "first"
        self.url = ""
        self._news = asyncio.Condition()
        self._open: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/apis/{group}/v1/namespaces/{namespace}/{resource}", self.handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def put(self, item: dict[str, Any]) -> None:
        """Create or replace a slice."""
        name = item["metadata"]["name"]
        self._note("MODIFIED" if name in self.slices else "ADDED", item)
        self.slices[name] = item

    def delete(self, name: str) -> None:
        """Delete a slice."""
        self._note("DELETED", self.slices.pop(name))

    def bookmark(self) -> None:
        """Send a bookmark at a version at which nothing of ours changed."""
        self._note("BOOKMARK", {"kind": "EndpointSlice", "metadata": {}})

    def forget(self) -> None:
        """Compact: versions up to now can't be watched from."""
        self.oldest = self.version = self.version + 1

    def _note(self, kind: str, item: dict[str, Any]) -> None:
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        self.history.append((self.version, {"type": kind, "object": json.loads(json.dumps(item))}))
        task = asyncio.ensure_future(self._wake())
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _wake(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        watching = request.query.get("watch") == "1"
        verb = "watch" if watching else "list"
        self.calls.append((verb, dict(request.query), request.headers.get("authorization", "")))
        group, resource = request.match_info["group"], request.match_info["resource"]
        self.asked.add((group, resource, verb))
        if request.match_info["namespace"] != self.namespace or (group, resource, verb) not in granted(self.rules):
            return failure(403, f"cannot {verb} {resource} in the namespace")
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return failure(401, "Unauthorized")
        script = self.watches if watching else self.lists
        if script:
            return await script.popleft()(request)
        return await (self._watch(request) if watching else self._list(request))

    async def _list(self, request: web.Request) -> web.Response:
        names = sorted(self.slices)
        start = int(request.query.get("continue", "0"))
        size = min(self.page, int(request.query["limit"]))
        meta = {"resourceVersion": str(self.version)}
        if start + size < len(names):
            meta["continue"] = str(start + size)
        return web.json_response({"metadata": meta, "items": [self.slices[n] for n in names[start : start + size]]})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])
        if since < self.oldest:
            return failure(410, "too old resource version")
        response = await opened(request)
        deadline = asyncio.get_running_loop().time() + int(request.query["timeoutSeconds"])
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout_at(deadline):
                while True:
                    for version, event in list(self.history):
                        if version > since:
                            await response.write(json.dumps(event).encode() + b"\n")
                            since = version
                    async with self._news:
                        if self.version <= since or not self.history or self.history[-1][0] <= since:
                            await self._news.wait()
        return response


def granted(rules: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    """(API group, resource, verb) of a Role's rules."""
    return {each for rule in rules for each in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])}


def failure(code: int, message: str, **details: Any) -> web.Response:
    body = {"kind": "Status", "code": code, "message": message, "details": details}
    return web.json_response(body, status=code)


async def opened(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_type = "application/json"
    await response.prepare(request)
    return response
