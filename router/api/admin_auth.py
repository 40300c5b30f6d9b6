"""Who may use the admin port.

Changes need the token as `Authorization: Bearer TOKEN`, and are refused where none is configured, on loopback too:
whatever runs on the machine, a web page in its browser included, could send them. Reading needs the token where there
is one, except what monitors ask for; a browser may give it as the password of HTTP's basic scheme. Where there is a
token, an API key reads what is told of its own tenant's requests and sessions.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

OPEN_PATHS = frozenset({"/metrics", "/health", "/ready"})
READING_POSTS = frozenset({"/explain"})
"""Questions with a body: they change nothing."""
NO_TOKEN = "nothing can be changed here: set admin.token_file or admin.token_env in the configuration"
TENANT = "tenant"
"""Under this key a request holds the tenant whose API key it came with, to whom alone it belongs."""
OWN_PATHS = ("/requests", "/sessions", "/savings")
TenantOf = Callable[[str], str | None]
"""The tenant of an API key; None for one that is not known."""
WRONG = "the admin token is missing or wrong: send `Authorization: Bearer TOKEN`"


def guard(token: Callable[[], str | None], tenant_of: TenantOf) -> Middleware:
    """Lets in who may; `token` and `tenant_of` are asked at each request."""

    @web.middleware
    async def checked(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        wanted = token()
        reads = request.method in ("GET", "HEAD") or request.path in READING_POSTS
        if wanted is None:
            if not reads:
                return _refused(403, NO_TOKEN)
        elif not (reads and request.path in OPEN_PATHS) and not _matches(request, wanted, basic=reads):
            tenant = tenant_of(_bearer(request)) if request.method in ("GET", "HEAD") and _own(request.path) else None
            if tenant is None:
                return _refused(401, WRONG)
            request[TENANT] = tenant
        return await handler(request)

    return checked


def _own(path: str) -> bool:
    return path.startswith(tuple(f"{own}/" for own in OWN_PATHS)) or path in OWN_PATHS


def _bearer(request: web.Request) -> str:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")


def _matches(request: web.Request, wanted: str, *, basic: bool) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # Browsers send a basic password along with requests that other sites start: good enough for reading only.
    if basic and scheme.lower() == "basic":
        try:
            given = base64.b64decode(given.strip(), validate=True).decode("latin-1").partition(":")[2]
        except binascii.Error:
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given.strip().encode(), wanted.encode())


def _refused(status: int, message: str) -> web.Response:
    headers = {"WWW-Authenticate": 'Basic realm="prefix-router admin"'} if status == 401 else None
    return web.json_response({"error": {"message": message, "field": None}}, status=status, headers=headers)
