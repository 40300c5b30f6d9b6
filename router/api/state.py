"""Which state a request needs (see routing.sticky), and which state its answer made."""

from __future__ import annotations

import re

from router.prompt.requests import ApiRequest, Endpoint
from router.routing.sticky import Key

_RESPONSE_PATH = re.compile(r"/v1/responses/([^/?]+)")
_RESPONSE_ID = re.compile(rb'"id"\s*:\s*"(resp_[^"\\]{1,128})"')
_SESSION_ID = re.compile(rb'\s*"([^"\\]{1,256})"')


def needed(path: str, parsed: ApiRequest, tenant: str) -> Key | None:
    """The state that only one replica has, if the request needs any."""
    if parsed.session.previous_response_id is not None:
        return tenant, "response", parsed.session.previous_response_id
    named = _RESPONSE_PATH.match(path)
    if named is not None:
        return tenant, "response", named[1]
    opened = parsed.body.get("session_params")
    session = opened.get("id") if isinstance(opened, dict) else None
    if session is None and path in ("/close_session", "/open_session"):
        session = parsed.body.get("session_id")
    return (tenant, "session", session) if isinstance(session, str) else None


def made(path: str, parsed: ApiRequest, tenant: str, opening: bytes) -> Key | None:
    """The state that an answer with status 200 made; `opening`: its first bytes."""
    if parsed.endpoint is Endpoint.RESPONSES:
        found = _RESPONSE_ID.search(opening)
        return None if found is None else (tenant, "response", found[1].decode("latin-1"))
    if path == "/open_session":
        found = _SESSION_ID.match(opening)
        return None if found is None else (tenant, "session", found[1].decode("latin-1"))
    return None
