"""A request by its path: answered here, refused here, or routed. The handler the HTTP server calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import unquote

import msgspec

from router.api import errors
from router.api.errors import ANTHROPIC_ERRORS, ApiError, unknown_model
from router.api.isolation import salt
from router.api.keys import OPEN, Gate, Grant
from router.api.route import Route
from router.api.routed import request_id
from router.fleet.fleet import Fleet
from router.http.errors import Headers
from router.http.message import Request
from router.http.response import Response
from router.observe.metrics import Metrics
from router.prompt.requests import ApiRequest, BadRequest, Endpoint, endpoint_of
from router.prompt.stage import Took

JSON: Headers = [(b"content-type", b"application/json")]
_PREFLIGHT = b"access-control-request-method"
"""Has an OPTIONS request that a browser sends ahead of another, without its key: the engine answers it."""


class Api:
    """Handles every request of the public port.

    `gate` lets in who has a key. `ready` answers /ready. `blocked_paths`: prefixes that are never forwarded (engines'
    control endpoints).
    """

    def __init__(
        self,
        fleet: Fleet,
        route: Route,
        metrics: Metrics,
        *,
        gate: Gate,
        ready: Callable[[], tuple[bool, dict[str, Any]]],
        blocked_paths: Sequence[str],
    ) -> None:
        self._fleet = fleet
        self._route = route
        self._metrics = metrics
        self._gate = gate
        self._ready = ready
        self.blocked = tuple(blocked_paths)

    async def __call__(self, request: Request, response: Response) -> None:
        """Answer one request, whatever it is."""
        path = request.path
        endpoint = endpoint_of(path)
        if endpoint is Endpoint.MESSAGES or (endpoint is Endpoint.OTHER and b"anthropic-version" in request.names):
            response.errors = ANTHROPIC_ERRORS
        elif endpoint is Endpoint.OTHER:
            response.errors = errors.format_at(path)
        grant = OPEN
        try:
            if endpoint is Endpoint.OTHER and self._answered_unasked(request, response):
                return
            if request.method != "OPTIONS" or _PREFLIGHT not in request.names:
                grant = self._gate.enter(request)
            if endpoint is Endpoint.OTHER and self._answered_here(request, response, grant):
                return
            took = Took()
            if endpoint is Endpoint.OTHER or request.method == "POST":
                parsed = await self._route.prompts.parse(path, request.body, read=self._route.reads_prompts)
            elif request.method == "OPTIONS":
                parsed = ApiRequest(Endpoint.OTHER, {})
            else:
                raise ApiError(405, f"{path} takes POST, not {request.method}", code="method_not_allowed")
            took.lap("parse")
            await self._admitted(request, response, parsed, took, grant)
        except BadRequest as bad:
            coding = request.header(b"content-encoding") if bad.code == "invalid_json" else None
            more = f" (Content-Encoding: {coding.decode('latin-1')} is not undone)" if coding else ""
            refusal = ApiError(bad.status, bad.message + more, param=bad.param, code=bad.code)
            self._refuse(request, response, endpoint, refusal, grant)
        except ApiError as error:
            self._refuse(request, response, endpoint, error, grant)

    def _refuse(self, request: Request, response: Response, endpoint: Endpoint, error: ApiError, grant: Grant) -> None:
        response.send(error.status, *errors.answer(error, response.errors))
        self._metrics.requests.labels(endpoint.value, str(error.status)).inc()
        told = {"id": request_id(request), "path": request.path, "tenant": grant.tenant, "status": error.status}
        self._route.observer.refused(told | {"error": error.code, "param": error.param})

    async def _admitted(
        self, request: Request, response: Response, parsed: ApiRequest, took: Took, grant: Grant
    ) -> None:
        self._fleet.listen()
        grant.begin(parsed.model, parsed.body.get("lora_path"))
        try:
            if self._gate.salted:
                parsed = salt(request, parsed, grant)
            await self._route(request, response, parsed, took, grant)
        finally:
            grant.end()
            self._fleet.changed()

    def _answered_unasked(self, request: Request, response: Response) -> bool:
        """Answer what needs no key: probes. With keys configured the details of /ready are on the admin port alone."""
        if request.method not in ("GET", "HEAD"):
            return False
        if request.path == "/health":
            response.send(200, JSON, b'{"status":"ok"}')
            return True
        if request.path == "/ready":
            able, said = self._ready()
            if self._gate.closed:
                said = {"status": said["status"]}
            response.send(200 if able else 503, JSON, msgspec.json.encode(said))
            return True
        return False

    def _answered_here(self, request: Request, response: Response, grant: Grant) -> bool:
        """Answer what needs no replica; False if the request is to be forwarded. Raises ApiError."""
        path, method = request.path, request.method
        if method in ("GET", "HEAD"):
            if path == "/v1/models" or path.startswith("/v1/models/"):
                response.send(200, JSON, msgspec.json.encode(self._models(unquote(path[len("/v1/models/") :]), grant)))
                return True
            if path == "/metrics":
                raise ApiError(404, "/metrics is on the admin port (admin.port, default 9000)", code="not_found")
        if not path.startswith("/"):
            raise ApiError(400, "the request target must be a path", code="invalid_path")
        if (request.header(b"upgrade") or b"").lower() == b"websocket":
            message = f"{path}: WebSocket connections are not passed on; connect to a replica itself"
            raise ApiError(501, message, code="websocket_not_supported")
        plain = re.sub("/+", "/", unquote(path))  # as a server that decodes and merges slashes would read it
        blocked = next((b for b in self.blocked if plain == b or plain.startswith((b + "/", b + "_"))), None)
        if blocked is not None:
            message = f"{path} controls one engine and is not forwarded; call the replica itself"
            raise ApiError(404, message, code="not_forwarded")
        return False

    def _models(self, wanted: str, grant: Grant) -> dict[str, Any]:
        entries = [entry for entry in self._fleet.models() if grant.may_use(str(entry["id"]))]
        if not wanted:
            return {"object": "list", "data": entries}
        for entry in entries:
            if entry["id"] == wanted:
                return entry
        raise unknown_model(wanted, [str(entry["id"]) for entry in entries])
