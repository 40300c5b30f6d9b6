"""The engines' flags that the chart uses, as their makers document them; what isn't here the chart may not render.

vLLM: https://docs.vllm.ai/en/latest/cli/serve/ (tests/engines_real asks vLLM's own parser, and reads SGLang's source).
SGLang: https://docs.sglang.io/docs/advanced_features/server_arguments
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def text(value: str) -> str:
    assert value
    return value


SWITCH = None
Flags = dict[str, Callable[[str], Any] | None]

VLLM: Flags = {
    "served-model-name": text, "host": text, "port": int, "enable-prefix-caching": SWITCH,
    "enable-prompt-tokens-details": SWITCH, "kv-events-config": json.loads, "revision": text,
    "tensor-parallel-size": int, "data-parallel-size": int, "block-size": int, "max-model-len": int,
    "gpu-memory-utilization": float,
}  # fmt: skip
SGLANG: Flags = {
    "model-path": text, "served-model-name": text, "host": text, "port": int, "enable-metrics": SWITCH,
    "enable-cache-report": SWITCH, "page-size": int, "kv-events-config": json.loads, "revision": text, "tp-size": int,
    "dp-size": int, "context-length": int, "api-key": text,
}  # fmt: skip
SGLANG_EVENTS = {"publisher", "endpoint", "replay_endpoint", "buffer_steps", "hwm", "max_queue_size", "topic"}
VLLM_EVENTS = SGLANG_EVENTS | {"enable_kv_cache_events"}


def parse(kind: str, args: list[str]) -> dict[str, Any]:
    """The flags of a command line with their values. AssertionError for what the engine doesn't document."""
    known = VLLM if kind == "vllm" else SGLANG
    if kind == "vllm":
        model, *args = args
        assert not model.startswith("-"), "vllm serve takes the model first"
    found: dict[str, Any] = {}
    for arg in args:
        assert arg.startswith("--"), arg
        name, equals, value = arg[2:].partition("=")
        assert name in known, f"{kind} has no --{name}"
        assert name not in found, f"--{name} is given twice"
        convert = known[name]
        assert bool(equals) is (convert is not None), f"--{name} takes {'a' if convert else 'no'} value"
        found[name] = convert(value) if convert else True
    return found
