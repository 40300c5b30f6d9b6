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


class _Passing(dict[bytes, bool]):
    """Whether a header of a name (in a peer's case) goes on. Worked out once for each name, of the last thousand
    (and of at most 100 bytes)."""

    def __init__(self, dropped: frozenset[bytes], prefixes: tuple[bytes, ...]) -> None:
        super().__init__()
        self._dropped, self._prefixes = dropped, prefixes

    def __missing__(self, name: bytes) -> bool:
        key = name.lower()
        passes = key not in self._dropped and not key.startswith(self._prefixes)
        if len(name) <= 100:
            if len(self) >= 1000:
                self.clear()
            self[name] = passes
        return passes


class HeaderRules:
    """What else of a client's headers stays here (names and prefixes, lower case), and what is `added`."""

    __slots__ = ("added", "dropped", "passing")

    def __init__(
        self, dropped: frozenset[bytes] = frozenset(), prefixes: tuple[bytes, ...] = (), added: Headers | None = None
    ) -> None:
        self.dropped = _NOT_TO_REPLICA | dropped
        self.passing = _Passing(self.dropped, _PREFIXES + prefixes)
        self.added = added or []


PASS_ALL = HeaderRules()
_to_client = _Passing(_NOT_TO_CLIENT, _PREFIXES)


def request_head(request: Request, origin: Origin, extra: Headers, rules: HeaderRules = PASS_ALL) -> bytes:
    """Request line and headers for the replica: the client's own in their order and case, without hop-by-hop ones.

    Content-Length is added for a chunked upload (its decoded body follows), Host for an HTTP/1.0 client without one.
    A header that `extra` or the rules set is never sent twice: for another body than the client's, give Content-Length.
    """
    passing = rules.passing
    headers = [header for header in request.headers if passing[header[0]]]
    replaced = {name for name, _ in extra}
    if b"connection" in request.names:
        replaced |= _named_in_connection(request.headers)
    if replaced:
        headers = [header for header in headers if header[0].lower() not in replaced]
    parts = [b"%b %b HTTP/1.1\r\n" % (request.method.encode("ascii"), request.target)]
    parts += [b"%b: %b\r\n" % header for header in headers]
    if b"host" in rules.dropped or b"host" in replaced or b"host" not in request.names:
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        parts.append(b"host: %b:%d\r\n" % (host.encode("idna"), origin.port))
    if request.chunked and b"content-length" not in rules.dropped and b"content-length" not in replaced:
        parts.append(b"content-length: %d\r\n" % len(request.body))
    parts += [b"%b: %b\r\n" % header for header in (*rules.added, *extra)]
    parts.append(b"\r\n")
    return b"".join(parts)


def response_headers(headers: Headers) -> Headers:
    """An answer's headers for the client, without hop-by-hop ones and Content-Length (the framing adds its own)."""
    kept = [header for header in headers if _to_client[header[0]]]
    named = _named_in_connection(headers)
    return [header for header in kept if header[0].lower() not in named] if named else kept


def _named_in_connection(headers: Headers) -> set[bytes]:
    told = [value for name, value in headers if len(name) == 10 and name.lower() == b"connection"]
    return {token.strip() for token in b",".join(told).lower().split(b",")} - _KEPT if told else set()
