"""What a simulated engine says about itself: models, health, load, event sources, metrics."""

from __future__ import annotations

import os
import time
from typing import Any

from .config import ReplicaConfig
from .engine import Engine
from .http import Reply, Request
from .shapes import compact

VERSIONS = {"vllm": "0.32.0", "sglang": "0.5.23", "tgi": "3.3.6-dev0"}
FLUSHED = b"Cache flushed.\nPlease check backend logs for more details. (When there are running or waiting requests, the operation will not be performed.)\n"  # noqa: E501


class InfoRoutes:
    """Read-only routes and the cache reset; handlers like OpenAIRoutes'."""

    def __init__(self, config: ReplicaConfig, engine: Engine) -> None:
        self._config = config
        self._engine = engine
        self._created = int(time.time())

    def models(self, request: Request, reply: Reply) -> None:
        base = self._config.model
        owner = self._config.kind
        data: list[dict[str, Any]] = []
        for name in (base, *self._config.aliases, *self._config.loras):
            entry = {"id": name, "object": "model", "created": self._created, "owned_by": owner, "root": base}
            entry |= {
                "parent": base if name in self._config.loras else None,
                "max_model_len": self._config.max_model_len,
            }
            if owner == "vllm":
                permission = {
                    "id": f"modelperm-{os.urandom(8).hex()}",
                    "object": "model_permission",
                    "is_blocking": False,
                }
                entry["permission"] = [permission]
            data.append(entry)
        reply.send(200, compact({"object": "list", "data": data}))

    def empty(self, request: Request, reply: Reply) -> None:
        reply.send(200, b"", "")

    def version(self, request: Request, reply: Reply) -> None:
        reply.send(200, compact({"version": VERSIONS[self._config.kind]}))

    def load(self, request: Request, reply: Reply) -> None:
        reply.send(200, compact({"server_load": self._engine.in_flight}))

    def kv_event_sources(self, request: Request, reply: Reply) -> None:
        publisher = self._engine.publisher
        source = None
        if publisher is not None:
            source = {
                "enable_kv_cache_events": True,
                "publisher": "zmq",
                "endpoint": publisher.endpoint,
                "replay_endpoint": publisher.replay_endpoint,
                "buffer_steps": publisher.buffer_steps,
                "hwm": publisher.hwm,
                "max_queue_size": 100_000,
                "topic": publisher.topic,
            }
        reply.send(200, compact({"0": source} if source else {}))

    def reset_prefix_cache(self, request: Request, reply: Reply) -> None:
        reply.send(200, compact({"success": self._engine.reset_cache()}))

    def flush_cache(self, request: Request, reply: Reply) -> None:
        done = self._engine.reset_cache()
        reply.send(200 if done else 400, FLUSHED, "text/plain; charset=utf-8")

    def is_paused(self, request: Request, reply: Reply) -> None:
        reply.send(200, compact({"is_paused": self._engine.paused}))

    def pause(self, request: Request, reply: Reply) -> None:
        self._engine.pause(True)
        reply.send(200, compact({"status": "paused"}))

    def resume(self, request: Request, reply: Reply) -> None:
        self._engine.pause(False)
        reply.send(200, compact({"status": "resumed"}))

    def model_info(self, request: Request, reply: Reply) -> None:
        name = self._config.model
        info = {"model_path": name, "served_model_name": name, "tokenizer_path": name, "is_generation": True}
        reply.send(
            200, compact({**info, "weight_version": "default", "model_type": "qwen2", "disaggregation_mode": "null"})
        )

    def server_info(self, request: Request, reply: Reply) -> None:
        config = self._config
        if config.kind != "sglang":
            reply.send(200, compact({"vllm_config": {"model_config": {"served_model_name": config.model}}}))
            return
        tokens = config.kv_blocks * config.block_size
        info = {
            "model_path": config.model,
            "served_model_name": config.model,
            "context_length": config.max_model_len,
            "page_size": config.block_size,
            "dp_size": 1,
            "tp_size": 1,
            "max_running_requests": config.max_num_seqs,
            "chunked_prefill_size": config.max_num_batched_tokens,
            "max_total_num_tokens": tokens,
            "kv_events": self._sglang_events(),
            "internal_states": [{"memory_usage": {"token_capacity": tokens}}],
            "version": VERSIONS["sglang"],
        }
        reply.send(200, compact(info))

    def _sglang_events(self) -> dict[str, Any] | None:
        publisher = self._engine.publisher
        if publisher is None or not publisher.endpoint.startswith("tcp://"):
            return None
        host, _, port = publisher.endpoint.removeprefix("tcp://").rpartition(":")
        events: dict[str, Any] = {
            "publisher": "zmq",
            "endpoint_host": host,
            "endpoint_port_base": int(port),
            "topic": publisher.topic,
            "block_size": self._config.block_size,
            "dp_size": 1,
        }
        if publisher.replay_endpoint:
            events["replay_endpoint_port_base"] = int(publisher.replay_endpoint.rpartition(":")[2])
        return events

    def loads(self, request: Request, reply: Reply) -> None:
        scheduler = self._engine.scheduler
        counters = scheduler.counters
        capacity = self._config.kv_blocks * self._config.block_size
        used = scheduler.cache.used * self._config.block_size
        load = {
            "timestamp": time.time(),
            "dp_rank": 0,
            "num_running_reqs": len(scheduler.running),
            "num_waiting_reqs": len(scheduler.waiting),
            "num_waiting_uncached_tokens": sum(seq.length for seq in scheduler.waiting),
            "num_used_tokens": used,
            "num_total_tokens": used,
            "max_total_num_tokens": capacity,
            "max_running_requests": self._config.max_num_seqs,
            "token_usage": used / capacity,
            "cache_hit_rate": counters.hit / counters.queried if counters.queried else 0.0,
            "total_prefill_uncached_tokens": counters.prefilled,
            "total_prefill_busy_us": int(counters.prefill_busy_s * 1e6),
        }
        reply.send(200, compact({"timestamp": time.time(), "version": VERSIONS["sglang"], "loads": [load]}))

    def tgi_info(self, request: Request, reply: Reply) -> None:
        limit = self._config.max_model_len
        info = {"model_id": self._config.model, "max_concurrent_requests": self._config.max_num_seqs}
        info |= {"max_input_tokens": limit - 1, "max_total_tokens": limit, "version": VERSIONS["tgi"]}
        reply.send(200, compact({**info, "router": "text-generation-router", "model_pipeline_tag": "text-generation"}))
