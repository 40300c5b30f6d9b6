"""The operators' listener. aiohttp: nothing here is on the request path."""

from __future__ import annotations

import ssl as ssl_module
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from aiohttp import web

from router.api.admin_auth import TenantOf, guard

MAX_BODY = 64 << 20
"""Of a question; /explain takes real request bodies."""


class Admin:
    """Serves `routes`, to those whom `guard` lets in (see admin_auth).

    `token` None: to everyone who can reach it; for a worker's socket, which only its supervisor can.
    """

    def __init__(
        self, routes: Iterable[web.RouteDef], *, token: Callable[[], str | None] | None, tenant_of: TenantOf
    ) -> None:
        middlewares = [] if token is None else [guard(token, tenant_of)]
        app = web.Application(middlewares=middlewares, client_max_size=MAX_BODY)
        app.add_routes(routes)
        app.router.add_get("/health", self._get_health)
        self._runner = web.AppRunner(app, access_log=None)
        self._site: web.TCPSite | None = None
        self._at = "", 0

    async def start(self, host: str, port: int, *, ssl: ssl_module.SSLContext | None = None) -> int:
        """Listen; returns the bound port. Raises OSError when the address can't be bound."""
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, host, port, ssl_context=ssl)
        await self._site.start()
        self._at = host, int(self._runner.addresses[0][1])
        return self._at[1]

    async def start_privately(self, socket: Path) -> None:
        """Listen at a Unix socket."""
        await self._runner.setup()
        await web.UnixSite(self._runner, socket).start()

    async def renew(self, ssl: ssl_module.SSLContext | None) -> None:
        """Listen anew at the same address with another TLS context (None: plain HTTP)."""
        if self._site is not None:
            await self._site.stop()
            self._site = web.TCPSite(self._runner, *self._at, ssl_context=ssl)
            await self._site.start()

    async def close(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _get_health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})


class StatusPages:
    """/metrics, /ready and /replicas: what the given functions return, read at each request."""

    def __init__(
        self,
        *,
        metrics: Callable[[], Awaitable[bytes]],
        ready: Callable[[], Awaitable[tuple[bool, dict[str, Any]]]],
        replicas: Callable[[], Awaitable[dict[str, Any]]],
    ) -> None:
        self._metrics = metrics
        self._ready = ready
        self._replicas = replicas

    def routes(self) -> list[web.RouteDef]:
        """For the admin application."""
        return [
            web.get("/metrics", self._get_metrics),
            web.get("/ready", self._get_ready),
            web.get("/replicas", self._get_replicas),
        ]

    async def _get_metrics(self, request: web.Request) -> web.Response:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return web.Response(body=await self._metrics(), headers={"content-type": kind})

    async def _get_ready(self, request: web.Request) -> web.Response:
        able, said = await self._ready()
        return web.json_response(said, status=200 if able else 503)

    async def _get_replicas(self, request: web.Request) -> web.Response:
        return web.json_response(await self._replicas())
