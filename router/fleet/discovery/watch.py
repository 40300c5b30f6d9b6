"""List and watch of EndpointSlices over HTTP: what goes over the wire, and every way the API server can say no."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import msgspec

from router.fleet.discovery.cluster import Cluster

PAGE = 100
LONGEST_LINE = 16 << 20
"""Bytes of one watch event: a slice has at most 1,000 endpoints, about 0.5 MB."""


class Expired(Exception):
    """The server no longer has that resource version (410): list again."""


class Refused(Exception):
    """The server said no; the message is for the operator. `retry_s`: how long it asked to wait, or 0."""

    def __init__(self, message: str, *, retry_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class SliceApi:
    """The two calls discovery makes: `list` and `watch` on endpointslices of one namespace. No other is ever made."""

    def __init__(
        self, session: aiohttp.ClientSession, cluster: Cluster, namespace: str, selector: str, *, timeout_s: float
    ) -> None:
        self._session = session
        self._cluster = cluster
        self._tls = cluster.tls()
        self._url = f"{cluster.url.rstrip('/')}/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        self._selector = selector
        self._timeout = timeout_s

    async def list_all(self) -> tuple[list[dict[str, Any]], str]:
        """(every slice, resource version to watch from). A consistent read: no version is asked for, so that it can't
        go back in time. Raises Expired (start again), Refused, aiohttp.ClientError, TimeoutError, OSError."""
        items: list[dict[str, Any]] = []
        query = {"labelSelector": self._selector, "limit": str(PAGE)}
        limit = aiohttp.ClientTimeout(total=self._timeout)
        while True:
            async with self._get(query, limit) as response:
                await _check(response)
                page = _object(await response.read())
            items += [item for item in page.get("items") or [] if isinstance(item, dict)]
            meta = page.get("metadata") or {}
            if not meta.get("continue"):
                return items, str(meta.get("resourceVersion") or "")
            query["continue"] = str(meta["continue"])

    async def watch(self, version: str, seconds: float) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
        """(kind, slice) until the server ends the stream, after about `seconds`. Kinds: OPEN, without a slice, once the
        server has agreed; then ADDED, MODIFIED, DELETED, BOOKMARK.

        Raises Expired, Refused, aiohttp.ClientError, TimeoutError, OSError. A connection that is dead without a word
        is noticed `timeout_s` after the server should have ended the stream.
        """
        query = {
            "labelSelector": self._selector,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(max(1, int(seconds))),
        }
        limit = aiohttp.ClientTimeout(total=seconds + self._timeout, sock_connect=self._timeout)
        async with self._get(query, limit) as response:
            await _check(response)
            yield "OPEN", {}
            async for line in _lines(response.content):
                event = _object(line)
                kind, item = str(event.get("type")), event.get("object")
                if not isinstance(item, dict):
                    raise Refused(f"a watch event without an object: {kind}")
                if kind == "ERROR":
                    raise _no(int(item.get("code") or 0), item, 0.0)
                yield kind, item

    def _get(
        self, query: Mapping[str, str], limit: aiohttp.ClientTimeout
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._session.get(
            self._url,
            params=query,
            headers=self._cluster.headers(),
            ssl=self._tls,
            timeout=limit,
            allow_redirects=False,
        )


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status == 200:
        return
    try:
        status = _object(await response.content.read(1 << 16))
    except Refused:
        status = {}
    header = response.headers.get("retry-after", "")
    raise _no(response.status, status, float(header) if header.isdigit() else 0.0)


def _no(code: int, status: Mapping[str, Any], retry_s: float) -> Expired | Refused:
    if code == 410:
        return Expired()
    details = status.get("details") or {}
    said = str(status.get("message") or "no reason given")[:300]
    hint = {
        401: " Is the ServiceAccount token mounted and not expired?",
        403: " The ServiceAccount needs a Role with list and watch on endpointslices (discovery.k8s.io) there.",
        404: " Is `api_url` the API server?",
        504: " (Too large resource version: its cache is behind the server asked before; it catches up.)",
    }.get(code, "")
    seconds = details.get("retryAfterSeconds") if isinstance(details, dict) else None
    return Refused(
        f"the API server answered {code}: {said}.{hint}",
        retry_s=max(retry_s, float(seconds) if isinstance(seconds, int | float) else 0.0),
    )


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise Refused(f"the API server answered something that is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Refused("the API server answered JSON that is not an object")
    return found


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    # Not readline(): it refuses lines over 128 kB, and one slice of 1,000 endpoints is larger.
    waiting = bytearray()
    async for chunk in stream.iter_any():
        start = len(waiting)
        waiting += chunk
        if waiting.find(b"\n", start) < 0:
            if len(waiting) > LONGEST_LINE:
                raise Refused("a watch event longer than 16 MiB")
            continue
        *whole, rest = bytes(waiting).split(b"\n")
        waiting = bytearray(rest)
        for line in whole:
            if line.strip():
                yield line


def spread(seconds: float) -> float:
    """`seconds` give or take a tenth, so that many routers don't ask at the same moment."""
    return seconds * random.uniform(0.9, 1.1)
