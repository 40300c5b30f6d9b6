"""Engines asked over HTTP, against answers recorded from real servers (fixtures/, from vLLM 0.32.0, SGLang 0.5.23)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from router.engines import ENGINES, EngineError, EventSource, recognise
from router.engines.ask import MAX_ANSWER_BYTES, reachable, samples

FIXTURES = Path(__file__).parent / "fixtures"


class Recorded:
    """A server that answers as recorded, and 404 otherwise."""

    def __init__(self) -> None:
        self.pages: dict[str, Any] = {}
        self.url = ""

    def load(self, name: str) -> None:
        self.pages = json.loads((FIXTURES / name).read_text())

    async def answer(self, request: web.Request) -> web.StreamResponse:
        page = self.pages.get(request.path)
        if page is None:
            return web.json_response({"detail": "Not Found"}, status=404)
        if "json" in page:
            return web.json_response(page["json"], status=page["status"])
        return web.Response(text=page["text"], status=page["status"])


@pytest.fixture
async def engine() -> AsyncIterator[Recorded]:
    recorded = Recorded()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", recorded.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    recorded.url = f"http://127.0.0.1:{port}"
    yield recorded
    await runner.cleanup()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as client:
        yield client


async def test_vllm(engine: Recorded, session: aiohttp.ClientSession) -> None:
    engine.load("vllm-0.32.0.json")
    kind = await recognise(session, engine.url)
    info = await kind.inspect(session, engine.url)
    assert (info.kind, info.models, info.version) == ("vllm", ("tiny",), "0.32.0")
    assert (info.block_size, info.kv_tokens, info.max_model_len) == (32, 3072, 2048)
    assert info.events == (EventSource("tcp://127.0.0.1:5657", "tcp://127.0.0.1:5658", "kv-events"),)
    load = await kind.load(session, engine.url)
    assert load is not None
    assert (load.cached_tokens, load.prompt_tokens, load.running) == (74944, 170734, 0)


async def test_vllm_before_event_sources_were_told(engine: Recorded, session: aiohttp.ClientSession) -> None:
    engine.load("vllm-0.32.0.json")
    del engine.pages["/kv_event_sources"], engine.pages["/metrics"]
    info = await ENGINES["vllm"].inspect(session, engine.url)
    assert (info.events, info.block_size, info.kv_tokens) == ((), None, None)
    assert await ENGINES["vllm"].load(session, engine.url) is None


async def test_the_ranks_of_a_data_parallel_vllm(engine: Recorded, session: aiohttp.ClientSession) -> None:
    engine.load("vllm-0.32.0.json")
    source = engine.pages["/kv_event_sources"]["json"]["0"]
    engine.pages["/kv_event_sources"]["json"]["1"] = source | {"endpoint": "tcp://*:5758"}
    page = engine.pages["/metrics"]["text"]
    engine.pages["/metrics"]["text"] += page.replace('engine="0"', 'engine="1"').replace("74944.0", "4.0")
    info = await ENGINES["vllm"].inspect(session, engine.url)
    assert (info.ranks, info.kv_tokens) == ((0, 1), 3072)
    assert [info.source(rank) and info.source(rank).endpoint for rank in (0, 1, 2)] == [
        "tcp://127.0.0.1:5657", "tcp://127.0.0.1:5758", None,
    ]  # fmt: skip
    load = await ENGINES["vllm"].load(session, engine.url)
    assert load is not None
    assert (load.cached_tokens, load.of(0).cached_tokens, load.of(1).cached_tokens) == (74948, 74944, 4)
    assert load.of(None) is load
    del engine.pages["/kv_event_sources"]
    info = await ENGINES["vllm"].inspect(session, engine.url)
    assert (info.ranks, info.events) == ((0, 1), ()), "before 0.31 only the metrics tell"


def test_an_endpoint_of_another_rank() -> None:
    first = EventSource("tcp://10.0.0.1:5557", "tcp://10.0.0.1:5657", "kv")
    assert first.of_rank(0) == first
    assert first.of_rank(3) == EventSource("tcp://10.0.0.1:5560", "tcp://10.0.0.1:5660", "kv", rank=3)
    assert EventSource("tcp://10.0.0.1:0").of_rank(1).endpoint == "tcp://10.0.0.1:0"
    assert EventSource("ipc:///run/a").of_rank(1).endpoint == "ipc:///run/a"


async def test_the_ranks_of_a_data_parallel_sglang(engine: Recorded, session: aiohttp.ClientSession) -> None:
    engine.load("sglang-0.5.23.json")
    server = engine.pages["/server_info"]["json"]
    server["dp_size"] = 2
    server["kv_events"] = {"publisher": "zmq", "endpoint_host": "*", "endpoint_port_base": 5557, "dp_size": 2}
    loads = engine.pages["/v1/loads"]["json"]["loads"]
    loads.append(loads[0] | {"dp_rank": 1, "num_running_reqs": 3, "num_waiting_uncached_tokens": 70})
    kind = ENGINES["sglang"]
    info = await kind.inspect(session, engine.url)
    first, second = info.events
    assert (info.ranks, second) == ((0, 1), first.of_rank(1))
    load = await kind.load(session, engine.url)
    assert load is not None
    assert [(load.of(rank).running, load.of(rank).waiting_tokens) for rank in (None, 0, 1)] == [
        (3, 70),
        (0, 0),
        (3, 70),
    ]


async def test_sglang(engine: Recorded, session: aiohttp.ClientSession) -> None:
    engine.load("sglang-0.5.23.json")
    engine.pages["/server_info"]["json"]["kv_events"] = {
        "publisher": "zmq", "endpoint_host": "*", "endpoint_port_base": 5557, "topic": "kv", "block_size": 16,
        "dp_size": 2, "replay_endpoint_port_base": 5600,
    }  # fmt: skip
    kind = await recognise(session, engine.url)
    info = await kind.inspect(session, engine.url)
    assert (info.kind, info.models, info.version) == ("sglang", ("tiny",), "0.5.23")
    assert (info.block_size, info.kv_tokens) == (16, 4096)
    assert info.events == (
        EventSource("tcp://127.0.0.1:5557", "tcp://127.0.0.1:5600", "kv", rank=0),
        EventSource("tcp://127.0.0.1:5558", "tcp://127.0.0.1:5601", "kv", rank=1),
    )
    load = await kind.load(session, engine.url)
    assert load is not None and (load.running, load.waiting, load.kv_usage) == (0, 0, 0.0)
    del engine.pages["/v1/loads"]
    load = await kind.load(session, engine.url)
    assert load is not None and load.prompt_tokens is not None and load.prompt_tokens > 0


async def test_tgi(engine: Recorded, session: aiohttp.ClientSession) -> None:
    engine.pages = {
        "/info": {"status": 200, "json": {"model_id": "m", "router": "text-generation-router", "version": "3.3.7",
                                          "max_total_tokens": 4096}},
        "/metrics": {"status": 200, "text": "tgi_queue_size 3\ntgi_batch_current_size 5\n"
                                            "tgi_batch_max_total_tokens 70000\n"},
    }  # fmt: skip
    kind = await recognise(session, engine.url)
    info = await kind.inspect(session, engine.url)
    assert (info.kind, info.models, info.kv_tokens, info.max_model_len) == ("tgi", ("m",), 70000, 4096)
    load = await kind.load(session, engine.url)
    assert load is not None and (load.running, load.waiting) == (5, 3)


async def test_something_else_is_said_to_be_something_else(engine: Recorded, session: aiohttp.ClientSession) -> None:
    with pytest.raises(EngineError, match="none of vllm, sglang, tgi; set `engine`"):
        await recognise(session, engine.url)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ({"status": 200, "text": "<html>"}, "did not answer JSON"),
        ({"status": 200, "text": "[1]"}, "JSON object"),
        ({"status": 500, "text": ""}, "HTTP 500"),
        ({"status": 200, "json": {"data": [{"id": 7}, "x"]}}, "lists no model"),
        ({"status": 200, "text": "x" * (MAX_ANSWER_BYTES + 1)}, "more than"),
    ],
)
async def test_bad_answers_are_named(
    engine: Recorded, session: aiohttp.ClientSession, page: dict[str, Any], message: str
) -> None:
    engine.pages = {"/v1/models": page}
    with pytest.raises(EngineError, match=message):
        await ENGINES["vllm"].inspect(session, engine.url)


async def test_nobody_there(session: aiohttp.ClientSession) -> None:
    with pytest.raises(EngineError, match=r"http://127\.0\.0\.1:1/version"):
        await ENGINES["vllm"].recognises(session, "http://127.0.0.1:1")


def test_samples_pass_over_what_they_cannot_read() -> None:
    page = 'a{x="1\\"2"} 3\n# a 4\na nonsense\na{} 5 123\nab 6\na'
    assert samples(page, {"a"}) == [("a", {"x": '1\\"2'}, 3.0), ("a", {}, 5.0)]


@pytest.mark.parametrize(
    ("endpoint", "seen"),
    [
        ("tcp://*:5557", "tcp://10.0.0.7:5557"),
        ("tcp://0.0.0.0:5557", "tcp://10.0.0.7:5557"),
        ("tcp://10.9.9.9:5557", "tcp://10.9.9.9:5557"),
        ("ipc:///run/kv.ipc", "ipc:///run/kv.ipc"),
    ],
)
def test_wildcard_endpoints_are_at_the_engines_host(endpoint: str, seen: str) -> None:
    assert reachable(endpoint, "http://10.0.0.7:8000/") == seen
