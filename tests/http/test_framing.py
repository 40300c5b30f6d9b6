"""ChunkScanner: any split of a chunked body gives the same payload, end and safe points."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.http.framing import LAST_CHUNK, ChunkScanner, FramingError, chunk


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from([b"data: a\n\n", b"data: b", b"\n", b"x\r\n\r\n", b"y" * 40]), max_size=8),
    st.lists(st.integers(1, 60), min_size=1, max_size=30),
    st.sampled_from([b"", b"NEXT"]),
)
def test_any_split(payloads: list[bytes], cuts: list[int], after: bytes) -> None:
    raw = b"".join(chunk(payload) for payload in payloads) + LAST_CHUNK + after
    scanner, got, position = ChunkScanner(), b"", 0
    step = 0
    while scanner.end < 0:
        piece = raw[position : position + cuts[step % len(cuts)]]
        assert piece, "the end was missed"
        got += scanner.feed(piece)
        assert 0 <= scanner.safe <= len(piece)
        if scanner.end < 0:
            position += len(piece)
        step += 1
    assert got == b"".join(payloads)
    assert position + scanner.end == len(raw) - len(after)


def test_safe_is_the_end_of_the_last_whole_event() -> None:
    scanner = ChunkScanner()
    event = chunk(b"data: 1\n\n")
    scanner.feed(event)
    assert scanner.safe == len(event)
    scanner.feed(event + chunk(b"data: 2")[:9])
    assert scanner.safe == len(event)
    scanner.feed(chunk(b"data: 2")[9:])
    assert scanner.safe == 0
    rest = chunk(b"\n\n")
    scanner.feed(rest)
    assert scanner.safe == len(rest)
    for piece, whole in ((b"data: 3\n", False), (b"\n", True), (b"data: 4", False), (b"\n", False), (b"\n", True)):
        scanner.feed(chunk(piece))
        assert (scanner.safe > 0) is whole


@pytest.mark.parametrize("raw", [b"0x1\r\nx\r\n", b"1\nx\r\n", b"1\r\nxy\r\n", b"-1\r\n", b"\r\n", b"1" * 9 + b"\r\n"])
def test_refused(raw: bytes) -> None:
    with pytest.raises(FramingError):
        ChunkScanner().feed(raw)


def test_extensions_and_trailers_are_allowed() -> None:
    scanner = ChunkScanner()
    assert scanner.feed(b"2;a=b\r\nhi\r\n0\r\nX: y\r\n\r\n") == b"hi"
    assert scanner.end == 22
