"""API keys on the public port: clients' own libraries, tenants, limits, and what reaches the engines."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import openai
import pytest
from support.waiting import until

from router.api.isolation import tenant_salt
from router.api.keys import digest

SYSTEM = {"role": "system", "content": "You are a careful coding agent. " * 40}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.fixture
def keys(tmp_path: Path):
    """Writes a file of keys; returns the settings that name it."""

    def write(*entries: dict[str, object], **settings: object) -> dict[str, object]:
        file = tmp_path / "keys.yaml"
        file.write_text(json.dumps([{"sha256": digest(f"key-{entry['name']}"), **entry} for entry in entries]))
        return {"keys.file": str(file), **settings}

    return write


def client(system, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=system.url + "/v1", api_key=key, max_retries=0)


async def test_the_openai_client_with_a_good_a_bad_and_a_limited_key(build, keys) -> None:
    system = await build(
        settings=keys(
            {"name": "good"}, {"name": "other", "models": ["nope"]}, {"name": "slow", "requests_per_minute": 1}
        )
    )
    messages = [user("hi")]
    async with client(system, "key-good") as good, client(system, "wrong") as bad:
        answer = await good.chat.completions.create(model="sim", messages=messages, max_tokens=4)
        assert answer.usage is not None and answer.usage.completion_tokens == 4
        assert [model.id async for model in good.models.list()] == ["sim"]
        with pytest.raises(openai.AuthenticationError) as refused:
            await bad.chat.completions.create(model="sim", messages=messages)
        assert refused.value.code == "invalid_api_key"
        assert refused.value.response.headers["www-authenticate"] == "Bearer"
        with pytest.raises(openai.AuthenticationError):
            await bad.models.list()
    async with client(system, "key-other") as other:
        with pytest.raises(openai.PermissionDeniedError, match="may not use the model `sim`"):
            await other.chat.completions.create(model="sim", messages=messages)
        assert [model.id async for model in other.models.list()] == []
        with pytest.raises(openai.PermissionDeniedError, match="must name a model"):
            await other.post("/generate", cast_to=object, body={"text": "x"})
    async with client(system, "key-slow") as slow:
        await slow.chat.completions.create(model="sim", messages=messages, max_tokens=1)
        with pytest.raises(openai.RateLimitError) as limited:
            await slow.chat.completions.create(model="sim", messages=messages)
        assert 0 < int(limited.value.response.headers["retry-after"]) <= 60
    status, _, _ = await system.post("/v1/unknown/path", {})
    assert status == 401, "nothing is forwarded without a key"
    async with system.client.get(system.url + "/ready") as ready:
        assert ready.status == 200 and set(await ready.json()) == {"status"}, "probes need no key and learn no more"
    async with system.client.get(system.admin_url + "/metrics") as page:
        text = await page.text()
    assert 'prefix_router_key_requests_total{key="good"} 1.0' in text
    assert 'prefix_router_key_refused_total{key="slow",limit="requests"} 1.0' in text
    assert 'prefix_router_key_refused_total{key="other",limit="model"} 2.0' in text
    assert "prefix_router_unauthenticated_total 3.0" in text
    assert 'prefix_router_key_running{key="good"} 0.0' in text


async def test_anthropic_errors_and_header(build, keys) -> None:
    system = await build(settings=keys({"name": "a", "tokens_per_minute": 20}))
    body = {"model": "sim", "max_tokens": 4, "messages": [user("hello " * 40)]}
    status, _, answer = await system.post("/v1/messages", body, **{"x-api-key": "nope"})
    assert (status, answer["type"], answer["error"]["type"]) == (401, "error", "authentication_error")
    # Larger than a minute's worth, so admitted while the bucket is full. (The simulated engine has no such endpoint.)
    status, _, answer = await system.post("/v1/messages", body, **{"x-api-key": "key-a"})
    assert (status, answer["error"]["type"]) == (404, "not_found_error")
    status, headers, answer = await system.post("/v1/messages", body, **{"x-api-key": "key-a"})
    assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
    assert int(headers["retry-after"]) >= 1
    await system.idle()


async def test_a_preflight_needs_no_key_and_nothing_else_goes_without(build, keys) -> None:
    """Browsers send none with it; vLLM asks for none either."""
    system = await build(settings=keys({"name": "good"}))
    asked = {"origin": "http://a.example", "access-control-request-method": "POST"}
    for path in ("/v1/chat/completions", "/tokenize"):
        async with system.client.options(system.url + path, headers=asked) as answer:
            assert "x-prefix-router-replica" in answer.headers
        async with system.client.options(system.url + path, headers={"origin": "http://a.example"}) as answer:
            assert answer.status == 401
        async with system.client.post(system.url + path, headers=asked, data=b"{}") as answer:
            assert answer.status == 401


async def test_concurrent_requests_are_counted_through_clients_that_leave(build, keys) -> None:
    system = await build(replicas=1, settings=keys({"name": "a", "max_concurrent": 2}))
    system.fleet[0].fault(paused=True)
    body = {"model": "sim", "messages": [user("hi")], "max_tokens": 2}
    head = {"authorization": "Bearer key-a"}
    running = [asyncio.create_task(system.post("/v1/chat/completions", body, **head)) for _ in range(2)]
    await until(lambda: system.fleet[0].in_flight == 2, "two run")
    status, headers, answer = await system.post("/v1/chat/completions", body, **head)
    assert (status, answer["error"]["code"], headers["retry-after"]) == (429, "concurrency_limit_exceeded", "1")
    for task in running:
        task.cancel()
    await until(lambda: [key.usage.running for key in system.app.gate] == [0], "their places are free again")
    system.fleet[0].clear_faults()
    status, _, _ = await system.post("/v1/chat/completions", body, **head)
    assert status == 200


async def test_a_stream_without_usage_is_charged_by_its_events(build, keys) -> None:
    system = await build(replicas=1, settings=keys({"name": "a"}))
    body = {"model": "sim", "messages": [user("hi")], "max_tokens": 20, "stream": True}
    async with system.client.post(
        system.url + "/v1/chat/completions", json=body, headers={"authorization": "Bearer key-a"}
    ) as answer:
        await answer.text()
    await system.idle()
    (key,) = system.app.gate
    assert 20 <= key.usage.tokens - 12 <= 60, key.usage.tokens


async def test_engines_see_their_own_key_and_no_clients(build, keys, monkeypatch) -> None:
    monkeypatch.setenv("ENGINE_KEY", "engine-secret")
    system = await build(
        replicas=1,
        simulator={"record_requests": 10_000},
        settings=keys({"name": "a"}, **{"proxy.api_key_env": "ENGINE_KEY"}),
    )
    await system.post(
        "/v1/chat/completions",
        {"model": "sim", "messages": [user("hi")], "max_tokens": 1},
        **{"authorization": "Bearer key-a", "x-api-key": "key-a", "X-Data-Parallel-Rank": "1", "x-override-rid": "r"},
    )
    (request,) = [r for r in system.fleet[0].requests if r.path == "/v1/chat/completions"]
    assert request.headers["authorization"] == "Bearer engine-secret"
    assert not {"x-api-key", "x-data-parallel-rank", "x-override-rid"} & request.headers.keys()
    probes = [r for r in system.fleet[0].requests if r.path == "/v1/models"]
    assert probes and all(r.headers["authorization"] == "Bearer engine-secret" for r in probes)


@pytest.mark.parametrize(("trusted", "seen"), [(False, None), (True, "1")])
async def test_routing_headers_of_clients_pass_only_where_allowed(build, trusted: bool, seen: str | None) -> None:
    system = await build(
        replicas=1, simulator={"record_requests": 10_000}, settings={"proxy.trust_client_routing": trusted}
    )
    body = {"model": "sim", "messages": [user("hi")], "max_tokens": 1}
    await system.post("/v1/chat/completions", body, **{"X-Data-Parallel-Rank": "1", "Authorization": "Bearer theirs"})
    (request,) = [r for r in system.fleet[0].requests if r.path == "/v1/chat/completions"]
    assert request.headers.get("x-data-parallel-rank") == seen
    assert request.headers["authorization"] == "Bearer theirs", "without keys the client's own header passes"


TENANTS = ({"name": "a", "tenant": "red"}, {"name": "b", "tenant": "blue"}, {"name": "c", "tenant": "red"})


async def chat(system, key: str, **fields: object) -> tuple[dict[str, str], dict]:
    body = {"model": "sim", "messages": [SYSTEM, user("the same question")], "max_tokens": 2, **fields}
    status, headers, answer = await system.post("/v1/chat/completions", body, authorization=f"Bearer key-{key}")
    assert status == 200, answer
    await system.settled()
    return headers, answer["usage"]["prompt_tokens_details"]["cached_tokens"]


async def test_shared_tenants_reuse_blocks_and_receipts_do_not_tell(build, keys) -> None:
    system = await build(replicas=1, settings=keys(*TENANTS))
    await chat(system, "a")
    headers, cached = await chat(system, "b")
    assert cached > 200, "one engine, one cache"
    assert not {"x-prefix-router-matched-tokens", "x-prefix-router-reason"} & headers.keys()
    assert headers["x-prefix-router-replica"] and int(headers["x-prefix-router-prompt-tokens"]) > 200


async def test_salted_tenants_share_nothing_and_are_matched_exactly(build, keys) -> None:
    system = await build(replicas=1, settings=keys(*TENANTS, **{"keys.isolation": "salt"}))
    for key, shared in (("a", False), ("b", False), ("c", True), ("b", True)):
        headers, cached = await chat(system, key)
        matched = int(headers["x-prefix-router-matched-tokens"])
        assert matched == cached and (cached > 200) is shared, (key, matched, cached)
    for salt in ("mine", "mine"):
        headers, cached = await chat(system, "a", cache_salt=salt)
        assert int(headers["x-prefix-router-matched-tokens"]) == cached
    assert cached > 200
    _, cached = await chat(system, "b", cache_salt="mine")
    assert cached == 0, "a tenant's own salt is its own"


async def test_the_salt_changes_nothing_else_of_the_body(build, keys) -> None:
    system = await build(
        replicas=1, simulator={"record_requests": 10_000}, settings=keys(*TENANTS, **{"keys.isolation": "salt"})
    )
    body = (
        '{ "model":"sim","x_n" : 1e300, "messages":[ {"role":"user","content":"h\\u00e9 é"}],"seed":1E2,"max_tokens":1}'
    )
    async with system.client.post(
        system.url + "/v1/chat/completions",
        data=body.encode(),
        headers={"authorization": "Bearer key-a", "content-type": "application/json"},
    ) as answer:
        assert answer.status == 200, await answer.text()
    (request,) = [r for r in system.fleet[0].requests if r.path == "/v1/chat/completions"]
    for part in ('"x_n":1e300', '"messages":[ {"role":"user","content":"h\\u00e9 é"}]', '"seed":1E2'):
        assert part in request.body.decode()
    assert len(json.loads(request.body)["cache_salt"]) == 64


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", '\ufeff{"model":"sim","messages":[],"cache_salt":"SALT"}'),
        ("/inference/v1/generate", '{"model":"sim","token_ids":[1],"cache_salt":"SALT","x":NaN}'),
        ("/inference/v1/generate", '{"model":"sim","token_ids":[1],"cache_salt":"SALT","x":"\\ud800"}'),
        ("/inference/v1/generate", " " * (4 << 20) + '{"model":"sim","token_ids":[1],"cache_salt":"SALT","x":NaN}'),
        ("/generate", '{"text":["a"],"cache_salt":["SALT"]}'),
    ],
    ids=["mark", "number", "surrogate", "long", "list"],
)
async def test_no_other_tenants_salt_gets_through(build, keys, path: str, body: str) -> None:
    """What the router can't put a salt into, but engines read, goes nowhere."""
    system = await build(
        replicas=1, simulator={"record_requests": 10_000}, settings=keys(*TENANTS, **{"keys.isolation": "salt"})
    )
    data = body.replace("SALT", tenant_salt("two", "")).encode()
    headers = {"authorization": "Bearer key-a", "content-type": "application/json"}
    async with system.client.post(system.url + path, data=data, headers=headers) as answer:
        assert answer.status == 400, await answer.text()
        assert (await answer.json())["error"]["message"]
    assert not any(request.target == path for request in system.fleet[0].requests)


async def test_no_prompt_and_no_key_in_logs_or_metrics(build, keys, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    system = await build(settings=keys({"name": "a"}, **{"log.access": True}))
    marks = ("canary-prompt", "canary-key", "key-a", "canary-model", "canary-query", "canary-header")
    bodies: list[tuple[str, object]] = [
        ("/v1/chat/completions", {"model": "sim", "messages": [user("canary-prompt")], "max_tokens": 2}),
        ("/v1/chat/completions", {"model": "canary-model", "messages": [user("canary-prompt")]}),
        ("/v1/chat/completions", {"model": "sim", "messages": "canary-prompt"}),
        ("/v1/completions", {"model": "sim", "prompt": "canary-prompt", "stream": "canary-prompt"}),
        ("/v1/messages", {"model": "sim", "messages": [user("canary-prompt")], "max_tokens": 2}),
        ("/v1/embeddings", {"model": "sim", "input": "canary-prompt"}),
        ("/elsewhere", {"x": "canary-prompt"}),
    ]
    for path, body in bodies:
        for key in ("key-a", "canary-key"):
            await system.post(path + "?q=canary-query", body, authorization=f"Bearer {key}", x_odd="canary-header")
    system.fleet[0].fault(close_before_head=3)
    system.fleet[1].fault(close_before_head=3)
    await system.post("/v1/chat/completions", bodies[0][1], authorization="Bearer key-a")
    await system.fleet[0].kill()
    await system.fleet[1].kill()
    await system.post("/v1/chat/completions", bodies[0][1], authorization="Bearer key-a")
    async with system.client.get(system.admin_url + "/metrics") as page:
        metrics = await page.text()
    for record in caplog.records:
        if record.name.split(".")[0] in ("router", "asyncio"):
            said = record.getMessage() + str(record.exc_text or "")
            assert not any(mark in said for mark in marks), said
    assert not any(mark in metrics for mark in marks)
