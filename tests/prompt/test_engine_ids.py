"""Ids asked of an engine, and ids sent to one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from router.blocks import pack
from router.prompt.engine_ids import AskedIds, ask
from router.prompt.forward_ids import NotForwardable, supports, with_token_ids
from router.prompt.requests import ApiRequest, Endpoint, parse_request
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


def chat(content: str) -> ApiRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    return parse_request("/v1/chat/completions", json.dumps(body).encode())


SPEC = ModelSpec("m", None)


async def test_the_stage_uses_asked_ids_and_asks_once_for_each_kind() -> None:
    post = Answers({"/v1/tokenize": {"tokens": list(range(40))}, "/tokenize": {"tokens": [9]}})
    stage = PromptStage({"m": SPEC}, engine_ids=AskedIds(lambda engine, model: post))
    for _ in range(2):
        prompt = await stage.prepare(chat("hi"), engine="sglang")
        assert prompt.exact
        assert prompt.ids == pack(range(40))
    assert post.asked == ["/v1/tokenize"]
    assert (await stage.prepare(chat("hi"), engine="vllm")).ids == pack([9])
    stage.close()


async def test_a_slow_engine_is_not_waited_for_and_then_left_alone_for_a_while() -> None:
    asked: list[str] = []
    now = 100.0

    async def never(path: str, body: bytes) -> bytes | None:
        asked.append(path)
        await asyncio.Event().wait()
        return None

    ids = AskedIds(lambda engine, model: never, seconds=0.01, clock=lambda: now)
    pauses = []
    for _ in range(8):
        assert await ids(chat("hi"), SPEC, "sglang", "harmony") is None
        count = len(asked)
        assert await ids(chat("other"), SPEC, "sglang", "harmony") is None
        assert len(asked) == count, "not asked again at once"
        began = now
        while len(asked) == count:
            now += 0.25
            await ids(chat("hi"), SPEC, "sglang", "harmony")
        pauses.append(now - began)
        asked.clear()
        now += 1000
    assert pauses[0] <= 1.25
    assert max(pauses) <= 30.25


async def test_no_more_than_a_few_wait_at_a_time() -> None:
    answered = asyncio.Event()
    asked = 0

    async def slow(path: str, body: bytes) -> bytes | None:
        nonlocal asked
        asked += 1
        await answered.wait()
        return json.dumps({"tokens": [1, 2]}).encode()

    ids = AskedIds(lambda engine, model: slow, seconds=30, max_waiting=3)
    waiting = [asyncio.create_task(ids(chat(f"{n}"), SPEC, "sglang", "harmony")) for n in range(5)]
    while sum(task.done() for task in waiting) < 2:
        await asyncio.sleep(0)
    assert asked == 3
    answered.set()
    found = await asyncio.gather(*waiting)
    assert (found.count(pack([1, 2])), found.count(None)) == (3, 2)


async def test_nobody_to_ask() -> None:
    ids = AskedIds(lambda engine, model: None)
    assert await ids(chat("hi"), SPEC, "vllm", "harmony") is None


async def test_answers_are_bounded_and_pictures_not_asked_for() -> None:
    post = Answers({"/v1/tokenize": {"tokens": list(range(100))}})
    asked = AskedIds(lambda engine, model: post, max_bytes=1000)
    for content in "abcdea":
        await asked(chat(content), SPEC, "sglang", "harmony")
    assert len(post.asked) == 6
    assert await asked(chat("hi"), SPEC, "sglang", "multimodal") is None
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
        {"return_prompt_text": True},
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


@pytest.mark.parametrize(
    ("kind", "version", "able"),
    [
        ("vllm", "0.32.0", True),
        ("vllm", "0.28.0rc1", True),
        ("vllm", "0.27.1", False),
        ("vllm", "1.0", True),
        ("vllm", "", False),
        ("vllm", "dev", False),
        ("sglang", "0.5.14", True),
        ("sglang", "0.5.13.post2", False),
        ("sglang", "0.6.0", True),
        ("tgi", "3.3.6", False),
    ],
)
def test_only_engines_that_take_ids_get_them(kind: str, version: str, able: bool) -> None:
    assert supports(kind, version) == able
