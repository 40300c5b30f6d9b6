"""/metrics of a simulated engine: the names that routers and dashboards read, in Prometheus text."""

from __future__ import annotations

from .engine import Engine

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"


def metrics_text(engine: Engine) -> bytes:
    """The page for the engine's kind: vllm:*, sglang:* or tgi_*."""
    render = {"vllm": _vllm, "sglang": _sglang, "tgi": _tgi}[engine.config.kind]
    return "".join(
        f"# TYPE {name} {kind}\n{name}{{{labels}}} {float(value)}\n" for name, kind, labels, value in render(engine)
    ).encode()


_Line = tuple[str, str, str, float]


def _ttft(engine: Engine, name: str, labels: str) -> list[_Line]:
    counters = engine.scheduler.counters
    return [
        (f"{name}_sum", "untyped", labels, counters.ttft_sum_s),
        (f"{name}_count", "untyped", labels, counters.ttft_count),
    ]


def _vllm(engine: Engine) -> list[_Line]:
    config, scheduler, counters = engine.config, engine.scheduler, engine.scheduler.counters
    labels = f'engine="0",model_name="{config.model}"'
    tokens = config.kv_blocks * config.block_size
    cache = f'block_size="{config.block_size}",enable_prefix_caching="True",engine="0",hash_block_size="None",'
    cache += f'kv_cache_size_tokens="{tokens}",num_gpu_blocks="{config.kv_blocks}",prefix_caching_hash_algo="sha256"'
    return [
        ("vllm:num_requests_running", "gauge", labels, len(scheduler.running)),
        ("vllm:num_requests_waiting", "gauge", labels, len(scheduler.waiting)),
        ("vllm:kv_cache_usage_perc", "gauge", labels, engine.usage),
        ("vllm:prefix_cache_queries_total", "counter", labels, counters.queried),
        ("vllm:prefix_cache_hits_total", "counter", labels, counters.hit),
        ("vllm:prompt_tokens_total", "counter", labels, counters.queried),
        ("vllm:prompt_tokens_cached_total", "counter", labels, counters.hit),
        ("vllm:generation_tokens_total", "counter", labels, counters.generated),
        ("vllm:num_preemptions_total", "counter", labels, counters.preemptions),
        ("vllm:request_success_total", "counter", f'{labels},finished_reason="length"', counters.finished_requests),
        *_ttft(engine, "vllm:time_to_first_token_seconds", labels),
        ("vllm:cache_config_info", "gauge", cache, 1),
    ]


def _sglang(engine: Engine) -> list[_Line]:
    config, scheduler, counters = engine.config, engine.scheduler, engine.scheduler.counters
    request = f'engine_type="unified",model_name="{config.model}"'
    labels = f'{request},moe_ep_rank="0",pp_rank="0",tp_rank="0"'
    used, size = scheduler.cache.used, config.block_size
    rate = counters.hit / counters.queried if counters.queried else 0.0
    return [
        ("sglang:num_running_reqs", "gauge", labels, len(scheduler.running)),
        ("sglang:num_queue_reqs", "gauge", labels, len(scheduler.waiting)),
        ("sglang:token_usage", "gauge", labels, engine.usage),
        ("sglang:num_used_tokens", "gauge", labels, used * size),
        ("sglang:cache_hit_rate", "gauge", labels, rate),
        ("sglang:max_total_num_tokens", "gauge", labels, config.kv_blocks * size),
        ("sglang:page_size", "gauge", labels, size),
        ("sglang:num_pages", "gauge", labels, config.kv_blocks),
        ("sglang:context_len", "gauge", labels, config.max_model_len),
        ("sglang:prompt_tokens_total", "counter", request, counters.queried),
        ("sglang:generation_tokens_total", "counter", request, counters.generated),
        ("sglang:cached_tokens_total", "counter", f'cache_source="device",{request}', counters.hit),
        ("sglang:num_requests_total", "counter", request, counters.finished_requests),
        ("sglang:num_aborted_requests_total", "counter", request, counters.aborted_requests),
        *_ttft(engine, "sglang:time_to_first_token_seconds", request),
    ]


def _tgi(engine: Engine) -> list[_Line]:
    scheduler, counters = engine.scheduler, engine.scheduler.counters
    return [
        ("tgi_queue_size", "gauge", "", len(scheduler.waiting)),
        ("tgi_batch_current_size", "gauge", "", len(scheduler.running)),
        ("tgi_batch_max_total_tokens", "gauge", "", engine.config.kv_blocks * engine.config.block_size),
        ("tgi_request_count", "counter", "", counters.finished_requests + engine.in_flight),
        ("tgi_request_success", "counter", "", counters.finished_requests),
    ]
