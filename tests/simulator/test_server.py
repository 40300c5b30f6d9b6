"""The simulated engine over real HTTP, with aiohttp's client and OpenAI's."""

import asyncio
import base64
import json

import aiohttp
import openai
import pytest
import uvloop

from replica.simulator.config import ReplicaConfig
from replica.simulator.fleet import SimulatedFleet, SimulatedReplica
from replica.simulator.timing import time_model

INSTANT = time_model("instant")
SLOW = time_model("8b-h100")
CHAT = {"model": "sim", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 5}
TOOLS = [{"type": "function", "function": {"name": "grep", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(params=["vllm", "sglang"])
async def replica(request):
    async with SimulatedReplica(ReplicaConfig(kind=request.param, timing=INSTANT, record_requests=8)) as one:
        yield one


async def post(http, replica, path, body):
    async with http.post(replica.url + path, json=body) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_openai_client_streaming_and_not(replica):
    async with openai.AsyncOpenAI(base_url=replica.url + "/v1", api_key="x", max_retries=0) as client:
        whole = await client.chat.completions.create(**CHAT)
        text = whole.choices[0].message.content
        assert len(text.split()) == 5
        assert whole.choices[0].finish_reason == "length"
        assert whole.usage.completion_tokens == 5
        stream = await client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-2].choices[0].finish_reason == "length"
        assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
        completion = await client.completions.create(model="sim", prompt=["a b", "c d"], max_tokens=3)
        assert [choice.index for choice in completion.choices] == [0, 1]
        assert (await client.models.list()).data[0].id == "sim"
        embedded = await client.embeddings.create(model="sim", input="x", encoding_format="float")
        assert len(embedded.data[0].embedding) == 8


async def test_growing_conversation_hits_what_was_generated(replica, http):
    messages = [{"role": "system", "content": "You are careful. " * 30}, {"role": "user", "content": "start"}]
    _, first = await post(http, replica, "/v1/chat/completions", {**CHAT, "messages": messages, "max_tokens": 40})
    answer = first["choices"][0]["message"]["content"]
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "go on"}]
    _, second = await post(http, replica, "/v1/chat/completions", {**CHAT, "messages": messages})
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    computed = first["usage"]["total_tokens"] - 1
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == computed // 16 * 16


async def test_tool_calls_and_tool_results_are_rendered(replica, http):
    call = {"id": "c1", "type": "function", "function": {"name": "grep", "arguments": '{"pattern": "x"}'}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "find x"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "a.py:1"},
    ]
    status, body = await post(http, replica, "/tokenize", {"model": "sim", "messages": messages, "tools": TOOLS})
    assert status == 200
    key = "prompt" if replica.config.kind == "vllm" else "text"
    _, text = await post(http, replica, "/detokenize", {"model": "sim", "tokens": body["tokens"]})
    assert '<tool_call>\n{"name": "grep", "arguments": {"pattern": "x"}}\n</tool_call>' in text[key]
    assert "<tool_response>\na.py:1\n</tool_response>" in text[key]
    assert '"name": "grep"' in text[key].split("</tools>")[0]
    status, body = await post(http, replica, "/v1/chat/completions", {**CHAT, "messages": messages, "tools": TOOLS})
    assert status == 200


async def test_render_is_what_chat_computes(http):
    async with SimulatedReplica(ReplicaConfig(timing=INSTANT)) as replica:
        _, rendered = await post(http, replica, "/v1/chat/completions/render", CHAT)
        _, answer = await post(http, replica, "/v1/chat/completions", {**CHAT, "return_token_ids": True})
        assert answer["prompt_token_ids"] == rendered["token_ids"]
        assert len(answer["choices"][0]["token_ids"]) == 5


@pytest.mark.parametrize(
    ("body", "status", "kind", "param"),
    [
        (b'{"model": "sim", "messages": [', 400, "Bad Request", "body.30"),
        (b"[1,2]", 400, "Bad Request", "body"),
        (b'{"model": "nope", "messages": []}', 404, "NotFoundError", "model"),
        (b'{"model": "sim"}', 400, "Bad Request", "body.messages"),
        (b'{"model": "sim", "messages": "x"}', 400, "Bad Request", "body.messages"),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}', 400, "BadRequestError", "max_tokens"),
    ],
)  # fmt: skip
async def test_errors_in_vllm_words(http, body, status, kind, param):
    async with (
        SimulatedReplica(ReplicaConfig(timing=INSTANT)) as replica,
        http.post(
            replica.url + "/v1/chat/completions", data=body, headers={"content-type": "application/json"}
        ) as answer,
    ):
        error = (await answer.json())["error"]
        assert (answer.status, error["type"], error["param"], error["code"]) == (status, kind, param, status)
        assert replica.truth()["prompt_tokens"] == 0


async def test_sglang_serves_unknown_models_and_dies_of_an_unknown_token(http, until):
    async with SimulatedReplica(ReplicaConfig(kind="sglang", timing=INSTANT)) as replica:
        status, body = await post(http, replica, "/v1/chat/completions", {**CHAT, "model": "nope"})
        assert (status, body["model"]) == (200, "nope")
        _, native = await post(
            http, replica, "/generate", {"input_ids": [5] * 40, "sampling_params": {"max_new_tokens": 2}}
        )
        assert native["meta_info"]["completion_tokens"] == 2
        with pytest.raises(aiohttp.ClientError):
            await post(http, replica, "/v1/completions", {"model": "sim", "prompt": [999_999]})


async def test_tgi_routes(http):
    async with SimulatedReplica(ReplicaConfig(kind="tgi", block_size=1, kv_blocks=4000, timing=INSTANT)) as replica:
        _, body = await post(http, replica, "/generate", {"inputs": "hello", "parameters": {"max_new_tokens": 3}})
        assert body["details"]["generated_tokens"] == 3
        async with http.post(replica.url + "/generate_stream", json={"inputs": "hello"}) as answer:
            events = [json.loads(line[5:]) async for line in answer.content if line.strip()]
        assert events[-1]["generated_text"]
        assert replica.events_endpoint is None
        assert (await http.get(replica.url + "/metrics")).status == 200


async def test_lost_client_aborts_and_frees_the_blocks(http, until):
    async with SimulatedReplica(ReplicaConfig(timing=SLOW)) as replica:
        answer = await http.post(
            replica.url + "/v1/chat/completions", json={**CHAT, "max_tokens": 5000, "stream": True}
        )
        await answer.content.readline()
        assert replica.used_blocks > 0
        answer.close()
        await until(lambda: replica.in_flight == 0)
        assert replica.used_blocks == 0
        assert replica.counters.aborted_requests == 1
        quiet = asyncio.create_task(post(http, replica, "/v1/chat/completions", {**CHAT, "max_tokens": 5000}))
        await until(lambda: replica.in_flight == 1)
        quiet.cancel()
        await until(lambda: replica.in_flight == 0)


async def test_requests_are_recorded_byte_for_byte(replica, http):
    raw = '{"max_tokens":1, "zz":{"b":1,"a":"é"},"messages":[{"role":"user","content":"ü"}],"model":"sim"}'.encode()
    headers = {"Content-Type": "application/json", "X-Odd-Case": "1"}
    assert (await http.post(replica.url + "/v1/chat/completions?a=1", data=raw, headers=headers)).status == 200
    async with http.get(replica.url + "/sim/requests") as answer:
        (seen,) = await answer.json()
    assert base64.b64decode(seen["body_base64"]) == raw
    assert seen["path"] == "/v1/chat/completions?a=1"
    assert ["X-Odd-Case", "1"] in seen["headers"]


async def test_queue_limit_is_503(http, until):
    config = ReplicaConfig(timing=SLOW, max_num_seqs=1, max_queued=1)
    async with SimulatedReplica(config) as replica:
        long = {**CHAT, "max_tokens": 3000}
        tasks = [asyncio.create_task(post(http, replica, "/v1/chat/completions", long))]
        await until(lambda: replica.used_blocks)
        tasks.append(asyncio.create_task(post(http, replica, "/v1/chat/completions", long)))
        await until(lambda: replica.in_flight == 2)
        status, body = await post(http, replica, "/v1/chat/completions", long)
        assert (status, body["error"]["type"]) == (503, "Service Unavailable")
        for task in tasks:
            task.cancel()
        await until(lambda: replica.in_flight == 0)


async def test_idle_connections_are_closed(until):
    async with SimulatedReplica(ReplicaConfig(timing=INSTANT, keep_alive=0.05)) as replica:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(replica.url.rpartition(":")[2]))
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200 OK" in await reader.readline()
        async with asyncio.timeout(60):
            assert (await reader.read()).endswith(b"\r\n\r\n")
        writer.close()


async def test_fleet_metrics_and_info(http):
    async with SimulatedFleet(3, timing=INSTANT, kv_blocks=100) as fleet:
        assert len(set(fleet.urls)) == 3
        await post(http, fleet[1], "/v1/chat/completions", CHAT)
        async with http.get(fleet[1].url + "/metrics") as answer:
            page = await answer.text()
        assert 'vllm:cache_config_info{block_size="16"' in page
        assert 'num_gpu_blocks="100"' in page
        assert 'vllm:prefix_cache_queries_total{engine="0",model_name="sim"} ' in page
        async with http.get(fleet[1].url + "/kv_event_sources") as answer:
            assert (await answer.json())["0"]["endpoint"] == fleet[1].events_endpoint
        assert fleet.total().generated == 5


@pytest.mark.parametrize("fault", ["close_before_head", "half_head", "reset_after_events"])
async def test_broken_connections(http, fault):
    async with SimulatedReplica(ReplicaConfig(timing=INSTANT)) as replica:
        replica.fault(**{fault: 1, "stream_fault_times": 1})
        with pytest.raises(aiohttp.ClientError):
            async with http.post(replica.url + "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
                await answer.read()
        assert (await post(http, replica, "/v1/chat/completions", CHAT))[0] == 200
        assert replica.in_flight == 0


async def test_status_error_event_and_clear(http):
    async with SimulatedReplica(ReplicaConfig(timing=INSTANT)) as replica:
        status, _ = await post(http, replica, "/sim/faults", {"status": 502, "status_times": 1})
        assert status == 200
        assert (await post(http, replica, "/v1/chat/completions", CHAT))[0] == 502
        assert (await post(http, replica, "/v1/chat/completions", CHAT))[0] == 200
        replica.fault(error_after_events=2)
        async with http.post(replica.url + "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
            text = await answer.text()
        assert "EngineCore encountered an issue" in text
        assert text.endswith("data: [DONE]\n\n")
        status, body = await post(http, replica, "/sim/faults", {"nonsense": 1})
        assert status == 400
        assert "nonsense" in body["error"]
        await post(http, replica, "/sim/faults", {"clear": True})
        assert (await post(http, replica, "/v1/chat/completions", CHAT))[0] == 200


async def test_hang_pause_and_kill(http, until):
    async with SimulatedReplica(ReplicaConfig(timing=INSTANT)) as replica:
        for fault in ("hang", "paused"):
            replica.fault(**{fault: True})
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await post(http, replica, "/v1/chat/completions", CHAT)
            replica.clear_faults()
        await until(lambda: replica.in_flight == 0)
        await post(http, replica, "/v1/chat/completions", CHAT)
        url = replica.url
        await replica.kill()
        with pytest.raises(aiohttp.ClientError):
            await http.get(url + "/health")
        await replica.restart()
        assert replica.url == url
        assert replica.truth()["blocks"] == []
        assert (await post(http, replica, "/v1/chat/completions", CHAT))[0] == 200


def test_everything_under_uvloop():
    async def scenario():
        async with aiohttp.ClientSession() as http, SimulatedFleet(2, timing=INSTANT) as fleet:
            assert (await post(http, fleet[0], "/v1/chat/completions", CHAT))[0] == 200
            fleet[0].fault(reset_after_events=1)
            with pytest.raises(aiohttp.ClientError):
                async with http.post(fleet[0].url + "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
                    await answer.read()
            await fleet[0].restart()
            assert (await post(http, fleet[0], "/v1/chat/completions", CHAT))[0] == 200

    uvloop.run(scenario())
