"""One request through the whole system: answers, receipts, bad input, and what a client may expect."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import socket

import openai
import pytest
from support.waiting import until

from router.fleet.replica import Health
from router.routing.policies import POLICIES

SYSTEM = {"role": "system", "content": "You are a careful coding agent. " * 40}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


async def test_a_growing_session_stays_where_its_blocks_are(build) -> None:
    system = await build(replicas=4)
    history = [SYSTEM, user("first")]
    homes, matched, cached = [], [], []
    for step in range(5):
        headers, answer = await system.chat(history)
        await system.settled()
        homes.append(headers["x-prefix-router-replica"])
        matched.append(int(headers["x-prefix-router-matched-tokens"]))
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
        assert int(headers["x-prefix-router-prompt-tokens"]) == answer["usage"]["prompt_tokens"]
        assert headers["x-prefix-router-tokens"] == "exact"
        history += [answer["choices"][0]["message"], user(f"and step {step}?")]
    assert len(set(homes)) == 1
    assert matched == cached, "what the receipt promises is what the engine found"
    assert cached[0] == 0 and all(tokens > 200 for tokens in cached[1:])


async def test_reasons(build) -> None:
    system = await build(replicas=2)
    headers, _ = await system.chat([SYSTEM, user("a")])
    assert headers["x-prefix-router-reason"] == "cold"
    await system.settled()
    headers, _ = await system.chat([SYSTEM, user("a")])
    assert headers["x-prefix-router-reason"] == "prefix"


async def test_a_burst_with_one_prefix_stays_together_before_any_event_arrives(build) -> None:
    system = await build(replicas=4, simulator={"kv_blocks": 8192})
    for simulated in system.fleet:
        simulated.fault(paused=True)
    shared = {"role": "system", "content": "You are a careful coding agent. " * 400}
    system.app.placement.clock = lambda: 1000.0  # a burst also where a busy machine takes long to read it
    burst = [asyncio.create_task(system.chat([shared, user(f"question {n}")])) for n in range(4)]
    homes: set[str] = set()
    await until(lambda: sum(r.load.running for r in system.app.fleet) == 4, "all four run")
    for simulated in system.fleet:
        simulated.clear_faults()
    for headers, _ in await asyncio.gather(*burst):
        homes.add(headers["x-prefix-router-replica"])
    assert len(homes) == 1


@pytest.mark.parametrize("padding", [0, 200_000])
async def test_what_engines_read_beyond_json_gets_there_unchanged(build, padding: int) -> None:
    """Python's own JSON module, with which engines read, takes a byte order mark and numbers without end."""
    system = await build(replicas=1, simulator={"record_requests": 10_000})
    text = '{"model":"sim","messages":[{"role":"user","content":"x"}],"top_p":Infinity,"pad":"' + "a" * padding + '"}'
    bodies = ["\ufeff".encode() + text.replace("Infinity", "1").encode(), text.encode()]
    for body in bodies:
        headers = {"content-type": "application/json"}
        async with system.client.post(system.url + "/v1/chat/completions", data=body, headers=headers) as answer:
            assert answer.headers["x-prefix-router-tokens"] == "exact"
    assert [request.body for request in system.fleet[0].requests if request.target == "/v1/chat/completions"] == bodies
    async with system.client.post(system.url + "/v1/chat/completions", data=b'{"a":"\\ud800"}') as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "invalid_json")
    await system.idle()


@pytest.mark.parametrize("policy", sorted(POLICIES))
async def test_the_replica_gets_the_clients_bytes(build, policy: str) -> None:
    system = await build(replicas=2, simulator={"record_requests": 10_000}, settings={"routing.policy": policy})
    generator = random.Random(7)
    bodies = [
        b'{"max_tokens":1,\r\n "messages" : [ {"content":"h\\u00e9llo \xe4\xb8\x96\xe7\x95\x8c","role":"user"} ],'
        b'"model":"sim","x_unknown":{"b":1,"a":[]}}',
        b'  {"model":"sim","zz":0.10,"messages":[{"role":"user","content":"1e400"}],"max_tokens":1, "seed":1E2}\n\n',
        json.dumps({"model": "sim", "max_tokens": 1, "tools": [{"type": "function", "function": {"strict": True,
            "parameters": {"z": 1, "a": 2}, "name": "f"}}], "messages": [user("x")]}).encode(),
        json.dumps({"model": "sim", "max_tokens": 1, "messages": [user("y")], "x_padding": "".join(
            generator.choice("abc \n\u00e9\u4e16") for _ in range(600_000))}, ensure_ascii=False).encode(),
    ]  # fmt: skip
    for body in bodies:
        headers = {"Content-Type": "application/json", "X-Odd-Header": "v a l", "Authorization": "Bearer k"}
        async with system.client.post(
            system.url + "/v1/chat/completions?x=%20y&x=2", data=body, headers=headers
        ) as answer:
            assert answer.status == 200, await answer.text()
    received = [request for simulated in system.fleet for request in simulated.requests if "?x=" in request.target]
    assert sorted(request.body for request in received) == sorted(bodies)
    for request in received:
        assert request.target == "/v1/chat/completions?x=%20y&x=2"
        names = request.headers
        assert names["x-odd-header"] == "v a l" and names["authorization"] == "Bearer k"
        assert not any(name.startswith("x-prefix-router") for name in names)


async def test_the_openai_client_streaming_and_not(build) -> None:
    system = await build()
    async with openai.AsyncOpenAI(base_url=system.url + "/v1", api_key="unused", max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == ["sim"]
        assert (await client.models.retrieve("sim")).id == "sim"
        whole = await client.chat.completions.create(model="sim", messages=[user("hi")], max_tokens=6)
        assert whole.usage is not None and whole.usage.completion_tokens == 6
        stream = await client.chat.completions.create(
            model="sim", messages=[user("hi")], max_tokens=6, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 6
        completion = await client.completions.create(model="sim", prompt="def f(", max_tokens=3)
        assert completion.usage is not None and completion.usage.completion_tokens == 3
        ids = await client.completions.create(model="sim", prompt=list(range(100, 180)), max_tokens=3)
        assert ids.usage is not None and ids.usage.prompt_tokens == 80
        embedding = await client.embeddings.create(model="sim", input="hello")
        assert len(embedding.data[0].embedding) > 0
        with pytest.raises(openai.NotFoundError, match="The model `nope` does not exist"):
            await client.chat.completions.create(model="nope", messages=[user("hi")])


@pytest.mark.parametrize(
    ("path", "body", "status", "expected"),
    [
        ("/v1/chat/completions", b"{", 400, {"code": "invalid_json"}),
        ("/v1/chat/completions", b"[]", 400, {"code": "invalid_json"}),
        ("/v1/chat/completions", b"\xff\xfe", 400, {"code": "invalid_json"}),
        ("/v1/chat/completions", b'{"messages":[]}', 400, {"param": "model"}),
        ("/v1/chat/completions", b'{"model":7,"messages":[]}', 400, {"param": "model"}),
        ("/v1/chat/completions", b'{"model":"nope","messages":[]}', 404, {"param": "model", "code": "model_not_found"}),
        ("/v1/chat/completions", b'{"model":"sim"}', 400, {"param": "messages"}),
        ("/v1/chat/completions", b'{"model":"sim","messages":"x"}', 400, {"param": "messages"}),
        ("/v1/chat/completions", b'{"model":"sim","messages":[1]}', 400, {"param": "messages[0]"}),
        ("/v1/completions", b'{"model":"sim","prompt":[1,"a"]}', 400, {"param": "prompt"}),
        ("/v1/completions", b'{"model":"sim","prompt":{}}', 400, {"param": "prompt"}),
        ("/sleep", b"", 404, {"code": "not_forwarded"}),
        ("/reset_prefix_cache", b"", 404, {"code": "not_forwarded"}),
    ],
)
async def test_bad_input_is_named_and_changes_nothing(build, path: str, body: bytes, status: int, expected) -> None:
    system = await build(simulator={"record_requests": 10_000})
    before = system.app.index.blocks
    headers = {"content-type": "application/json"}
    async with system.client.post(system.url + path, data=body, headers=headers) as answer:
        error = (await answer.json())["error"]
        assert answer.status == status
    assert error["message"] and error["type"]
    assert {key: error[key] for key in expected} == expected
    assert not any(request.target == path for simulated in system.fleet for request in simulated.requests)
    assert system.app.index.blocks == before
    await system.idle()


async def test_wrong_method_unknown_model_entry_and_metrics_path(build) -> None:
    system = await build()
    for path, status in (("/v1/chat/completions", 405), ("/v1/models/nope", 404), ("/metrics", 404)):
        async with system.client.get(system.url + path) as answer:
            assert answer.status == status
            assert ("allow" in answer.headers) is (status == 405)
            assert (await answer.json())["error"]["message"]


async def test_a_body_over_the_limit_is_refused(build) -> None:
    system = await build(settings={"limits.max_body_mb": 1})
    body = b'{"model":"sim","messages":[{"role":"user","content":"' + b"x" * (1 << 20) + b'"}]}'
    async with system.client.post(system.url + "/v1/chat/completions", data=body) as answer:
        assert answer.status == 413
        assert (await answer.json())["error"]["type"] == "invalid_request_error"


async def test_other_paths_pass_through(build) -> None:
    system = await build()
    status, _, answer = await system.post("/tokenize", {"model": "sim", "prompt": "hello"})
    assert (status, answer["count"]) == (200, len(answer["tokens"]))
    status, headers, answer = await system.post("/v1/nothing", {})
    assert status == 404
    assert headers["x-prefix-router-replica"]
    assert "Unknown path /v1/nothing" in answer["error"]["message"]
    async with system.client.get(system.url + "/version") as response:
        assert response.status == 200


async def test_anthropic_errors_have_their_own_shape(build) -> None:
    system = await build()
    status, _, answer = await system.post("/v1/messages", {"model": "nope", "messages": [user("x")]})
    assert (status, answer["type"], answer["error"]["type"]) == (404, "error", "not_found_error")


async def test_whoever_speaks_anthropic_gets_anthropic_errors(build) -> None:
    system = await build(settings={"limits.max_body_mb": 1})
    version = {"anthropic-version": "2023-06-01"}
    for method, path, headers, body, status, kind in (
        ("GET", "/v1/models/nope", version, b"", 404, "not_found_error"),
        ("POST", "/v1/messages/count_tokens", {}, b'{"model":"nope"}', 404, "not_found_error"),
        ("POST", "/v1/messages/batches", {}, b"{}", 404, "not_found_error"),
        ("POST", "/v1/messages", {}, b" " * (1 << 20) + b"{}", 413, "request_too_large"),
    ):
        async with system.client.request(method, system.url + path, headers=headers, data=body) as answer:
            said = await answer.json()
            assert (answer.status, said["type"], said["error"]["type"]) == (status, "error", kind), path


async def test_a_compressed_body_is_refused_by_that_name(build) -> None:
    system = await build(replicas=1)
    body, headers = gzip.compress(b'{"model":"sim","messages":[]}'), {"content-encoding": "gzip"}
    async with system.client.post(system.url + "/v1/chat/completions", data=body, headers=headers) as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["code"]) == (400, "invalid_json")
    assert "Content-Encoding: gzip" in error["message"]


async def test_a_websocket_is_refused_and_it_is_said(build) -> None:
    system = await build()
    headers = {"connection": "upgrade", "upgrade": "WebSocket"}
    async with system.client.get(system.url + "/v1/realtime", headers=headers) as answer:
        error = (await answer.json())["error"]
        assert answer.status == 501
    assert error["code"] == "websocket_not_supported" and "/v1/realtime" in error["message"]


async def test_a_browsers_preflight_is_the_engines_to_answer(build) -> None:
    system = await build(simulator={"record_requests": 10_000})
    asked = {"origin": "http://a.example", "access-control-request-method": "POST"}
    for path in ("/v1/chat/completions", "/v1/messages", "/tokenize"):
        async with system.client.options(system.url + path, headers=asked) as answer:
            assert "x-prefix-router-replica" in answer.headers, path
        assert any((r.method, r.target) == ("OPTIONS", path) for simulated in system.fleet for r in simulated.requests)
    async with system.client.options(system.url + "/sleep", headers=asked) as answer:
        assert answer.status == 404
    await system.idle()


async def test_no_replica_is_a_503_with_retry_after(build) -> None:
    system = await build(replicas=1)
    replica = system.replica(0)
    replica.mark(Health.DRAINING, "test")
    body = {"model": "sim", "messages": [user("x")]}
    status, headers, answer = await system.post("/v1/chat/completions", body)
    assert status == 503, answer
    assert headers["retry-after"] == "1"
    assert answer["error"]["type"] == "service_unavailable"
    async with system.client.get(system.url + "/ready") as response:
        assert response.status == 503


async def test_health_ready_replicas_and_metrics(build) -> None:
    system = await build()
    await system.chat([SYSTEM, user("a")])
    await system.settled()
    for base in (system.url, system.admin_url):
        async with system.client.get(base + "/health") as answer:
            assert (answer.status, await answer.json()) == (200, {"status": "ok"})
        async with system.client.get(base + "/ready") as answer:
            assert answer.status == 200
            assert (await answer.json())["status"] == "ready"
    async with system.client.get(system.admin_url + "/replicas") as answer:
        listed = (await answer.json())["replicas"]
    assert [replica["health"] for replica in listed] == ["up", "up"]
    assert {replica["feed"]["state"] for replica in listed} == {"live"}
    assert sum(replica["feed"]["blocks"] for replica in listed) == system.app.index.blocks > 10
    async with system.client.get(system.admin_url + "/metrics") as answer:
        page = await answer.text()
    for line in (
        'prefix_router_requests_total{code="200",endpoint="chat"} 1.0',
        "prefix_router_index_blocks ",
        'prefix_router_replica_up{replica="',
        "prefix_router_time_to_first_token_seconds_bucket",
    ):
        assert line in page


async def test_without_model_files_prompts_are_matched_approximately_and_it_is_said(build) -> None:
    system = await build(model_files=None)
    history = [SYSTEM, user("first")]
    homes = []
    for step in range(4):
        headers, answer = await system.chat(history)
        assert headers["x-prefix-router-tokens"] == "approximate; no-model-files"
        homes.append(headers["x-prefix-router-replica"])
        history += [answer["choices"][0]["message"], user(f"step {step}")]
    assert len(set(homes)) == 1
    assert int(headers["x-prefix-router-matched-tokens"]) > 200
    async with system.client.get(system.url + "/ready") as response:
        said = await response.json()
    assert said["status"] == "degraded"
    assert any("approximate" in line and "--model-files" in line for line in said["degraded"])


@pytest.mark.parametrize("kind", ["tgi", "vllm"])
async def test_an_engine_without_events_gets_a_modelled_cache(build, kind: str) -> None:
    system = await build(replicas=3, simulator={"kind": kind, "events": False})
    history = [SYSTEM, user("first")]
    homes = []
    for step in range(4):
        headers, answer = await system.chat(history)
        homes.append(headers["x-prefix-router-replica"])
        history += [answer["choices"][0]["message"], user(f"step {step}")]
    assert len(set(homes)) == 1
    async with system.client.get(system.url + "/ready") as response:
        said = await response.json()
    assert any("modelled" in line for line in said["degraded"])


async def test_sglang_with_small_pages(build) -> None:
    system = await build(replicas=2, simulator={"kind": "sglang", "block_size": 1, "kv_blocks": 40_000})
    history = [SYSTEM, user("first")]
    for step in range(4):
        headers, answer = await system.chat(history)
        await system.settled()
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        matched = int(headers["x-prefix-router-matched-tokens"])
        assert 0 <= cached - matched < 16, "the canonical block is 16 pages: at most one is not whole"
        history += [answer["choices"][0]["message"], user(f"step {step}")]
    assert matched > 200


async def test_a_pipelined_raw_client_gets_its_answers_in_order(build) -> None:
    system = await build()
    reader, writer = await asyncio.open_connection("127.0.0.1", system.app.server.port, family=socket.AF_INET)
    body = b'{"model":"sim","prompt":"a","max_tokens":1}'
    request = (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    writer.write(request + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    assert answer.count(b"HTTP/1.1 200") == 2, answer
    assert answer.endswith(b'{"status":"ok"}')


@pytest.mark.parametrize(
    "path",
    [
        *("/%72eset_prefix_cache", "//reset_prefix_cache", "/%6detrics", "/sleep/x"),
        # of vLLM 0.32 and SGLang 0.5.23: aborts everybody's requests, resizes, loads weights, slows down, writes files
        *("/abort_requests", "/scale_elastic_ep", "/update_weight_version", "/slow_down", "/configure_logging"),
    ],
)
async def test_control_paths_are_reached_by_no_spelling(build, path: str) -> None:
    system = await build(simulator={"record_requests": 10_000})
    reader, writer = await asyncio.open_connection("127.0.0.1", system.app.server.port)
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 404")
    assert not any(request.target == path for simulated in system.fleet for request in simulated.requests)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"sim","messages":[{"role":"user","content":' + b"[" * 900 + b"]" * 900 + b"}]}",
        b'{"model":"sim","max_tokens":1,"n":1e308,"messages":[{"role":"user","content":"x"}]}',
    ],
)
async def test_absurd_but_parsable_bodies_are_the_engines_to_judge(build, body: bytes) -> None:
    system = await build(replicas=1)
    system.fleet[0].fault(status=400, status_times=1)
    headers = {"content-type": "application/json"}
    async with system.client.post(system.url + "/v1/chat/completions", data=body, headers=headers) as answer:
        assert answer.status == 400
        assert "internal error" not in await answer.text()
    await system.idle()


async def test_a_refused_prompt_is_not_remembered_as_held_by_a_modelled_cache(build) -> None:
    system = await build(replicas=1, simulator={"events": False})
    system.fleet[0].fault(status=400, status_times=1)
    body = {"model": "sim", "messages": [SYSTEM, user("x")], "max_tokens": 1}
    status, _, _ = await system.post("/v1/chat/completions", body)
    assert status == 400
    assert system.app.index.blocks == 0
    await system.chat([SYSTEM, user("x")])
    assert system.app.index.blocks > 10
