"""SGLang over HTTP (0.5.8 and later): D.1 to D.3 of the protocol notes."""

from __future__ import annotations

from typing import Any

import aiohttp

from router.engines.ask import as_int, get, get_json, reachable, samples, served_models
from router.engines.types import EngineInfo, EngineKind, EngineLoad, EventSource

_WANTED = frozenset(
    {
        "sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:token_usage",
        "sglang:cached_tokens_total", "sglang:prompt_tokens_total",
    }
)  # fmt: skip


class Sglang:
    """An engine answering as `python -m sglang.launch_server` does."""

    kind: EngineKind = "sglang"
    # Never /health: it generates, and takes a second at least. /ready is 404 before 0.5.20: the prober falls back to
    # /v1/models then.
    health_path = "/ready"

    async def recognises(self, session: aiohttp.ClientSession, url: str) -> bool:
        """It has /model_info (older: /get_model_info) with a model path."""
        for path in ("/model_info", "/get_model_info"):
            answer = await get_json(session, url, path)
            if answer is not None:
                return "model_path" in answer
        return False

    async def inspect(self, session: aiohttp.ClientSession, url: str) -> EngineInfo:
        """Models, page size, KV capacity and event sources from /v1/models and /server_info."""
        base, adapters, entries = served_models(await get_json(session, url, "/v1/models"), url)
        # It lists an adapter by its own name, but takes a request for that name as one for the base model.
        adapters = tuple(f"{base[0]}:{adapter}" for adapter in adapters)
        entries = [{**e, "id": f"{base[0]}:{e['id']}"} if e.get("parent") else e for e in entries]
        server = await get_json(session, url, "/server_info") or await get_json(session, url, "/get_server_info") or {}
        events = _events(server.get("kv_events"), url)
        ranks = range(max(as_int(server.get("dp_size")) or 1, len(events)))
        return EngineInfo(
            kind=self.kind, models=base, adapters=adapters, version=str(server.get("version", "")),
            block_size=as_int(server.get("page_size")), kv_tokens=_capacity(server),
            max_model_len=as_int(entries[0].get("max_model_len")), events=events, model_entries=tuple(entries),
            ranks=tuple(ranks),
        )  # fmt: skip

    async def load(self, session: aiohttp.ClientSession, url: str) -> EngineLoad | None:
        """From /v1/loads; where that is missing, from /metrics (needs --enable-metrics)."""
        answer = await get_json(session, url, "/v1/loads")
        ranks = [rank for rank in (answer or {}).get("loads") or [] if isinstance(rank, dict)]
        if ranks:
            return EngineLoad.total({_number(rank, "dp_rank"): _load(rank) for rank in ranks})
        page = await get(session, url, "/metrics")
        if page is None:
            return None
        total = dict.fromkeys(_WANTED, 0.0)
        for name, _, value in samples(page.decode("utf-8", "replace"), _WANTED):
            total[name] = max(total[name], value) if name == "sglang:token_usage" else total[name] + value
        return EngineLoad(
            int(total["sglang:num_running_reqs"]), int(total["sglang:num_queue_reqs"]), total["sglang:token_usage"],
            int(total["sglang:cached_tokens_total"]), int(total["sglang:prompt_tokens_total"]),
        )  # fmt: skip


def _load(rank: dict[str, Any]) -> EngineLoad:
    return EngineLoad(
        running=_number(rank, "num_running_reqs"),
        waiting=_number(rank, "num_waiting_reqs"),
        kv_usage=float(rank.get("token_usage") or 0.0),
        max_running=_number(rank, "max_running_requests") or None,
        waiting_tokens=_number(rank, "num_waiting_uncached_tokens") if "num_waiting_uncached_tokens" in rank else None,
    )


def _number(rank: dict[str, Any], key: str) -> int:
    value = rank.get(key)
    return int(value) if isinstance(value, int | float) else 0


def _capacity(server: dict[str, Any]) -> int | None:
    direct = as_int(server.get("max_total_num_tokens"))
    if direct is not None:
        return direct
    for state in server.get("internal_states") or []:
        if isinstance(state, dict) and (found := as_int(state.get("max_total_num_tokens"))):
            return found
    return None


def _events(described: Any, url: str) -> tuple[EventSource, ...]:
    if not isinstance(described, dict) or described.get("publisher") != "zmq":
        return ()
    port = as_int(described.get("endpoint_port_base"))
    if port is None:
        return ()
    host = str(described.get("endpoint_host") or "*")
    replay = as_int(described.get("replay_endpoint_port_base"))
    return tuple(
        EventSource(
            endpoint=reachable(f"tcp://{host}:{port + rank}", url), topic=str(described.get("topic") or ""), rank=rank,
            replay_endpoint=reachable(f"tcp://{host}:{replay + rank}", url) if replay else None,
        )
        for rank in range(as_int(described.get("dp_size")) or 1)
    )  # fmt: skip
