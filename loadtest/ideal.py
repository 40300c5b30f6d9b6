"""The hit rate that the same requests could have reached: one cache, infinite, shared by the whole fleet.

Requests are taken in the order in which they were sent, each one's prompt blocks entering the cache at once. Only full
blocks count, and at least one token of a prompt is always computed (as in vLLM). Blocks of generated text are left
out: prompts are teacher-forced, so what the engine generated does not come back. An engine's own hit rate can exceed
this by a little where a recorded answer equals the generated one, or where its blocks are smaller.

Where the prompt is text, blocks are 64 characters of an approximate rendering and the ratio of characters is taken for
the ratio of tokens, weighted by the engine's `prompt_tokens`: good to about a point, since a template's own tokens and
where a token ends are unknown here. Hash traces know their blocks: exact, up to the template's tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

from loadtest.types import PrefixChain


class InfiniteCache:
    """All blocks ever seen. `reuse` answers for one prompt and enters it."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def reuse(self, chain: PrefixChain) -> float:
        """Share of the prompt, 0 to 1, that was there already."""
        seen = self._seen
        matched = 0
        for key in chain.keys:
            if key not in seen:
                break
            matched += 1
        seen.update(chain.keys[matched:])
        return min(matched, (chain.total - 1) // chain.block) * chain.block / chain.total


def ideal_hit_rate(requests: Iterable[tuple[PrefixChain, int | None]]) -> float | None:
    """Share of all prompt tokens. Each request: its chain and the engine's prompt_tokens (None: the chain's length).

    None where there are no requests.
    """
    cache = InfiniteCache()
    reused = total = 0.0
    for chain, prompt_tokens in requests:
        weight = float(chain.total if prompt_tokens is None else prompt_tokens)
        reused += cache.reuse(chain) * weight
        total += weight
    return reused / total if total else None
