"""Ids of a chat from the engine that will serve it: its render or tokenize endpoint (engine-protocol.md C.1, D.2, E).

| engine | asked | not asked when |
|---|---|---|
| vLLM | `/v1/chat/completions/render`, `/v1/messages/render`, `/v1/responses/render` | off (403, 404, 501) |
| vLLM | `/tokenize` (render refuses tools without --enable-auto-tool-choice) | a field is set that it ignores |
| SGLang | `/v1/tokenize` | |
| TGI | `/chat_tokenize` | |

No HTTP in here: `post(path, body)` gives the answer's body, or None for every answer but 200.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import xxhash

from router.blocks import pack
from router.prompt.requests import ApiRequest, Endpoint
from router.prompt.stage import ModelSpec

Post = Callable[[str, bytes], Awaitable[bytes | None]]

_RENDER = {
    Endpoint.CHAT: "/v1/chat/completions/render",
    Endpoint.MESSAGES: "/v1/messages/render",
    Endpoint.RESPONSES: "/v1/responses/render",
}
_TOKENIZED = (
    *("model", "messages", "tools", "add_generation_prompt", "continue_final_message", "add_special_tokens"),
    *("chat_template", "chat_template_kwargs", "mm_processor_kwargs"),
)
# Fields of a chat that vLLM's /tokenize doesn't look at although they change the prompt.
_IGNORED = ("documents", "reasoning_effort", "truncate_prompt_tokens", "kv_transfer_params")
# Ids alone don't say which picture they stand for; a malformed request has no ids.
_HOPELESS = frozenset({"multimodal", "malformed-request", "lone-surrogate", "unsupported-endpoint"})
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0


async def ask(post: Post, endpoint: Endpoint, body: Mapping[str, Any], kind: str) -> bytes | None:
    """The request's ids as the engine of this kind ("vllm", "sglang", "tgi") has them, packed; None if it can't say."""
    if kind == "vllm":
        path = _RENDER.get(endpoint)
        if path is None:
            return None
        answer = await post(path, _encode({**body, "mm_payload": "none", "stream": False}))
        ids = _ids(answer)
        if ids is not None or endpoint is not Endpoint.CHAT or not _tokenizable(body):
            return ids
        return _ids(await post("/tokenize", _encode({key: body[key] for key in _TOKENIZED if key in body})))
    if endpoint is not Endpoint.CHAT:
        return None
    if kind == "sglang":
        return _ids(await post("/v1/tokenize", _encode(body)))
    return _ids(await post("/chat_tokenize", _encode(body))) if kind == "tgi" else None


class AskedIds:
    """A `stage.EngineIds`: asks within a time limit, remembers the answers, least recently used out first.

    A model whose engine didn't answer in time is left alone for a while (half a second, doubling up to 30), so that a
    busy engine costs one request's wait, not every request's.
    """

    def __init__(
        self,
        find: Callable[[str, str], Post | None],
        *,
        seconds: float = 0.05,
        max_bytes: int = 32 << 20,
        max_waiting: int = 32,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`find(engine, model)`: how to post to some replica of that kind that serves the model; None: there is none.

        `seconds`: what a request may wait for its ids at most. `max_waiting`: requests that may wait at a time; those
        beyond get approximate keys at once.
        """
        self._find = find
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._max_waiting = max_waiting
        self._clock = clock
        self._waiting = 0
        self._bytes = 0
        self._known: OrderedDict[int, bytes] = OrderedDict()
        self._late: dict[tuple[str, str], tuple[float, float]] = {}  # (not before, pause)

    async def __call__(self, request: ApiRequest, spec: ModelSpec, engine: str, reason: str) -> bytes | None:
        """The request's ids, packed; None if the engine doesn't know them, or not in time."""
        if reason in _HOPELESS or request.prompts:
            return None
        try:
            key = xxhash.xxh3_128_intdigest(_encode((spec.name, engine, request.endpoint.value, request.body)))
        except (UnicodeEncodeError, TypeError, RecursionError):
            return None
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            return known
        ids = await self._asked(request, spec.name, engine)
        if ids is not None:
            self._keep(key, ids)
        return ids

    async def _asked(self, request: ApiRequest, model: str, engine: str) -> bytes | None:
        not_before, pause = self._late.get((engine, model), (0.0, _PAUSE_S / 2))
        post = self._find(engine, request.model or model)
        if post is None or self._waiting >= self._max_waiting or self._clock() < not_before:
            return None
        self._waiting += 1
        try:
            async with asyncio.timeout(self._seconds):
                ids = await ask(post, request.endpoint, request.body, engine)
        except TimeoutError:
            pause = min(_LONGEST_PAUSE_S, 2 * pause)
            self._late[engine, model] = (self._clock() + pause, pause)
            return None
        finally:
            self._waiting -= 1
        self._late.pop((engine, model), None)
        return ids

    def _keep(self, key: int, ids: bytes) -> None:
        if key in self._known:
            return
        self._known[key] = ids
        self._bytes += len(ids)
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._known.popitem(last=False)[1])


_encode = msgspec.json.Encoder().encode


def _tokenizable(body: Mapping[str, Any]) -> bool:
    return body.get("tool_choice") != "none" and all(body.get(name) is None for name in _IGNORED)


def _ids(answer: bytes | None) -> bytes | None:
    """The ids in a render's, a tokenize's or a chat_tokenize's answer; None if there are none."""
    if answer is None:
        return None
    try:
        decoded = msgspec.json.decode(answer)
        ids = decoded.get("token_ids") or decoded.get("tokens")
        if ids is None:
            ids = [token["id"] for token in decoded["tokenize_response"]]
        return pack(ids) or None
    except (msgspec.DecodeError, AttributeError, KeyError, TypeError, OverflowError):
        return None
