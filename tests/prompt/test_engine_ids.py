"""Ids asked of an engine, and ids sent to one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from router.blocks import pack
from router.prompt.engine_ids import AskedIds, ask
from router.prompt.forward_ids import NotForwardable, with_token_ids
from router.prompt.requests import Endpoint, parse_request
from router.prompt.stage import ModelSpec, PromptStage

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


class Answers:
    """Answers by path; remembers what was asked."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def __call__(self, path: str, body: bytes) -> bytes | None:
        self.asked.append(path)
        answer = self.answers.get(path)
        return None if answer is None else json.dumps(answer).encode()


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("vllm", {"/v1/chat/completions/render": {"token_ids": [1, 2]}}),
        ("vllm", {"/tokenize": {"count": 2, "tokens": [1, 2]}}),
        ("sglang", {"/v1/tokenize": {"tokens": [1, 2], "count": 2}}),
        ("tgi", {"/chat_tokenize": {"tokenize_response": [{"id": 1}, {"id": 2}], "templated_text": "x"}}),
    ],
)
async def test_each_engines_answer_is_read(kind: str, answers: dict[str, Any]) -> None:
    assert await ask(Answers(answers), Endpoint.CHAT, BODY, kind) == pack([1, 2])


@pytest.mark.parametrize("extra", [{"reasoning_effort": "low"}, {"documents": [{}]}, {"tool_choice": "none"}])
async def test_vllms_tokenize_is_not_asked_for_what_it_ignores(extra: dict[str, Any]) -> None:
    post = Answers({"/tokenize": {"tokens": [1]}})
    assert await ask(post, Endpoint.CHAT, {**BODY, **extra}, "vllm") is None
    assert post.asked == ["/v1/chat/completions/render"]


@pytest.mark.parametrize("answer", [[], {"token_ids": ["x"]}, {"tokens": [-1]}, {"tokens": []}, {}, 3])
async def test_odd_answers_are_no_ids(answer: Any) -> None:
    assert await ask(Answers({"/v1/tokenize": answer}), Endpoint.CHAT, BODY, "sglang") is None


async def test_the_stage_uses_asked_ids_and_asks_once() -> None:
    post = Answers({"/v1/tokenize": {"tokens": list(range(40))}})
    stage = PromptStage({"m": ModelSpec("m", None)}, engine_ids=AskedIds(post, "sglang"))
    request = parse_request("/v1/chat/completions", json.dumps(BODY).encode())
    for _ in range(2):
        prompt = await stage.prepare(request, engine="sglang")
        assert prompt.exact
        assert prompt.ids == pack(range(40))
    assert post.asked == ["/v1/tokenize"]
    stage.close()


async def test_a_slow_engine_is_not_waited_for() -> None:
    async def never(path: str, body: bytes) -> bytes | None:
        await asyncio.Event().wait()
        return None

    asked = AskedIds(never, "sglang", seconds=0.01)
    request = parse_request("/v1/chat/completions", json.dumps(BODY).encode())
    assert await asked(request, ModelSpec("m", None), "no-model-files") is None


async def test_answers_are_bounded_and_pictures_not_asked_for() -> None:
    post = Answers({"/v1/tokenize": {"tokens": list(range(100))}})
    asked = AskedIds(post, "sglang", max_bytes=1000)
    spec = ModelSpec("m", None)
    for content in "abcdea":
        body = {"model": "m", "messages": [{"role": "user", "content": content}]}
        await asked(parse_request("/v1/chat/completions", json.dumps(body).encode()), spec, "harmony")
    assert len(post.asked) == 6
    request = parse_request("/v1/chat/completions", json.dumps(BODY).encode())
    assert await asked(request, spec, "multimodal") is None
    assert len(post.asked) == 6


def test_ids_are_added_and_the_rest_is_kept() -> None:
    body = b'{"model":"m", "messages": [ {"role":"user","content":"\\u00e9"} ], "seed": 1.0}'
    for kind in ("vllm", "sglang"):
        sent = json.loads(with_token_ids(body, pack([5, 6]), kind))
        added = sent.pop("input_ids", None) or sent.pop("kv_transfer_params")["prompt_token_ids"]
        assert added == [5, 6]
        assert sent == json.loads(body)
    assert b'[ {"role":"user","content":"\\u00e9"} ]' in with_token_ids(body, pack([5, 6]), "vllm")


@pytest.mark.parametrize(
    "extra",
    [
        {"echo": True},
        {"kv_transfer_params": {"x": 1}},
        {"input_ids": [1]},
        {"continue_final_message": True},
        {"truncate_prompt_tokens": 5},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": None},
    ],
)
def test_what_ids_would_change_is_refused(extra: dict[str, Any]) -> None:
    with pytest.raises(NotForwardable):
        with_token_ids(json.dumps({**BODY, **extra}).encode(), pack([1]), "vllm")


@pytest.mark.parametrize(("body", "ids", "kind"), [(b"[", b"1234", "vllm"), (b"{}", b"", "vllm"), (b"{}", b"1", "tgi")])
def test_no_chat_no_ids_or_another_engine(body: bytes, ids: bytes, kind: str) -> None:
    with pytest.raises(NotForwardable):
        with_token_ids(body, ids, kind)
