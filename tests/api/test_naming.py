"""What a client's cookie says its session's name is."""

from __future__ import annotations

import time

import pytest

from router.api.sessions import MAX_NAME, Naming
from router.http.message import Request
from router.prompt.requests import parse_request

CHAT = parse_request("/v1/chat/completions", b'{"model":"m","messages":[]}')


def named(*cookies: bytes) -> str | None:
    request = Request("POST", b"/", [(b"Cookie", cookie) for cookie in cookies])
    return Naming(cookie="sid").name(request, CHAT)


@pytest.mark.parametrize(
    ("cookie", "name"),
    [
        (b"sid=abc", "abc"),
        (b"a=1; sid=abc;b=2", "abc"),
        (b' a="x;y"; sid="a b" ', "a b"),
        (b"sid=a=b==; sid=c", "a=b=="),
        (b"sid=" + b"x" * 1000, "x" * MAX_NAME),
        (b"xsid=1; sid2=2; sid; SID=3; ;=; sid=", None),
        (b"\xff\x80; sid=\xe9", "\u00e9"),
        (b"", None),
    ],
)
def test_cookies(cookie: bytes, name: str | None) -> None:
    assert named(cookie) == name


@pytest.mark.parametrize("junk", [b'a="' + b"\\" * 60_000 + b'"; ', b'a="' + b"\\1" * 30_000 + b'"; ', b"a=;" * 20_000])
def test_a_long_cookie_takes_no_time(junk: bytes) -> None:
    """The standard library's reader takes 14 s for these, on the event loop."""
    began = time.process_time()
    assert named(junk + b"sid=abc") == "abc"
    assert time.process_time() - began < 1
