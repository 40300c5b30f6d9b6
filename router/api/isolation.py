"""Tenants kept apart inside the engines: a request gets a `cache_salt` that no other tenant's request can have.

The engine mixes the salt into its block hashes and says so in its KV events, so that the index keeps tenants apart
with the engine's own truth. It changes the request's body: the one field, and the white space between the top-level
ones. Every value stays the bytes it was.
"""

from __future__ import annotations

import hashlib
import json

import msgspec

from router.api.keys import Grant
from router.http.message import Request
from router.prompt.requests import ApiRequest, BadRequest, Endpoint

SALTED = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES})
"""Endpoints whose engines take a `cache_salt`."""

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


_NOT_STRICT = "The body must be strict JSON in UTF-8 here: no byte order mark, no NaN, no infinite numbers"


_AHEAD = b" \t\r\n\0\xef\xbb\xbf\xff\xfe"  # of a JSON value: white space and byte order marks, in any coding
_LOOKED_AT = 4 << 20


def _engines_read(body: bytes) -> bool:
    """Whether it may be an object to Python's json module, with which engines' servers read."""
    if body.lstrip(_AHEAD)[:1] != b"{":  # an upload
        return False
    try:
        return len(body) > _LOOKED_AT or isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False


def tenant_salt(tenant: str, own: str) -> str:
    """64 hex digits for a tenant's requests that asked for salt `own` (empty: none); never another tenant's."""
    return hashlib.sha256(f"prefix-router/tenant/v1\0{tenant}\0{own}".encode("utf-8", "surrogatepass")).hexdigest()


def salt(request: Request, parsed: ApiRequest, grant: Grant) -> ApiRequest:
    """Put the tenant's salt into the request that is forwarded; returns what is then known of it.

    A request to an endpoint that takes none is left as it is, and so is the common tenant's, unless it asks for a salt
    of its own: that must not be the salt of another tenant. Raises BadRequest for a body that engines could read, but
    in which no salt can be put.
    """
    if parsed.endpoint is Endpoint.OTHER and not parsed.size and _engines_read(request.body):
        raise BadRequest(_NOT_STRICT, code="invalid_json")
    own = parsed.body.get("cache_salt") or ""
    if not isinstance(own, str):  # SGLang takes a list, of which each could be another tenant's
        raise BadRequest("'cache_salt' must be a string", param="cache_salt", code="invalid_type")
    if not own and (parsed.endpoint not in SALTED or not grant.tenant):
        return parsed
    value = tenant_salt(grant.tenant, own)
    if parsed.endpoint in SALTED:
        grant.hides_matches = False  # nobody else has blocks under this salt
    try:
        fields = _decode(request.body)
    except msgspec.DecodeError:
        raise BadRequest(_NOT_STRICT, code="invalid_json") from None
    fields["cache_salt"] = msgspec.Raw(_encode(value))
    request.body = _encode(fields)
    length = b"%d" % len(request.body)
    request.headers = [
        (name, length if name.lower() == b"content-length" else value) for name, value in request.headers
    ]
    return msgspec.structs.replace(parsed, salt=value + parsed.salt.removeprefix(own))
