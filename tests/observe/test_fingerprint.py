"""What is kept of a text finds where another version of it differs, and shows nothing of it."""

from __future__ import annotations

import string

from hypothesis import given, settings
from hypothesis import strategies as st

from router.observe.fingerprint import Place, alike, locate, masked, print_text, resumes, shape

Texts = st.one_of(st.text(max_size=400), st.text(string.printable, max_size=400)).map(lambda text: text * 7)


@settings(max_examples=400)
@given(
    text=Texts, place=st.integers(0, 3000), cut=st.integers(0, 30), put=st.text(max_size=8), kept=st.integers(0, 600)
)
def test_a_difference_is_found_where_it_is(text: str, place: int, cut: int, put: str, kept: int) -> None:
    place = min(place, len(text))
    other = text[:place] + put + text[place + cut :]
    if other == text:
        return
    pairs = zip(text, other, strict=False)
    first = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(text), len(other)))
    found = locate(print_text(text, kept), other)
    chunk = first // 64 * 64
    assert chunk <= found.offset <= chunk + 64
    # Letters that stand for one another are passed over, never anything that comes before the difference.
    assert found.offset >= first or found.within >= first - found.offset


def test_counters_are_found_to_the_character() -> None:
    for number in range(2000):
        before, after = f"Step {number} of the task", f"Step {number + 1} of the task"
        first = next(at for at, (a, b) in enumerate(zip(before, after, strict=False)) if a != b)
        assert locate(print_text(before), after) == Place(first)


@given(text=st.text(max_size=300))
def test_a_shape_has_a_byte_a_character_and_no_letters_or_digits(text: str) -> None:
    shown = masked(shape(text))
    assert len(shown) == len(text)
    assert all(one in "aA0" or not one.isalnum() for one in shown)
    assert shown.isascii()
    assert shown.isprintable()


def test_a_shape_cannot_be_read_back() -> None:
    """Many letters share a code: the shape of a text is that of many others."""
    codes = {shape(letter) for letter in string.ascii_lowercase}
    assert len(codes) == 8
    assert len({shape(digit) for digit in string.digits}) == 5


def test_memory_is_bounded() -> None:
    assert print_text("x" * 10_000_000).size < 4000
    assert len(print_text("word " * 20_000).chunks) <= 512


def test_an_edit_resumes_and_a_fork_does_not() -> None:
    text = "".join(f"line {n} of the log\n" for n in range(200))
    known = print_text(text)
    for edited in (text[:300] + "X" + text[301:], text[:300] + "some more" + text[300:], text[:300] + text[340:]):
        assert resumes(known, edited, locate(known, edited))
        assert alike(known, edited)
    forked = text[:300] + "something else altogether, and nothing like what was there before. " * 50
    assert not resumes(known, forked, locate(known, forked))
