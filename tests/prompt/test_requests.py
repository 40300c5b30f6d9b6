"""Parsing: what is understood, and that nothing but BadRequest ever comes out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.blocks import pack
from router.prompt.history import History
from router.prompt.requests import BadRequest, Endpoint, endpoint_of, limit_messages, parse_leniently, parse_request

CHAT = "/v1/chat/completions"


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}).encode()


@pytest.mark.parametrize(
    ("body", "param", "part"),
    [
        (b"", None, "JSON"),
        (b'{"model": "m", "messages": [}', None, "byte 28"),
        (b"[1]", None, "an array"),
        (b'{"model": "\xff"}', None, "JSON"),
        (b'{"a": NaN}', None, "JSON"),
        (b"[" * 100_000, None, "deep"),
        (b'{"messages": []', None, "JSON"),
        (b"{}", "messages", "array"),
        (b'{"messages": "x"}', "messages", "a string"),
        (b'{"messages": [1]}', "messages[0]", "object"),
        (b'{"messages": [{"content": "x"}]}', "messages[0].role", "string"),
        (chat(model=7), "model", "a number"),
        (chat(model=""), "model", "empty"),
        (chat(stream="maybe"), "stream", "boolean"),
        (chat(stream=[]), "stream", "boolean"),
        (chat(max_tokens={}), "max_tokens", "integer"),
        (chat(n="two"), "n", "integer"),
        (chat(cache_salt=1), "cache_salt", "string"),
    ],
)
def test_bad_chat_requests(body: bytes, param: str | None, part: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_request(CHAT, body)
    assert caught.value.param == param
    assert part in caught.value.message
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf" + chat(),
        chat().decode().encode("utf-16"),
        chat(tools=[{"function": {"parameters": {"maximum": float("inf"), "minimum": float("nan")}}}]),
        chat()[:-1] + b', "top_k": 1e400}',
    ],
)
def test_what_python_reads_is_read(body: bytes) -> None:
    parsed = parse_leniently(CHAT, body)
    assert (parsed.endpoint, parsed.model, parsed.size) == (Endpoint.CHAT, "m", len(body))
    assert parsed.body["messages"] == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        chat()[:-1] + b', "a": "\\ud83d"}',
        b'{"a":' * 100_000,
        b"9" * 10_000,
        b"[NaN]",
        b" " * (4 << 20) + chat(),
    ],
)
def test_what_no_engine_reads_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_leniently(CHAT, body)
    assert caught.value.code == "invalid_json"


def test_the_model_of_an_upload() -> None:
    def part(name: str, value: bytes, more: str = "") -> bytes:
        return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"

    file = part("file", b"RIFF\0\xff" * 10_000, '; filename="model.wav"\r\nContent-Type: audio/wav')
    model = part("model", "org/wh\u00efsper".encode())
    for body in (model + file, file + model, part("prompt", b"x", "\r\nContent-Type: text/plain") + model):
        parsed = parse_request("/v1/audio/transcriptions", body + b"--b--\r\n")
        assert (parsed.form_model, parsed.model, parsed.size) == ("org/wh\u00efsper", None, 0)
    for body in (file, part("models", b"x"), part("model", b""), b"--", b"", model[3:]):
        assert parse_request("/v1/audio/transcriptions", body).form_model is None


@pytest.mark.parametrize("path", ["/v1/%63hat/completions", "/v1/chat%2Fcompletions?x", "/v1/chat/completions/"])
def test_a_path_is_read_as_engines_read_it(path: str) -> None:
    assert endpoint_of(path) is Endpoint.CHAT


@pytest.mark.parametrize("prompt", [None, 1, {}, [], [{}], [1, "a"], [-1], [1 << 32], [[1.5]], ["a", None]])
def test_bad_prompts(prompt: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_request("/v1/completions", json.dumps({"prompt": prompt}).encode())
    assert (caught.value.param or "").startswith("prompt")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], (pack([1, 2]),)),
        ([[1], [2, 3]], (pack([1]), pack([2, 3]))),
    ],
)
def test_prompts(prompt: Any, expected: tuple[str | bytes, ...]) -> None:
    assert parse_request("/v1/completions?x=1", json.dumps({"prompt": prompt}).encode()).prompts == expected


def test_fields_are_read_leniently() -> None:
    session = {"user": "u", "prompt_cache_key": "k", "vllm_xargs": {"session_id": "s", "agentic_context": {"b": 1}}}
    request = parse_request(
        CHAT, chat(stream="true", max_tokens="12", n=2.0, cache_salt="a", extra_key="b", unknown=[1], **session)
    )
    assert (request.endpoint, request.model, request.stream) == (Endpoint.CHAT, "m", True)
    assert (request.max_tokens, request.n, request.salt) == (12, 2, "ab")
    assert (request.session.user, request.session.prompt_cache_key) == ("u", "k")
    assert (request.session.session_id, request.session.agentic_context) == ("s", '{"b":1}')


@pytest.mark.parametrize(
    ("path", "body", "tokens"),
    [
        (CHAT, chat(max_completion_tokens=3, max_tokens=9), 3),
        ("/v1/responses", b'{"input": "x", "max_output_tokens": 4}', 4),
        ("/generate", b'{"text": "x", "sampling_params": {"max_new_tokens": 5}}', 5),
        ("/generate", b'{"inputs": "x", "parameters": {"max_new_tokens": 6}}', 6),
        ("/v1/messages", chat(max_tokens=7), 7),
    ],
)
def test_max_tokens(path: str, body: bytes, tokens: int) -> None:
    assert parse_request(path, body).max_tokens == tokens


def test_other_paths_take_any_body() -> None:
    for body in (b"", b"\x00binary", b"[]", b'{"model": 5}'):
        assert parse_request("/v1/audio/transcriptions", body).endpoint is Endpoint.OTHER
    assert parse_request("/tokenize", b'{"model": "m"}').model == "m"


PATHS = [CHAT, "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/score", "/rerank", "/generate"]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = ["model", "messages", "prompt", "input", "stream", "max_tokens", "n", "cache_salt", "text", "metadata"]
NAMES += ["session_params", "sampling_params", "vllm_xargs", "input_ids", "inputs", "parameters"]


@settings(max_examples=300)
@given(path=st.sampled_from([*PATHS, "/other"]), body=st.binary(max_size=60) | st.text().map(str.encode))
def test_any_bytes(path: str, body: bytes) -> None:
    _only_bad_request(path, body)


@settings(max_examples=300)
@given(path=st.sampled_from(PATHS), fields=st.dictionaries(st.sampled_from(NAMES), values, max_size=6))
def test_any_fields(path: str, fields: dict[str, Any]) -> None:
    _only_bad_request(path, json.dumps(fields).encode())


def _only_bad_request(path: str, body: bytes) -> None:
    try:
        parse_request(path, body)
    except BadRequest as bad:
        assert bad.message


def test_messages_are_shared_between_bodies_within_the_memory_that_is_set() -> None:
    bodies = [chat(messages=[{"role": "user", "content": f"{number} " * 1000}]) for number in range(8)]

    def kept() -> list[bool]:
        first = [parse_request(CHAT, body).body["messages"][0] for body in bodies]
        return [parse_request(CHAT, body).body["messages"][0] is one for body, one in zip(bodies, first, strict=True)]

    assert all(kept())
    try:
        limit_messages(1000)  # less than one of them
        parse_request(CHAT, chat(messages=[{"role": "user", "content": "y"}]))
        bodies = [body.replace(b"user", b"assistant") for body in bodies]
        assert not any(kept())
    finally:
        limit_messages(History().max_bytes)
