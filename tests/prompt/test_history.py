"""Messages decoded once: whatever was seen before, a body gives what decoding it from the start gives."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.prompt import history as shared
from router.prompt.history import History, Message

texts = st.sampled_from(["", "a", ",", "]", '","', "é" * 9, "x" * 50, '{"role": "user"},'])
messages = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "tool"]), "content": texts}),
        st.fixed_dictionaries({"role": st.just("assistant"), "content": st.lists(texts, max_size=3)}),
        st.sampled_from([None, 1, 12, "x", [], [1]]),
    ),
    max_size=12,
)


@pytest.fixture(scope="module")
def small_spans() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "SPAN_BYTES", 64)
        yield


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(messages, st.integers(0, 12), st.sampled_from([(",", ":"), (", ", ": "), (" ,\n ", ":")])), max_size=8
    )
)
def test_any_histories_decode_as_themselves(small_spans: None, steps: list[tuple[list[Any], int, Any]]) -> None:
    """Each body keeps some of the last one's messages, in some spelling, and adds others."""
    history = History()
    talk: list[Any] = []
    for added, kept, separators in steps:
        talk = talk[:kept] + added
        body = json.dumps({"model": "m", "messages": talk, "n": 1}, ensure_ascii=False, separators=separators).encode()
        if kept % 2:
            for _ in history.warm(body):
                pass
        assert history.decode(body) == json.loads(body)


def test_growing_histories_share_their_messages(small_spans: None) -> None:
    history = History()
    talk = [{"role": "user", "content": f"{i} " * (i % 40)} for i in range(60)]
    seen: list[Message] = []
    for end in range(1, 60):
        decoded = history.decode(json.dumps({"messages": talk[:end]}).encode())["messages"]
        assert all(new is old for new, old in zip(decoded, seen, strict=False))
        seen = decoded
    assert history.spans_used > 100


def outcome(history: History, body: bytes) -> Any:
    try:
        return history.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "not JSON"


@settings(max_examples=500)
@given(
    messages,
    st.sampled_from(
        [
            "{",
            '{"model": "m", "n":1,',
            ' {"a\\\\"b":"\\\\\\"" , ',
            '{"tools": [], ',
            '{"messages": [1], ',
            '{"input": "x",',
        ]
    ),
    st.sampled_from(["messages", "input"]),
    st.sampled_from(
        ["}", ', "n": 1}', ', "messages": [{}]}', ', "messages": 1}', ', "input": []}', ', "messages": ["x"]}', ""]
    ),
    st.lists(st.tuples(st.integers(0, 10_000), st.sampled_from([b"", b",", b"]", b"x", b'"', b" ", b"{"])), max_size=2),
)
def test_what_is_known_changes_nothing_in_what_a_body_is(
    small_spans: None, added: list[Any], head: str, name: str, tail: str, edits: list[tuple[int, bytes]]
) -> None:
    """A body, well-formed or not, is to a history that knows most of its messages what it is to one that knows none."""
    talk = [{"role": "user", "content": f"{i} " * 9} for i in range(12)]
    history = History()
    history.decode(json.dumps({name: [*talk, {"role": "user"}]}).encode())
    body = f'{head}"{name}": {json.dumps(talk + added)}{tail}'.encode()
    for place, spelled in edits:
        at = place % len(body)
        body = body[:at] + spelled + body[at + 1 :]
    assert outcome(history, body) == outcome(History(), body)


@pytest.mark.parametrize("end", ["", ",", ", ", ",]", ", ]}", ",  " + " " * 80 + "]}", ',{"role": "user"}]}'])
def test_an_array_that_ends_behind_a_comma_is_no_json(small_spans: None, end: str) -> None:
    talk = [{"role": "user", "content": f"{i} " * 40} for i in range(9)]
    history = History()
    history.decode(json.dumps({"messages": [*talk, {"role": "user"}]}).encode())
    body = (json.dumps({"messages": talk})[:-2] + end).encode()
    assert (outcome(history, body) == "not JSON") == (not end.endswith('"}]}'))
    assert history.spans_used


def test_an_error_tells_its_place_in_the_whole_body(small_spans: None) -> None:
    talk = [{"role": "user", "content": f"{i} " * 40} for i in range(9)]
    history = History()
    body = json.dumps({"messages": [*talk, {"role": "user"}], "n": 1}).encode()
    history.decode(body)
    for broken in (body[:-2] + b"}", body[:-1], body + b"]", body.replace(b'"n": 1', b'"n" 1')):
        with pytest.raises(msgspec.DecodeError) as known:
            history.decode(broken)
        with pytest.raises(msgspec.DecodeError) as new:
            History().decode(broken)
        assert str(known.value) == str(new.value)


def test_only_what_is_new_is_warmed(small_spans: None) -> None:
    history = History()
    talk = [{"role": "user", "content": f"{i} " * 20} for i in range(300)] + [{"role": "user"}]
    body = json.dumps({"model": "m", "messages": talk}).encode()
    assert len(list(history.warm(body))) > 3
    assert list(history.warm(body)) == []
    assert history.decode(body) == json.loads(body)


def test_spans_are_bounded_and_go_with_their_messages(small_spans: None) -> None:
    history = History(max_bytes=40_000)
    for session in range(50):
        talk = [{"role": "user", "content": f"{session}-{i} " * 5} for i in range(40)]
        for end in (20, 40):
            body = json.dumps({"messages": talk[:end]}).encode()
            assert history.decode(body) == json.loads(body)
        assert history.held_bytes <= 40_000 + 10_000
