"""A head that a client repeats is not parsed again; what comes of it must be what parsing it would give."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.http import message
from router.http.errors import HttpError
from router.http.limits import Limits
from router.http.message import Request, RequestParser

LIMITS = Limits(max_body_bytes=64)
HEADS = [
    b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nConnection: keep-alive\r\nX-A: 1\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nhost: a\r\nX-A: 1\r\nX-A: 2\r\ncontent-length:%d \r\n\r\n",
    b"POST /v1/y?z=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 0%d\r\nExpect: 100-continue\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: a\r\nX-Content-Length: 3\r\nContent-Length: %d\r\nUpgrade: h2c\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nConnection: close\r\n\r\n",
    b"POST /v1/x HTTP/1.0\r\nContent-Length: %d\r\nConnection: keep-alive\r\n\r\n",
]
messages = st.builds(
    lambda head, body, off: head % max(0, len(body) + off) + body,
    st.sampled_from(HEADS[:3] * 4 + HEADS),
    st.sampled_from([b"", b"{}", b"x" * 20, b"\r\n\r\n", b"y" * 64, b"z" * 65]),
    st.sampled_from([0] * 12 + [-1, 1, 3]),  # a wrong length makes the rest another message, or none
)


class Told:
    def __init__(self) -> None:
        self.events: list[Any] = []
        self.held = 0

    def request(self, request: Request) -> None:
        self.events.append((request.method, request.target, request.path, request.version, request.body))
        self.events.append((request.headers, request.names, request.chunked, request.keep_alive, request.received))

    def hold(self, size: int) -> bool:
        self.held += size
        return self.held <= 500


def told(pieces: list[bytes]) -> tuple[list[Any], int, bool]:
    """What a parser says to the pieces, in order; its last word is its error."""
    found = Told()
    parser = RequestParser(LIMITS, found.request, lambda: found.events.append("continue"), found.hold)
    try:
        for piece in pieces:
            parser.feed(piece)
    except HttpError as error:
        found.events.append((error.status, error.message))
    return found.events, found.held, parser.finished


@given(st.lists(messages, min_size=1, max_size=8), st.lists(st.integers(0, 600), max_size=3))
def test_it_is_what_parsing_gives(sent: list[bytes], cuts: list[int]) -> None:
    whole, edges = b"".join(sent), {0}
    for one in sent:
        edges.add(max(edges) + len(one))
    places = sorted(edges | {cut for cut in cuts if cut < len(whole)})
    pieces = [whole[a:b] for a, b in pairwise(places)]
    with pytest.MonkeyPatch.context() as patch:
        fast = told(pieces)
        patch.setattr(message, "_MISSES", 0)
        assert fast == told(pieces)


def test_repeated_heads_are_not_parsed() -> None:
    found = Told()
    parser = RequestParser(LIMITS, found.request, lambda: None)
    parser.feed(HEADS[0] % 2 + b"{}")
    parser._parser = None  # type: ignore[assignment]  # whoever parses now fails
    parser.feed(HEADS[0] % 20 + b"x" * 20)
    assert found.events[2][-1] == b"x" * 20
    assert found.events[3][0] == [(b"Host", b"a"), (b"Content-Length", b"20")]
    with pytest.raises(AttributeError):
        parser.feed(HEADS[1] % 2 + b"{}")


def test_a_client_whose_heads_differ_is_not_looked_at_again() -> None:
    found = Told()
    parser = RequestParser(LIMITS, found.request, lambda: None)
    for number in range(message._MISSES + 1):
        parser.feed(b"POST / HTTP/1.1\r\nHost: a\r\nX-Id: %d\r\nContent-Length: 2\r\n\r\n{}" % number)
    assert parser._template is None
