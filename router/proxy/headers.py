"""Which headers cross the router (RFC 9110, section 7.6.1). No I/O."""

from __future__ import annotations

from router.http.errors import Headers
from router.http.message import Request
from router.http.upstream import Origin

OWNED_PREFIX = b"x-prefix-router-"
"""Headers the router writes; a client's or replica's own of this name are dropped."""

_HOP_BY_HOP = frozenset((b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"))
_NOT_TO_REPLICA = _HOP_BY_HOP | {b"expect"}
_NOT_TO_CLIENT = _HOP_BY_HOP | {b"content-length"}
_PREFIXES = (b"proxy-", OWNED_PREFIX)
# Named in Connection these would change where the message ends or whom it is for: never dropped on a peer's word.
_KEPT = frozenset((b"host", b"content-length", b"content-type", b"authorization"))


class HeaderRules:
    """What else of a client's headers stays here (names and prefixes, lower case), and what is `added`."""

    __slots__ = ("added", "dropped", "prefixes")

    def __init__(
        self, dropped: frozenset[bytes] = frozenset(), prefixes: tuple[bytes, ...] = (), added: Headers | None = None
    ) -> None:
        self.dropped = _NOT_TO_REPLICA | dropped
        self.prefixes = _PREFIXES + prefixes
        self.added = added or []


PASS_ALL = HeaderRules()


def request_head(request: Request, origin: Origin, extra: Headers, rules: HeaderRules = PASS_ALL) -> bytes:
    """Request line and headers for the replica: the client's own in their order and case, without hop-by-hop ones.

    Content-Length is added for a chunked upload (its decoded body follows), Host for an HTTP/1.0 client without one.
    A header that `extra` or the rules set is never sent twice: for another body than the client's, give Content-Length.
    """
    dropped, prefixes = rules.dropped, rules.prefixes
    if extra:
        dropped = dropped.union([name for name, _ in extra])
    if named := _named_in_connection(request.headers):
        dropped |= named
    parts = [b"%b %b HTTP/1.1\r\n" % (request.method.encode("ascii"), request.target)]
    parts += [
        b"%b: %b\r\n" % header
        for header in request.headers
        if (key := header[0].lower()) not in dropped and not key.startswith(prefixes)
    ]
    if b"host" in dropped or b"host" not in request.names:
        parts.append(b"host: %b:%d\r\n" % (origin.host.encode("idna"), origin.port))
    if request.chunked and b"content-length" not in dropped:
        parts.append(b"content-length: %d\r\n" % len(request.body))
    parts += [b"%b: %b\r\n" % header for header in (*rules.added, *extra)]
    parts.append(b"\r\n")
    return b"".join(parts)


def response_headers(headers: Headers) -> Headers:
    """An answer's headers for the client, without hop-by-hop ones and Content-Length (the framing adds its own)."""
    dropped = _NOT_TO_CLIENT | _named_in_connection(headers)
    return [header for header in headers if (key := header[0].lower()) not in dropped and not key.startswith(_PREFIXES)]


def _named_in_connection(headers: Headers) -> set[bytes]:
    told = [value for name, value in headers if len(name) == 10 and name.lower() == b"connection"]
    return {token.strip() for token in b",".join(told).lower().split(b",")} - _KEPT if told else set()
