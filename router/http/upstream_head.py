"""Head of an upstream's answer, and how its body is framed (RFC 9112, section 6.3). No I/O."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache

import httptools

from router.http.errors import BadResponse, Headers


class Framing(Enum):
    """How the end of an answer's body is known."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


class ResponseHead:
    """Status and headers of an answer (names in the upstream's case); length: Content-Length, None if absent."""

    __slots__ = ("content_type", "framing", "headers", "keep_alive", "length", "status")

    def __init__(
        self, status: int, headers: Headers, *, framing: Framing, length: int | None, keep_alive: bool
    ) -> None:
        self.status = status
        self.headers = headers
        self.framing = framing
        self.length = length
        self.keep_alive = keep_alive
        self.content_type = self.header(b"content-type")

    def header(self, name: bytes) -> bytes:
        """First value of the header `name` (lower case), empty if absent."""
        for key, value in self.headers:
            if key.lower() == name:
                return value
        return b""


class _Collector:
    __slots__ = ("headers",)

    def __init__(self) -> None:
        self.headers: Headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value.rstrip(b" \t")))


def parse_head(data: bytes, method: str) -> ResponseHead:
    """data: everything up to and including the blank line; method: of the request. Raises BadResponse."""
    status, headers, framing, length, keep_alive = _parsed(data, method)
    return ResponseHead(status, list(headers), framing=framing, length=length, keep_alive=keep_alive)


@lru_cache(maxsize=64)  # the heads of streams that begin within one second are the same bytes
def _parsed(data: bytes, method: str) -> tuple[int, tuple[tuple[bytes, bytes], ...], Framing, int | None, bool]:
    collector = _Collector()
    parser = httptools.HttpResponseParser(collector)
    try:
        parser.feed_data(data)
        status = parser.get_status_code()
        version = parser.get_http_version()
    except httptools.HttpParserUpgrade as upgrade:
        raise BadResponse("the upstream switched protocols unasked") from upgrade
    except httptools.HttpParserError as fault:
        raise BadResponse(f"malformed answer: {fault}") from None
    length: int | None = None
    codings = b""
    connection = b""
    for name, value in collector.headers:
        key = name.lower()
        if key == b"content-length":
            length = int(value)
        elif key == b"transfer-encoding":
            codings += b"," + value.lower()
        elif key == b"connection":
            connection += b"," + value.lower()
    tokens = [token.strip() for token in connection.split(b",")]
    keep_alive = b"close" not in tokens if version == "1.1" else b"keep-alive" in tokens
    if method == "HEAD" or status < 200 or status in (204, 304):
        framing = Framing.NONE
    elif codings:
        # Another last coding than chunked ends with the connection; then the coding itself stays unknown to clients.
        if codings.strip(b", ") != b"chunked":
            raise BadResponse("answer with a transfer coding other than chunked")
        framing = Framing.CHUNKED
    elif length is not None:
        framing = Framing.LENGTH if length else Framing.NONE
    else:
        framing = Framing.CLOSE
        keep_alive = False
    return status, tuple(collector.headers), framing, length, keep_alive
