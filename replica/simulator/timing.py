"""How long one engine step takes. Numbers and formula: reference/engine-protocol.md, G.2 and G.3.

    step = overhead + max(compute, memory)
    compute = (prefill tokens + attention pairs / attention_equal + decoding sequences) / prefill_rate
    memory  = weights_s + context tokens of the decoding sequences * kv_s_per_token

`attention_equal` is the context length at which attention costs as much as the rest of the model for one token;
a pair is (new token, token it attends to).
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class TimeModel:
    """Seconds; `scale` multiplies every step (0.1: ten times faster than the hardware named)."""

    overhead_s: float
    prefill_rate: float
    weights_s: float
    kv_s_per_token: float
    attention_equal: float
    scale: float = 1.0

    def step_seconds(self, prefill: int, pairs: float, decodes: int, context: int) -> float:
        """One step with `prefill` new prompt tokens and `decodes` sequences that decode over `context` tokens."""
        compute = (prefill + pairs / self.attention_equal + decodes) / self.prefill_rate
        memory = self.weights_s + context * self.kv_s_per_token
        return self.scale * (self.overhead_s + max(compute, memory))

    def scaled(self, scale: float) -> TimeModel:
        return replace(self, scale=self.scale * scale)


TIME_MODELS = {
    "8b-h100": TimeModel(1.2e-3, 28_000, 5.3e-3, 4.35e-8, 30_000),
    "8b-h200": TimeModel(1.3e-3, 28_000, 3.7e-3, 3.03e-8, 30_000),
    "32b-2xh100": TimeModel(2.5e-3, 13_500, 10.5e-3, 5.3e-8, 50_000),
    "70b-4xh100": TimeModel(4.0e-3, 12_500, 11.0e-3, 3.8e-8, 53_000),
    "70b-fp8-2xh100": TimeModel(3.6e-3, 12_300, 15.0e-3, 1.58e-7, 53_000),
    "instant": TimeModel(0.0, 1e12, 0.0, 0.0, 1e12),
}


def time_model(name: str, scale: float = 1.0) -> TimeModel:
    """A preset by name. Raises ValueError that lists the known names."""
    if name not in TIME_MODELS:
        raise ValueError(f"time model {name!r} is unknown; one of: {', '.join(TIME_MODELS)}")
    if scale < 0:
        raise ValueError(f"time scale must not be negative, got {scale}")
    return TIME_MODELS[name].scaled(scale)
