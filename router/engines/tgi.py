"""Hugging Face TGI over HTTP (3.3): no KV events, no cached-token counts; load and capacity only."""

from __future__ import annotations

import aiohttp

from router.engines.ask import as_int, get, get_json, samples
from router.engines.types import EngineError, EngineInfo, EngineKind, EngineLoad

_QUEUE, _BATCH = "tgi_queue_size", "tgi_batch_current_size"
_MAX_TOKENS = "tgi_batch_max_total_tokens"


class Tgi:
    """An engine answering as `text-generation-launcher` does."""

    kind: EngineKind = "tgi"
    health_path = "/health"

    async def recognises(self, session: aiohttp.ClientSession, url: str) -> bool:
        """Its /info names a router."""
        answer = await get_json(session, url, "/info")
        return answer is not None and "model_id" in answer

    async def inspect(self, session: aiohttp.ClientSession, url: str) -> EngineInfo:
        """Model and limits from /info; the batch's token capacity from /metrics stands for the KV size."""
        info = await get_json(session, url, "/info")
        if info is None or not isinstance(info.get("model_id"), str):
            raise EngineError(f"{url}/info names no model")
        page = await get(session, url, "/metrics")
        capacity = [value for _, _, value in samples((page or b"").decode("utf-8", "replace"), {_MAX_TOKENS})]
        name = info["model_id"]
        return EngineInfo(
            kind=self.kind, models=(name,), version=str(info.get("version", "")),
            kv_tokens=as_int(capacity[0]) if capacity else None, max_model_len=as_int(info.get("max_total_tokens")),
            model_entries=({"id": name, "object": "model", "created": 0, "owned_by": "tgi"},),
        )  # fmt: skip

    async def load(self, session: aiohttp.ClientSession, url: str) -> EngineLoad | None:
        """Queue and batch size."""
        page = await get(session, url, "/metrics")
        if page is None:
            return None
        found = {name: value for name, _, value in samples(page.decode("utf-8", "replace"), {_QUEUE, _BATCH})}
        return EngineLoad(running=int(found.get(_BATCH, 0)), waiting=int(found.get(_QUEUE, 0)))
