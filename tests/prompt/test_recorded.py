"""Our ids against the ids that real engines answered with (fixtures/recorded.json, from shared/captures)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from router.blocks import TOKEN_BYTES, pack
from router.prompt.model import ChatModel
from router.prompt.requests import parse_request
from router.prompt.stage import ModelSpec, PromptStage

RECORDED: list[dict[str, Any]] = json.loads((Path(__file__).parent / "fixtures" / "recorded.json").read_text())


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: f"{case['engine']}-{case['path']}-{case['name']}")
async def test_ids_equal_the_engines(case: dict[str, Any], tiny: ChatModel, tiny_vllm: ChatModel) -> None:
    spec = ModelSpec("tiny", tiny_vllm if case["engine"] == "vllm" else tiny)
    stage = PromptStage({"tiny": spec}, default_model="tiny")
    request = parse_request(case["path"], json.dumps(case["body"]).encode())
    prompt = await stage.prepare(request, engine=case["engine"])
    assert prompt.exact, prompt.reason
    if case["ids"] is not None:
        assert prompt.ids == pack(case["ids"])
    if case["prompt_tokens"] is not None:
        assert prompt.tokens == case["prompt_tokens"]
    if not case["path"].endswith("completions") or "prompt" not in case["body"]:
        assert prompt.ids is not None
        assert prompt.tokens == len(prompt.ids) // TOKEN_BYTES
    stage.close()
