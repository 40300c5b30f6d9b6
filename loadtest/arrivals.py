"""When sessions start in an open loop."""

from __future__ import annotations

import random
from collections.abc import Iterator


def arrival_times(rate: float, burstiness: float, seed: int) -> Iterator[float]:
    """Start times in seconds, without end; gaps are Gamma(burstiness, 1 / (rate * burstiness)), mean 1 / rate.

    burstiness 1 is a Poisson process, below 1 burstier, above 1 more even (the meaning it has in `vllm bench serve`).
    Raises ValueError unless both are above 0.
    """
    if rate <= 0:
        raise ValueError(f"request rate must be above 0 sessions a second, got {rate}")
    if burstiness <= 0:
        raise ValueError(f"burstiness must be above 0, got {burstiness}")
    source = random.Random(seed)
    now = 0.0
    while True:
        now += source.gammavariate(burstiness, 1.0 / (rate * burstiness))
        yield now
