"""A request as it was received, and the parser that makes it (no I/O)."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain

import httptools

from router.http.errors import Headers, HttpError
from router.http.limits import Limits


class Request:
    """One whole request.

    target: bytes as received (path and query, or absolute form). headers: as received, in order, names in the client's
    case; names: each one's first value by its name in lower case. body: decoded from chunks if it came so; chunked
    tells which. path: target without query, undecoded.
    """

    __slots__ = (
        "body",
        "chunked",
        "headers",
        "keep_alive",
        "method",
        "names",
        "path",
        "peer",
        "received",
        "target",
        "version",
    )

    def __init__(
        self,
        method: str,
        target: bytes,
        headers: Headers,
        *,
        version: str = "1.1",
        body: bytes = b"",
        chunked: bool = False,
        keep_alive: bool = True,
        peer: str = "",
        names: dict[bytes, bytes] | None = None,
    ) -> None:
        self.method = method
        self.target = target
        self.path = _path(target)
        self.headers = headers
        self.version = version
        self.body = body
        self.received = len(body)  # what it was before a handler changed it
        self.chunked = chunked
        self.keep_alive = keep_alive
        self.peer = peer
        self.names = {key.lower(): value for key, value in reversed(headers)} if names is None else names

    def header(self, name: bytes) -> bytes | None:
        """First value of the header `name` (lower case), None if absent."""
        return self.names.get(name)


def _path(target: bytes) -> str:
    path = target.partition(b"?")[0]
    if not path.startswith(b"/") and b"://" in path:
        path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
    return path.decode("latin-1")


class _Template:
    """A request that was received whole, apart from its Content-Length and body: `head` + length + `tail` + body."""

    __slots__ = ("at", "head", "headers", "method", "name", "names", "tail", "target")

    def __init__(self, request: Request, head: bytes, tail: bytes, at: int) -> None:
        self.method, self.target = request.method, request.target
        self.headers, self.names = request.headers.copy(), request.names.copy()
        self.head, self.tail = head, tail
        self.at = at  # of Content-Length among the headers
        self.name = request.headers[at][0]

    @classmethod
    def of(cls, request: Request, data: bytes) -> _Template | None:
        """Of the only request in `data`; None if it is not alone there, its connection closes or becomes another one,
        its length is not told by one Content-Length, or its head is too long to be kept while the connection idles."""
        if not (request.keep_alive and request.version == "1.1") or not _UNUSUAL.isdisjoint(request.names):
            return None
        places = [at for at, header in enumerate(request.headers) if header[0].lower() == b"content-length"]
        end = data.find(b"\r\n\r\n") + 4
        found = _LENGTH.search(data, 0, end)
        if len(places) != 1 or found is None or end + len(request.body) != len(data) or end > _LONGEST:
            return None
        return cls(request, data[: found.start(1)], data[found.end(1) : end], places[0])

    def another(self, data: bytes) -> Request | None:
        """The request that `data` is, if it differs in nothing but length and body and is whole."""
        head, tail = self.head, self.tail
        if not data.startswith(head):
            return None
        begin = len(head)
        end = data.find(b"\r", begin, begin + _MAX_DIGITS)
        length = data[begin:end]
        if end < 0 or not length.isdigit() or not data.startswith(tail, end):
            return None
        body = data[end + len(tail) :]
        if len(body) != int(length):
            return None
        headers = self.headers.copy()
        headers[self.at] = (self.name, length)
        return Request(self.method, self.target, headers, body=body, names={**self.names, b"content-length": length})


_UNUSUAL = frozenset((b"expect", b"transfer-encoding", b"upgrade"))
_LENGTH = re.compile(rb"(?i:\r\ncontent-length:)[ \t]*([0-9]{1,10})[ \t]*\r\n")
_MAX_DIGITS = 11
_LONGEST = 4096
_MISSES = 8
"""Requests of a connection that differ from the one before, after which nobody looks for another that does not."""

_CHECKED = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade"))


class RequestParser:
    """Bytes of one client connection -> requests. Strict: what two parsers could read differently is refused.

    llhttp already refuses conflicting or repeated Content-Length, Content-Length with Transfer-Encoding, obs-fold,
    bare CR or LF, blanks before the colon, bad header characters. This class adds: one Host, `chunked` as the only
    transfer coding and only in HTTP/1.1, HTTP/1.0 and 1.1 only, no fragment in the target, and the size limits.

    A client sends the same head over and over: a request that comes in one piece, and differs from the one before in
    nothing but the digits of its Content-Length and its body, is not parsed again (1 us in the place of 13).
    """

    def __init__(
        self,
        limits: Limits,
        on_request: Callable[[Request], None],
        on_continue: Callable[[], None],
        may_hold: Callable[[int], bool] = lambda size: True,
    ) -> None:
        """on_request: called for each whole request. on_continue: the client waits for `100 Continue`. may_hold: asked
        for each piece of a body whether there is memory for it."""
        self._may_hold = may_hold
        self._limits = limits
        self._on_request = on_request
        self._on_continue = on_continue
        self._parser = httptools.HttpRequestParser(self)
        self._error: HttpError | None = None
        self._begun = False  # a message began in the present feed
        self._head_bytes = 0
        self.target = b""  # of the request that is being received, or of the last one
        self._headers: Headers = []
        self._body: list[bytes] = []
        self.body_bytes = 0
        self.in_head = False
        self.in_body = False
        self.finished = False  # the last request closes the connection: nothing after it is read
        self._keep_alive = True
        self._chunked = False
        self._version = "1.1"
        self._method = ""
        self._withheld = b""  # a head like this one's without its offer to upgrade, behind which llhttp sees no body
        self._template: _Template | None = None
        self._misses = 0
        self._latest: Request | None = None  # completed within the present feed

    def feed(self, data: bytes) -> None:
        """Raises HttpError at the first fault; requests completed before it were already delivered."""
        if self._template is not None and not (self.in_head or self.in_body or self.finished):
            again = self._template.another(data)
            if again is not None and len(again.body) <= self._limits.max_body_bytes:
                if not self._may_hold(len(again.body)):
                    raise self._too_many()
                self._misses = 0
                self._on_request(again)
                return
            self._misses += 1
        self._latest = None
        self._parse(data)
        if self._latest is not None:
            learns = self._misses < _MISSES and not (self.in_head or self.in_body or self.finished)
            self._template = _Template.of(self._latest, data) if learns else None
            self._latest = None

    def _parse(self, data: bytes) -> None:
        while data and not self.finished:
            self._begun = False
            rest = b""
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # Upgrades are declined by ignoring them: what follows is the request's body or, if it was delivered
                # already, a new message.
                rest = data[upgrade.args[0] :]
                self._parser = httptools.HttpRequestParser(self)
                head, self._withheld = self._withheld, b""
                self._parser.feed_data(head)
            except httptools.HttpParserError as fault:
                if self._error is not None:
                    raise self._error from None
                if self.finished:
                    return
                raise HttpError(400, f"malformed HTTP request: {fault}") from None
            if self.in_head:
                self._head_bytes = 0 if self._begun else self._head_bytes + len(data)
                if self._head_bytes > self._limits.max_header_bytes:
                    raise HttpError(431, f"header block over {self._limits.max_header_bytes} bytes")
            data = rest

    def _refuse(self, status: int, message: str) -> HttpError:
        # httptools wraps what a callback raises; feed() raises the original again.
        self._error = HttpError(status, message)
        return self._error

    # callbacks of httptools

    def on_message_begin(self) -> None:
        if self.in_body:
            return  # a head that stands in for the one whose body comes
        if self.finished:
            raise self._refuse(400, "data after the last request")
        self._begun = True
        self.in_head = True
        self._head_bytes = 0
        self.target = b""
        self._headers = []
        self._body = []
        self.body_bytes = 0

    def on_url(self, url: bytes) -> None:
        if not self.in_head:
            return
        self.target += url
        if len(self.target) > self._limits.max_target_bytes:
            raise self._refuse(414, f"request target over {self._limits.max_target_bytes} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_head:
            return  # trailers carry nothing that an engine reads
        if len(self._headers) >= self._limits.max_headers:
            raise self._refuse(431, f"more than {self._limits.max_headers} headers")
        self._headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        if not self.in_head:
            return
        self.in_head = False
        self._version = version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise self._refuse(505, f"HTTP/{version} is not served here; use HTTP/1.1")
        self._method = self._parser.get_method().decode("ascii")
        if self._method == "CONNECT":
            raise self._refuse(501, "CONNECT is not served here")
        if b"#" in self.target:
            raise self._refuse(400, "fragment in the request target")
        size = len(self.target)
        hosts = 0
        length = 0
        expect = chunked = upgrade = False
        connection: list[bytes] = []
        headers = self._headers
        size += sum(map(len, chain.from_iterable(headers))) + 4 * len(headers)
        for name, value in headers:
            key = name.lower()
            if key not in _CHECKED:
                continue
            if key == b"host":
                hosts += 1
                if _BAD_IN_HOST.search(value) is not None:
                    raise self._refuse(400, "invalid Host header")
            elif key == b"content-length":
                length = int(value)
            elif key == b"transfer-encoding":
                if value.lower() != b"chunked" or version == "1.0":
                    raise self._refuse(400, "Transfer-Encoding other than chunked in HTTP/1.1 is not accepted")
                chunked = True
            elif key == b"connection":
                connection += [token.strip() for token in value.lower().split(b",")]
            elif key == b"upgrade":
                upgrade = True
            elif value.lower() == b"100-continue":
                expect = version == "1.1"
            else:
                raise self._refuse(417, "unknown expectation in the Expect header")
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise self._refuse(400, "exactly one Host header is required")
        if size > self._limits.max_header_bytes:
            raise self._refuse(431, f"header block over {self._limits.max_header_bytes} bytes")
        if length > self._limits.max_body_bytes:
            raise self._too_large()
        self._chunked = chunked
        self._keep_alive = b"close" not in connection if version == "1.1" else b"keep-alive" in connection
        self.in_body = True
        if upgrade and (length or chunked) and self._parser.should_upgrade():
            told = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % length
            last = b"" if self._keep_alive else b"Connection: close\r\n"
            self._withheld = b"POST / HTTP/1.1\r\n%b\r\n%b\r\n" % (told, last)
        if expect and (length or chunked):
            self._on_continue()

    def on_body(self, data: bytes) -> None:
        self._body.append(data)
        self.body_bytes += len(data)
        held = self._may_hold(len(data))  # counted even if it is refused: the connection gives all of it back
        if self.body_bytes > self._limits.max_body_bytes:
            raise self._too_large()
        if not held:
            raise self._too_many()

    def on_message_complete(self) -> None:
        if self._withheld:
            return
        self.in_body = False
        self.finished = not self._keep_alive
        body = self._body
        request = Request(
            self._method,
            self.target,
            self._headers,
            version=self._version,
            body=body[0] if len(body) == 1 else b"".join(body),
            chunked=self._chunked,
            keep_alive=self._keep_alive,
        )
        self._body = []
        self._latest = request
        self._on_request(request)

    def _too_many(self) -> HttpError:
        return self._refuse(503, "too many request bodies are in memory; try again shortly")

    def _too_large(self) -> HttpError:
        return self._refuse(413, f"request body over {self._limits.max_body_bytes} bytes")


_BAD_IN_HOST = re.compile(rb"[ \t,/@?#\\\x7f-\xff]")
