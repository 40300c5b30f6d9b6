"""The operators' listener: /metrics, /health, /ready, /replicas. aiohttp: nothing here is on the request path."""

from __future__ import annotations

import ssl as ssl_module
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

from router.api.admin_auth import guard

MAX_BODY = 64 << 20
"""Of a question; /explain takes real request bodies."""

Ready = Callable[[], tuple[bool, dict[str, Any]]]


class Admin:
    """Serves what the given functions return, read at each request."""

    def __init__(
        self,
        *,
        metrics: Callable[[], bytes],
        ready: Ready,
        replicas: Callable[[], dict[str, Any]],
        token: Callable[[], str | None],
        routes: Sequence[web.RouteDef] = (),
    ) -> None:
        """`token`: what changes need (see admin_auth). `routes`: what else is served here."""
        self._metrics = metrics
        self._ready = ready
        self._replicas = replicas
        app = web.Application(middlewares=[guard(token)], client_max_size=MAX_BODY)
        app.add_routes(routes)
        app.router.add_get("/metrics", self._get_metrics)
        app.router.add_get("/health", self._get_health)
        app.router.add_get("/ready", self._get_ready)
        app.router.add_get("/replicas", self._get_replicas)
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

    async def renew(self, ssl: ssl_module.SSLContext | None) -> None:
        """Listen anew at the same address with another TLS context (None: plain HTTP)."""
        if self._site is not None:
            await self._site.stop()
            self._site = web.TCPSite(self._runner, *self._at, ssl_context=ssl)
            await self._site.start()

    async def close(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _get_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics(), headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _get_health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _get_ready(self, request: web.Request) -> web.Response:
        able, said = self._ready()
        return web.json_response(said, status=200 if able else 503)

    async def _get_replicas(self, request: web.Request) -> web.Response:
        return web.json_response(self._replicas())
