"""vLLM over HTTP (0.9 to 0.33): see C.1 and C.5 of the protocol notes for paths, fields and metric names."""

from __future__ import annotations

import aiohttp

from router.engines.ask import as_int, get, get_json, reachable, samples, served_models
from router.engines.types import EngineInfo, EngineKind, EngineLoad, EventSource

_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_HITS = ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total")
_QUERIES = ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total")
_SLEEP = "vllm:engine_sleep_state"
_WANTED = frozenset({"vllm:num_requests_running", "vllm:num_requests_waiting", _SLEEP, *_USAGE, *_HITS, *_QUERIES})
_REST_PATHS = ("/is_paused", "/is_sleeping")  # development mode and RL servers only


class Vllm:
    """An engine answering as `vllm serve` does."""

    kind: EngineKind = "vllm"
    health_path = "/health"

    async def recognises(self, session: aiohttp.ClientSession, url: str) -> bool:
        """Its /version is an object with `version`; SGLang and TGI have no such path."""
        answer = await get_json(session, url, "/version")
        return answer is not None and "version" in answer

    async def inspect(self, session: aiohttp.ClientSession, url: str) -> EngineInfo:
        """Models, block size and KV capacity (vllm:cache_config_info), event sources (>= 0.31)."""
        base, adapters, entries = served_models(await get_json(session, url, "/v1/models"), url)
        version = (await get_json(session, url, "/version") or {}).get("version", "")
        block_size = kv_tokens = None
        page = await get(session, url, "/metrics")
        for _, labels, _ in samples((page or b"").decode("utf-8", "replace"), {"vllm:cache_config_info"}):
            block_size = as_int(labels.get("block_size"))
            blocks = as_int(labels.get("num_gpu_blocks"))
            # num_gpu_blocks * block_size is wrong for hybrid models; newer versions say the size in tokens.
            kv_tokens = as_int(labels.get("kv_cache_size_tokens")) or (
                blocks * block_size if blocks and block_size else None
            )
            break
        return EngineInfo(
            kind=self.kind, models=base, adapters=adapters, version=str(version), block_size=block_size,
            kv_tokens=kv_tokens, max_model_len=as_int(entries[0].get("max_model_len")),
            events=await self._events(session, url), model_entries=tuple(entries),
            rest_paths=tuple([path for path in _REST_PATHS if await get_json(session, url, path) is not None]),
        )  # fmt: skip

    async def _events(self, session: aiohttp.ClientSession, url: str) -> tuple[EventSource, ...]:
        found = []
        for rank, source in (await get_json(session, url, "/kv_event_sources") or {}).items():
            if not isinstance(source, dict) or not source.get("enable_kv_cache_events"):
                continue
            endpoint, replay = source.get("endpoint"), source.get("replay_endpoint")
            if source.get("publisher", "zmq") != "zmq" or not isinstance(endpoint, str):
                continue
            found.append(
                EventSource(
                    endpoint=reachable(endpoint, url), topic=str(source.get("topic") or ""), rank=as_int(rank) or 0,
                    replay_endpoint=reachable(replay, url) if isinstance(replay, str) else None,
                )
            )  # fmt: skip
        return tuple(sorted(found, key=lambda source: source.rank))

    async def load(self, session: aiohttp.ClientSession, url: str) -> EngineLoad | None:
        """From /metrics, summed over ranks (KV usage: the fullest rank)."""
        page = await get(session, url, "/metrics")
        if page is None:
            return None
        running = waiting = hits = queries = 0.0
        usage = 0.0
        counted = asleep = False
        for name, labels, value in samples(page.decode("utf-8", "replace"), _WANTED):
            if name == "vllm:num_requests_running":
                running += value
            elif name == "vllm:num_requests_waiting":
                waiting += value
            elif name == _SLEEP:
                asleep = asleep or (value > 0 and labels.get("sleep_state") != "awake")
            elif name in _USAGE:
                usage = max(usage, value)
            elif name in _HITS:
                hits += value
            else:
                queries += value
                counted = True
        return EngineLoad(
            int(running), int(waiting), usage,
            cached_tokens=int(hits) if counted else None, prompt_tokens=int(queries) if counted else None,
            asleep=asleep,
        )  # fmt: skip
