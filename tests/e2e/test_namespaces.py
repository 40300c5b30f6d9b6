"""What shares blocks and what must not, over real HTTP: adapters, aliases, salts, models nobody serves.

Tenants: test_keys.py. Each prediction is compared with what the engine found in its cache.
"""

from __future__ import annotations

from typing import Any

import openai
import pytest

MESSAGES = [{"role": "user", "content": "the same long question " * 60}]


async def ask(system: Any, model: str, path: str = "/v1/chat/completions", **fields: Any) -> tuple[int, int]:
    """(matched, cached) tokens of a request; the promise must be what the engine found."""
    asked = {"messages": MESSAGES} if path.endswith("chat/completions") else {"prompt": MESSAGES[0]["content"]}
    status, headers, answer = await system.post(path, {"model": model, "max_tokens": 2, **asked, **fields})
    assert status == 200, answer
    await system.settled()
    assert headers["x-prefix-router-tokens"] == "exact"
    matched, cached = (
        int(headers["x-prefix-router-matched-tokens"]),
        answer["usage"]["prompt_tokens_details"]["cached_tokens"],
    )
    assert matched == cached, (model, fields, matched, cached)
    return matched


@pytest.mark.parametrize("dialect", ["map", "array-0.14", "array-0.20"])
async def test_vllm_adapters_share_with_themselves_alone(build, dialect: str) -> None:
    system = await build(replicas=1, simulator={"loras": ("ada", "bob"), "dialect": dialect})
    for model in ("sim", "ada", "bob"):
        assert await ask(system, model) == 0, f"{model} shares nothing with those before"
    for model in ("bob", "sim", "ada"):
        assert await ask(system, model) > 100
    async with openai.AsyncOpenAI(base_url=system.url + "/v1", api_key="unused", max_retries=0) as client:
        listed = {model.id: getattr(model, "parent", None) async for model in client.models.list()}
    assert listed == {"sim": None, "ada": "sim", "bob": "sim"}


async def test_sglang_adapters_are_named_with_their_base_or_by_lora_path(build) -> None:
    """The bare name, which it lists, it would serve with the base model: such a request is refused."""
    system = await build(replicas=1, simulator={"kind": "sglang", "loras": ("ada", "bob"), "record_requests": 10_000})
    for model, fields in (("sim", {}), ("sim:ada", {}), ("sim", {"lora_path": "bob"})):
        assert await ask(system, model, **fields) == 0
    for model, fields in (
        ("sim:bob", {}),
        ("sim", {"lora_path": "ada"}),
        ("sim", {}),
        ("sim:ada", {"lora_path": "bob"}),
    ):
        assert await ask(system, model, **fields) > 100, (model, fields)
    status, _, answer = await system.post("/v1/chat/completions", {"model": "ada", "messages": MESSAGES})
    assert status == 404 and answer["error"]["code"] == "model_not_found"
    async with system.client.get(system.url + "/v1/models") as listing:
        listed = [(entry["id"], entry["parent"]) for entry in (await listing.json())["data"]]
    assert listed == [("sim", None), ("sim:ada", "sim"), ("sim:bob", "sim")]


async def test_served_aliases_share_everything(build) -> None:
    system = await build(replicas=1, simulator={"aliases": ("gpt-4", "sim/latest"), "loras": ("ada",)})
    assert await ask(system, "gpt-4") == 0
    for model in ("sim", "sim/latest", "gpt-4"):
        assert await ask(system, model) > 100
    assert await ask(system, "ada") == 0


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_cache_salts_share_with_themselves_alone(build, kind: str, path: str) -> None:
    system = await build(replicas=1, simulator={"kind": kind, "loras": ("ada",)})
    adapter = "sim:ada" if kind == "sglang" else "ada"
    asked: list[tuple[str, dict[str, Any]]] = [
        ("sim", {}),
        ("sim", {"cache_salt": "a"}),
        ("sim", {"cache_salt": "b"}),
        (adapter, {"cache_salt": "a"}),
    ]
    for model, fields in asked:
        assert await ask(system, model, path, **fields) == 0, (model, fields)
    for model, fields in asked:
        assert await ask(system, model, path, **fields) > 100, (model, fields)


@pytest.mark.parametrize("kind", ["vllm", "sglang", "tgi"])
@pytest.mark.parametrize("model", ["nope", "sim:nope", "SIM", "sim ", "sim/ada"])
async def test_a_model_nobody_serves_is_refused_and_reaches_no_engine(build, kind: str, model: str) -> None:
    system = await build(replicas=1, simulator={"kind": kind, "record_requests": 10_000})
    if kind != "vllm":
        url = system.fleet[0].url + "/v1/chat/completions"
        async with system.client.post(url, json={"model": model, "messages": MESSAGES, "max_tokens": 1}) as answer:
            assert answer.status == 200, "the engine itself would serve it"
    before = len(system.fleet[0].requests)
    for path, fields in (
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/completions", {"prompt": "x"}),
    ):
        status, _, told = await system.post(path, {"model": model, "max_tokens": 1, **fields})
        assert status == 404 and told["error"]["code"] == "model_not_found", told
    posted = [
        request
        for request in list(system.fleet[0].requests)[before:]
        if request.path in ("/v1/chat/completions", "/v1/completions")
    ]
    assert not [request for request in posted if model in request.body.decode()]
