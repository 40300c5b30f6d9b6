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
    dropped = rules.dropped.union(name for name, _ in extra) if extra else rules.dropped
    prefixes = rules.prefixes
    named = _named_in_connection(request.headers)
    parts = [b"%b %b HTTP/1.1\r\n" % (request.method.encode("ascii"), request.target)]
    has_host = False
    for name, value in request.headers:
        key = name.lower()
        if key in dropped or key.startswith(prefixes) or (named and key in named):
            continue
        has_host = has_host or key == b"host"
        parts.append(b"%b: %b\r\n" % (name, value))
    if not has_host:
        parts.append(b"host: %b:%d\r\n" % (origin.host.encode("idna"), origin.port))
    if request.chunked and b"content-length" not in dropped:
        parts.append(b"content-length: %d\r\n" % len(request.body))
    parts += [b"%b: %b\r\n" % header for header in (*rules.added, *extra)]
    parts.append(b"\r\n")
    return b"".join(parts)


def response_headers(headers: Headers) -> Headers:
    """An answer's headers for the client, without hop-by-hop ones and Content-Length (the framing adds its own)."""
    named = _named_in_connection(headers)
    kept = []
    for header in headers:
        key = header[0].lower()
        if key in _NOT_TO_CLIENT or key.startswith(_PREFIXES) or (named and key in named):
            continue
        kept.append(header)
    return kept


def _named_in_connection(headers: Headers) -> set[bytes]:
    named: set[bytes] = set()
    for name, value in headers:
        if len(name) == 10 and name.lower() == b"connection":
            named.update(token.strip() for token in value.lower().split(b","))
    return named - _KEPT
