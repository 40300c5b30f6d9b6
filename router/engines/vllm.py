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
        events = await self._events(session, url)
        ranks = {source.rank for source in events}
        for _, labels, _ in samples((page or b"").decode("utf-8", "replace"), {"vllm:cache_config_info"}):
            block_size = as_int(labels.get("block_size"))
            blocks = as_int(labels.get("num_gpu_blocks"))
            # num_gpu_blocks * block_size is wrong for hybrid models; newer versions say the size in tokens.
            kv_tokens = as_int(labels.get("kv_cache_size_tokens")) or (
                blocks * block_size if blocks and block_size else None
            )
            ranks.add(_rank(labels))
        return EngineInfo(
            kind=self.kind, models=base, adapters=adapters, version=str(version), block_size=block_size,
            kv_tokens=kv_tokens, max_model_len=as_int(entries[0].get("max_model_len")),
            events=events, model_entries=tuple(entries), ranks=tuple(sorted(ranks)) or (0,),
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
        """From /metrics, by its label `engine`."""
        page = await get(session, url, "/metrics")
        if page is None:
            return None
        found: dict[int, dict[str, float]] = {}
        for name, labels, value in samples(page.decode("utf-8", "replace"), _WANTED):
            sums = found.setdefault(_rank(labels), {})
            if name == _SLEEP and labels.get("sleep_state") == "awake":
                continue
            sums[name] = sums.get(name, 0.0) + value
        return EngineLoad.total({rank: _load(sums) for rank, sums in found.items()})


def _rank(labels: dict[str, str]) -> int:
    return as_int(labels.get("engine")) or 0


def _load(sums: dict[str, float]) -> EngineLoad:
    def one(names: tuple[str, str]) -> float | None:
        return next((sums[name] for name in names if name in sums), None)

    hits, queries = one(_HITS), one(_QUERIES)
    return EngineLoad(
        running=int(sums.get("vllm:num_requests_running", 0)),
        waiting=int(sums.get("vllm:num_requests_waiting", 0)),
        kv_usage=one(_USAGE) or 0.0,
        cached_tokens=None if queries is None else int(hits or 0),
        prompt_tokens=None if queries is None else int(queries),
        asleep=sums.get(_SLEEP, 0) > 0,
    )
