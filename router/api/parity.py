"""Are the router's ids the engine's? Asked when a replica joins, and from time to time after.

Probe conversations go through the prompt stage and to the engine's render or tokenize endpoint (`prompt.engine_ids`).
The first difference is a mismatch. An engine without such endpoints leaves the question open ("unknown"), unless
`generate` allows a chat of one token with `return_token_ids`, which every vLLM from 0.10.2 on answers.

A tokenizer file may have two readings (`prompt.pipelines`: transformers 5 replaces a file's pipeline by the class that
config.json names). `matching` tells which of several models is the engine's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from router.blocks import TOKEN_BYTES, pack
from router.prompt.engine_ids import Post, ask
from router.prompt.model import ChatModel
from router.prompt.requests import Endpoint, parse_request
from router.prompt.stage import ModelSpec, PromptStage, UnknownModel

_TOOL = {
    "type": "function",
    "function": {
        "name": "read_file",
        "description": "Reads a file <&> 'quoted'",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    },
}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "read_file", "arguments": '{"path": "ä.txt"}'}}
PROBES: dict[str, dict[str, Any]] = {
    "plain": {"messages": [{"role": "user", "content": "Hello, it's 1234 o'clock.\n\n  x = {'a': 1}"}]},
    "tools": {"messages": [{"role": "user", "content": "Read it."}], "tools": [_TOOL]},
    "tool-calls": {
        "messages": [
            {"role": "system", "content": "You are an agent."},
            {"role": "user", "content": "Read it."},
            {"role": "assistant", "content": "I will.", "tool_calls": [_CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "line 1\nline 2\n"},
            {"role": "assistant", "content": "It has two lines."},
            {"role": "user", "content": "Again."},
        ],
        "tools": [_TOOL],
    },
    "special-tokens": {
        "messages": [{"role": "user", "content": "<|im_end|>\n<|im_start|>system\n</s><s>[INST]<|eot_id|><|end|>"}]
    },
    "non-ascii": {"messages": [{"role": "user", "content": "Größe e\u0301 三 世界 🎉 Привет\u00a0\u3000\r\n\t2²"}]},
}


@dataclass(frozen=True, slots=True)
class ParityResult:
    """`checked` probes were compared; `ok` unless one differs, whose name is `probe`.

    `reason`: None when something was compared and is equal; "ids-differ"; or "unknown" with what kept it from being
    compared. An unknown result is ok: nothing speaks against the ids, nothing for them.
    """

    ok: bool
    checked: int
    reason: str | None = None
    probe: str | None = None


async def check_parity(
    session: aiohttp.ClientSession,
    url: str,
    kind: str,
    served_model: str,
    stage: PromptStage,
    *,
    generate: bool = False,
    seconds: float = 10.0,
) -> ParityResult:
    """Compares all probes that this model's template takes. `kind`: "vllm", "sglang", "tgi". Raises nothing.

    `generate`: where no endpoint gives ids, let the engine generate one token per probe and say what it read.
    """
    try:
        spec = stage.spec(served_model)
        spec = spec.by_engine.get(kind, spec)
    except UnknownModel:
        return ParityResult(True, 0, "unknown: the router has no such model")
    # Our own ids, also while they are not trusted, and never ones that were asked of the engine.
    own = PromptStage({served_model: replace(spec, inexact=None, by_engine={})}, threads=1)
    try:
        return await _compare(poster(session, url, seconds), kind, served_model, own, generate)
    finally:
        own.close()


async def _compare(post: Post, kind: str, served_model: str, own: PromptStage, generate: bool) -> ParityResult:
    checked = 0
    for name, probe in PROBES.items():
        body = {**probe, "model": served_model}
        ours = await own.prepare(parse_request("/v1/chat/completions", json.dumps(body).encode()), engine=kind)
        if not ours.exact or ours.ids is None:
            continue  # a template that takes no tools, say; such requests have approximate keys
        theirs = await ask(post, Endpoint.CHAT, body, kind)
        if theirs is None and generate:
            theirs = await _read_by_generating(post, body)
        if theirs is None:
            continue
        checked += 1
        if theirs != ours.ids:
            return ParityResult(False, checked, "ids-differ", name)
    return ParityResult(True, checked, None if checked else "unknown: the engine gives no ids, or ours are not exact")


async def matching(
    session: aiohttp.ClientSession,
    url: str,
    kind: str,
    served_model: str,
    spec: ModelSpec,
    models: Mapping[str, ChatModel],
) -> str | None:
    """The name of the first model (say, "file" or "Qwen2Tokenizer") whose ids are the engine's; None if none is proven.

    `served_model`: the name that the engine serves it under.
    """
    for name, model in models.items():
        stage = PromptStage({served_model: replace(spec, model=model, inexact=None, by_engine={})}, threads=1)
        try:
            result = await check_parity(session, url, kind, served_model, stage)
        finally:
            stage.close()
        if result.ok and result.checked:
            return name
    return None


def poster(session: aiohttp.ClientSession, url: str, seconds: float) -> Post:
    """Posts JSON to the replica; None for an answer other than 200, a lost connection, or none within the time."""

    async def post(path: str, body: bytes) -> bytes | None:
        headers = {"content-type": "application/json"}
        limit = aiohttp.ClientTimeout(total=seconds)
        try:
            async with session.post(url.rstrip("/") + path, data=body, headers=headers, timeout=limit) as answer:
                return await answer.read() if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    return post


async def _read_by_generating(post: Post, body: Mapping[str, Any]) -> bytes | None:
    wanted = json.dumps({**body, "max_tokens": 1, "return_token_ids": True}).encode()
    answer = await post("/v1/chat/completions", wanted)
    try:
        ids = json.loads(answer or b"{}").get("prompt_token_ids")
        packed = pack(ids) if isinstance(ids, list) else b""
    except (ValueError, TypeError, OverflowError, AttributeError):
        return None
    return packed if len(packed) >= TOKEN_BYTES else None
