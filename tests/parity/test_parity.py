"""The comparison with an engine over real HTTP: equal, different, silent, gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from router.api.parity import PROBES, check_parity, matching
from router.blocks import unpack
from router.prompt.model import ChatModel, load_model
from router.prompt.requests import parse_request
from router.prompt.stage import ModelSpec, PromptStage

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "replica" / "simulator" / "model"
TEMPLATE = (ROOT / "tests" / "prompt" / "templates" / "chatml.jinja").read_text()


@pytest.fixture(scope="module")
def models() -> dict[str, ChatModel]:
    by_file = load_model(MODEL, chat_template=TEMPLATE)
    by_class = load_model(MODEL, chat_template=TEMPLATE, tokenizer_class="Qwen2Tokenizer")
    return {"file": by_file, "Qwen2Tokenizer": by_class}


class Engine:
    """Answers with the ids of `model`, on the routes that are switched on."""

    def __init__(self, model: ChatModel) -> None:
        self.stage = PromptStage({"m": ModelSpec("m", model)})
        self.routes: dict[str, str] = {}
        self.kind = "vllm"
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        field = self.routes.get(request.path)
        if field is None:
            return web.json_response({"error": "off"}, status=403)
        prompt = await self.stage.prepare(parse_request("/v1/chat/completions", await request.read()), engine=self.kind)
        assert prompt.ids is not None
        return web.json_response({field: unpack(prompt.ids)})


@pytest.fixture
async def engine(models: dict[str, ChatModel]) -> AsyncIterator[Engine]:
    engine = Engine(models["Qwen2Tokenizer"])
    app = web.Application()
    app.router.add_post("/{path:.*}", engine.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    engine.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield engine
    await runner.cleanup()
    engine.stage.close()


def stage_of(model: ChatModel) -> PromptStage:
    return PromptStage({"m": ModelSpec("m", model)})


@pytest.mark.parametrize(
    ("kind", "path", "field"),
    [
        ("vllm", "/v1/chat/completions/render", "token_ids"),
        ("vllm", "/tokenize", "tokens"),
        ("sglang", "/v1/tokenize", "tokens"),
    ],
)
async def test_equal_ids(engine: Engine, models: dict[str, ChatModel], kind: str, path: str, field: str) -> None:
    engine.routes, engine.kind = {path: field}, kind
    stage = stage_of(models["Qwen2Tokenizer"])
    async with aiohttp.ClientSession() as session:
        result = await check_parity(session, engine.url, kind, "m", stage)
    assert result.ok
    assert (result.checked, result.reason, result.probe) == (len(PROBES), None, None)
    stage.close()


async def test_a_difference_is_named(engine: Engine, models: dict[str, ChatModel]) -> None:
    engine.routes = {"/tokenize": "tokens"}
    stage = stage_of(models["file"])
    async with aiohttp.ClientSession() as session:
        result = await check_parity(session, engine.url, "vllm", "m", stage)
    assert not result.ok
    assert result.reason == "ids-differ"
    assert result.probe in PROBES
    stage.close()


async def test_generating_is_asked_for(engine: Engine, models: dict[str, ChatModel]) -> None:
    engine.routes = {"/v1/chat/completions": "prompt_token_ids"}
    stage = stage_of(models["Qwen2Tokenizer"])
    async with aiohttp.ClientSession() as session:
        silent = await check_parity(session, engine.url, "vllm", "m", stage)
        asked = await check_parity(session, engine.url, "vllm", "m", stage, generate=True)
        gone = await check_parity(session, "http://127.0.0.1:9", "vllm", "m", stage)
        other = await check_parity(session, engine.url, "vllm", "other", stage)
    for unknown in (silent, gone, other):
        assert unknown.ok
        assert unknown.checked == 0
        assert str(unknown.reason).startswith("unknown")
    assert asked.ok
    assert asked.checked == len(PROBES)
    stage.close()


async def test_the_matching_reading_of_a_tokenizer_is_found(engine: Engine, models: dict[str, ChatModel]) -> None:
    spec: Any = ModelSpec("m", models["file"])
    async with aiohttp.ClientSession() as session:
        assert await matching(session, engine.url, "vllm", "m", spec, models) is None
        engine.routes = {"/tokenize": "tokens"}
        assert await matching(session, engine.url, "vllm", "m", spec, models) == "Qwen2Tokenizer"
        assert await matching(session, engine.url, "vllm", "m", spec, {"file": models["file"]}) is None
