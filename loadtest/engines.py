"""The engines' own counters, read before and after a run.

| engine | prompt tokens looked up | found |
|---|---|---|
| vLLM (`vllm:gpu_prefix_cache_*` to 0.10) | `vllm:prefix_cache_queries_total` | `vllm:prefix_cache_hits_total` |
| SGLang | `sglang:prompt_tokens_total` | `sglang:cached_tokens_total{cache_source}` |

Both count tokens, and both count every client's traffic, not this run's alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

NAMES = (
    ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"),
    ("vllm:gpu_prefix_cache_queries_total", "vllm:gpu_prefix_cache_hits_total"),
    ("sglang:prompt_tokens_total", "sglang:cached_tokens_total"),
)
TIMEOUT = aiohttp.ClientTimeout(total=10)


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """Prompt tokens an engine looked up and found in its cache; None where it has no such counter."""

    url: str
    queried: int | None
    hit: int | None

    @property
    def computed(self) -> int | None:
        return None if self.queried is None or self.hit is None else self.queried - self.hit

    @property
    def hit_rate(self) -> float | None:
        return self.hit / self.queried if self.queried and self.hit is not None else None

    @staticmethod
    def difference(before: Sequence[EngineCounters], after: Sequence[EngineCounters]) -> FleetCounters:
        """What a run added. A counter that went backwards (the engine was restarted) counts from 0."""
        return FleetCounters(
            [
                EngineCounters(new.url, grown(old.queried, new.queried), grown(old.hit, new.hit))
                for old, new in zip(before, after, strict=True)
            ]
        )


@dataclass(frozen=True, slots=True)
class FleetCounters:
    """The counters of all engines of a run. Sums are None unless every engine has them."""

    engines: Sequence[EngineCounters]

    @property
    def computed(self) -> int | None:
        values = [engine.computed for engine in self.engines]
        known = [value for value in values if value is not None]
        return sum(known) if known and len(known) == len(values) else None

    @property
    def hit_rate(self) -> float | None:
        computed = self.computed
        queried = sum(engine.queried or 0 for engine in self.engines)
        return None if computed is None or not queried else (queried - computed) / queried

    @property
    def hotspot(self) -> float | None:
        """Engines x the largest share of the computed prefill: 1 is even."""
        computed = self.computed
        return None if not computed else len(self.engines) * max(e.computed or 0 for e in self.engines) / computed


def grown(old: int | None, new: int | None) -> int | None:
    if new is None:
        return None
    return new - old if old is not None and new >= old else new


def parse(url: str, text: str) -> EngineCounters:
    """The counters of one Prometheus text page; summed over labels (DP ranks, models, cache tiers)."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    for queries, hits in NAMES:
        if queries in sums:
            # SGLang writes the labelled counter only once something was found: queries alone mean no hits yet, but
            # only if its cache report is on, which the page does not say.
            return EngineCounters(url, int(sums[queries]), int(sums[hits]) if hits in sums else None)
    return EngineCounters(url, None, None)


async def scrape_all(urls: Sequence[str]) -> list[EngineCounters]:
    """All engines' counters at once. Raises ConnectionError naming the address that cannot be read."""
    if not urls:
        return []
    async with aiohttp.ClientSession(timeout=TIMEOUT) as http:
        return list(await asyncio.gather(*(_scrape(http, url) for url in urls)))


async def _scrape(http: aiohttp.ClientSession, url: str) -> EngineCounters:
    address = url if url.rstrip("/").endswith("/metrics") else url.rstrip("/") + "/metrics"
    try:
        async with http.get(address) as response:
            text = await response.text()
            if response.status != 200:
                raise ConnectionError(f"--engine-metrics-url {address} answered {response.status}")
            return parse(url, text)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise ConnectionError(
            f"--engine-metrics-url {address} cannot be read: {error or type(error).__name__}"
        ) from None
