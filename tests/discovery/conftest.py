"""A scripted Kubernetes API server that enforces the chart's own Role, and a collector of what sources report."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from router.fleet.discovery import Endpoint, Source
from router.fleet.discovery.cluster import Cluster

ROLE = Path(__file__).resolve().parents[2] / "helm" / "prefix-router" / "files" / "role-rules.yaml"
TIMEOUT_S = 10.0

Step = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ApiServer:
    """EndpointSlices of one namespace, with list, watch, pages, bookmarks and history; `lists` and `watches` hold
    answers that are given once, in order, instead of the right one."""

    def __init__(self) -> None:
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
        self._rules = yaml.safe_load(ROLE.read_text())
        self._open: set[asyncio.Task[Any]] = set()

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
        if not any(group in r["apiGroups"] and resource in r["resources"] and verb in r["verbs"] for r in self._rules):
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


def failure(code: int, message: str, **details: Any) -> web.Response:
    body = {"kind": "Status", "code": code, "message": message, "details": details}
    return web.json_response(body, status=code)


async def opened(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_type = "application/json"
    await response.prepare(request)
    return response


@pytest.fixture
async def api() -> AsyncIterator[ApiServer]:
    server = ApiServer()
    app = web.Application()
    app.router.add_get("/apis/{group}/v1/namespaces/{namespace}/{resource}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


@pytest.fixture
def cluster(api: ApiServer, tmp_path: Path) -> Callable[[], Cluster]:
    token = tmp_path / "token"
    token.write_text("first\n")
    return lambda: Cluster(url=api.url, namespace="models", token_file=token)


class Reports:
    """Runs a source and waits for what it reports."""

    def __init__(self) -> None:
        self.all: list[list[Endpoint]] = []
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, source: Source) -> None:
        self._tasks.append(asyncio.create_task(source.run(self._update)))

    def _update(self, endpoints: list[Endpoint]) -> None:
        self.all.append(endpoints)
        self._news.set()

    @property
    def now(self) -> dict[str, Endpoint]:
        return {endpoint.id: endpoint for endpoint in self.all[-1]} if self.all else {}

    async def until(self, wanted: Callable[[dict[str, Endpoint]], bool]) -> dict[str, Endpoint]:
        async with asyncio.timeout(TIMEOUT_S):
            while not self.all or not wanted(self.now):
                self._news.clear()
                done = [task for task in self._tasks if task.done()]
                if done:
                    done[0].result()
                await self._news.wait()
        return self.now

    async def names(self, *ids: str) -> dict[str, Endpoint]:
        return await self.until(lambda now: set(now) == set(ids))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
async def reports() -> AsyncIterator[Reports]:
    collector = Reports()
    yield collector
    await collector.close()


@pytest.fixture
def scripted() -> Iterator[type]:
    """The pieces scripts are made of."""

    class Pieces:
        failure = staticmethod(failure)
        opened = staticmethod(opened)

    yield Pieces
