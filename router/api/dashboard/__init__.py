"""The built-in dashboard: one page at `/` of the operators' listener, and `/live`, which it asks every second.

The page is put together from the files beside this module when the router starts; it loads nothing else, needs no
network and no build. Its policy (CSP) allows only its own script and style, and connections to where it came from.
"""

from __future__ import annotations

import base64
import hashlib
import time
import uuid
from collections.abc import Callable, Mapping
from importlib.resources import files
from itertools import islice
from typing import Any

import msgspec
from aiohttp import web

from router.api.report import ReportError, whole
from router.observe.observer import Observer
from router.observe.sessions import totals_of

SCRIPTS = ("dom.js", "explain.js", "session.js", "chart.js", "fleet.js", "lists.js", "main.js")
MAX_ROWS = 200
"""Requests told at once: above so many a second the page shows the newest."""
SESSIONS, BREAKS, PREFIXES = 15, 15, 7

Ready = Callable[[], tuple[bool, dict[str, Any]]]


class Page:
    """The page at `/`."""

    def __init__(self) -> None:
        self._page, self._policy = _page()

    async def get(self, request: web.Request) -> web.Response:
        """Answer with it."""
        headers = {
            "content-type": "text/html; charset=utf-8",
            "content-security-policy": self._policy,
            "cache-control": "no-cache",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }
        return web.Response(body=self._page, headers=headers)


class Dashboard:
    """The handlers. `ready`, `replicas`: as on /ready and /replicas."""

    def __init__(self, observer: Observer, ready: Ready, replicas: Callable[[], list[dict[str, Any]]]) -> None:
        self._observer = observer
        self._ready = ready
        self._replicas = replicas
        self._run = uuid.uuid4().hex

    def routes(self) -> list[web.RouteDef]:
        """For the admin application."""
        return [web.get("/", Page().get), web.get("/live", self._live)]

    async def _live(self, request: web.Request) -> web.Response:
        """`?since=`: the `seq` of the last answer; requests that ended since are told. `run`: another one after a
        restart, when numbering starts anew."""
        try:
            since = whole(request, "since", 0, 1 << 62, least=0)
        except ReportError as error:
            return error.answer()
        observer = self._observer
        told = {
            "run": self._run,
            "now": round(time.time(), 3),
            "seq": observer.recent.last_seq,
            "ready": self._ready()[1],
            "replicas": self._replicas(),
            "timeline": observer.timeline.told(),
            "requests": [row(record) for record in observer.recent.latest(MAX_ROWS, since=since)],
            "breaks": [row(record) | {"break": record["break"]} for record in islice(observer.recent.breaks(), BREAKS)],
            "sessions": [session.told() for session in islice(observer.sessions.latest(), SESSIONS)],
            "session_count": len(observer.sessions),
            "prefixes": observer.hot.hottest(PREFIXES),
            "totals": totals_of(observer.sessions.tenants).told(),
        }
        return web.Response(body=msgspec.json.encode(told), content_type="application/json")


_ROW = ("id", "seq", "at", "tenant", "model", "session", "step", "status", "replica", "reason", "cause", "ttft_ms")


def row(record: Mapping[str, Any]) -> dict[str, Any]:
    """A request's record, as far as a list shows it. `reused_tokens`: None where it isn't known."""
    computed = sum(record["computed_tokens"].values()) if record["cause"] is not None else None
    prompt = record["prompt_tokens"]
    return {name: record[name] for name in _ROW} | {
        "prompt_tokens": prompt,
        "reused_tokens": None if computed is None else prompt - computed,
        "total_ms": record["total_ms"],
        "broken": record["break"] is not None,
    }


def _page() -> tuple[bytes, str]:
    """The page, and its content security policy."""
    here = files(__name__)
    style = (here / "style.css").read_text(encoding="utf-8")
    script = "\n".join((here / name).read_text(encoding="utf-8") for name in SCRIPTS)
    page = (here / "page.html").read_text(encoding="utf-8")
    whole_page = page.replace("/*style*/", style, 1).replace("/*script*/", script, 1)
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'"
    )
    return whole_page.encode(), policy


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
