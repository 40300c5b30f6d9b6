"""Models of other routers' placement, for replays: their published formulas over the same fleet, and no code of theirs.

| name | models | from |
|---|---|---|
| sglang-model | sglang-router 0.3 `cache_aware`, thresholds 0.3, 64, 1.5 (vllm-router's is a fork) | source |
| sglang-tuned-model | the same with `balance_abs_threshold` 4 and `balance_rel_threshold` 1.1 | source |
| production-stack-model | vLLM production-stack `prefixaware` | source |
| llm-d-model | llm-d scorers: prefix 2, queue 1, KV use 1, with its precise prefix index | documentation |
| dynamo-model | Dynamo `kv`: overlap_weight 1 x prefill blocks + decode blocks | source |
| lmetric-model | LMetric: new prefill tokens x batch size | paper |

Each is given more than the real one has: loads without delay and, where it keeps an index, the engines' true caches;
no cost of tokenizing, no counter that leaks. What the models leave out: eviction from sglang-router's tree (beyond 67 M
characters a worker). Where equal scores are broken at random, a seeded generator does it.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from loadtest.replay.router import ChainAsk
from router.fleet.replica import Replica
from router.routing.types import Ask, Candidate, Decision, Policy


def _decide(best: Candidate, candidates: Sequence[Candidate], name: str) -> Decision:
    return Decision([best, *(candidate for candidate in candidates if candidate is not best)], name)


def _chain(ask: Ask) -> Sequence[int]:
    return ask.chain if isinstance(ask, ChainAsk) else ()


class SglangModel:
    """If (most - least running) > `balance_abs` and most > `balance_rel` x least: the least loaded. Else the worker
    last seen with the longest prefix in a tree of past prompts, if that is more than `threshold` of the prompt; else
    the worker whose tree is smallest."""

    uses_cache = True

    def __init__(
        self, name: str = "sglang-model", threshold: float = 0.3, balance_abs: int = 64, balance_rel: float = 1.5
    ) -> None:
        self.name = name
        self._threshold = threshold
        self._abs = balance_abs
        self._rel = balance_rel
        self._tree: dict[int, dict[str, None]] = defaultdict(dict)
        """Block -> workers sent a prompt with it, the last one last."""
        self._sizes: Counter[str] = Counter()

    def select(self, ask: Ask, candidates: Sequence[Candidate]) -> Decision:
        """Chooses, and enters the prompt into the chosen worker's tree."""
        chain = _chain(ask)
        loads = [candidate.replica.load.sequences for candidate in candidates]
        most, least = max(loads), min(loads)
        if most - least > self._abs and most > self._rel * least:
            best = candidates[loads.index(least)]
        else:
            best = self._by_tree(chain, candidates)
        worker = best.replica.id
        for block in chain:
            workers = self._tree[block]
            self._sizes[worker] += worker not in workers
            workers.pop(worker, None)
            workers[worker] = None
        return _decide(best, candidates, self.name)

    def _by_tree(self, chain: Sequence[int], candidates: Sequence[Candidate]) -> Candidate:
        depth = 0
        while depth < len(chain) and chain[depth] in self._tree:
            depth += 1
        if depth > self._threshold * len(chain):
            holder = next(reversed(self._tree[chain[depth - 1]]))
            return next(candidate for candidate in candidates if candidate.replica.id == holder)
        return min(candidates, key=lambda candidate: self._sizes[candidate.replica.id])

    def first_byte(self, ask: Ask, replica: Replica, seconds: float) -> None:
        """Nothing is learnt from answers."""

    def ended(self, ask: Ask, replica: Replica, chain: Sequence[int], seconds: float) -> None:
        """Nothing is learnt from answers."""


class ProductionStackModel:
    """A random one of the workers that were sent the longest prefix of this prompt, in pieces of 128 characters (32
    tokens); no load, no eviction. A prompt that nobody was sent the beginning of: any worker."""

    name = "production-stack-model"
    uses_cache = True

    def __init__(self) -> None:
        self._random = random.Random(0)
        self._trie: dict[int, set[str]] = defaultdict(set)

    def select(self, ask: Ask, candidates: Sequence[Candidate]) -> Decision:
        """Chooses, and enters the prompt into the trie."""
        chain = _chain(ask)
        possible = {candidate.replica.id for candidate in candidates}
        for block in chain:
            left = possible & self._trie[block] if block in self._trie else set()
            if not left:
                break
            possible = left
        best = self._random.choice([candidate for candidate in candidates if candidate.replica.id in possible])
        for block in chain:
            self._trie[block].add(best.replica.id)
        return _decide(best, candidates, self.name)

    def first_byte(self, ask: Ask, replica: Replica, seconds: float) -> None:
        """Nothing is learnt from answers."""

    def ended(self, ask: Ask, replica: Replica, chain: Sequence[int], seconds: float) -> None:
        """Nothing is learnt from answers."""


class LlmdModel:
    """Highest of 2 x matched share of the prompt + (most waiting - waiting) / (most - least) + share of the KV cache
    that no running sequence holds."""

    name = "llm-d-model"
    uses_cache = True

    def __init__(self, prefix: float = 2.0, queue: float = 1.0, kv: float = 1.0) -> None:
        self._weights = prefix, queue, kv
        self._random = random.Random(0)
        self._waiting: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()

    def select(self, ask: Ask, candidates: Sequence[Candidate]) -> Decision:
        """Chooses, and counts the request as waiting there."""
        prefix, queue, kv = self._weights
        waiting = [self._waiting[candidate.replica.id] for candidate in candidates]
        most, spread = max(waiting), max(waiting) - min(waiting)
        scores = []
        for candidate, its in zip(candidates, waiting, strict=True):
            matched = candidate.cached(ask) / max(1, ask.prompt_tokens)
            free = (most - its) / spread if spread else 1.0
            used = self._tokens[candidate.replica.id] / max(1, candidate.replica.kv_tokens)
            scores.append(prefix * matched + queue * free + kv * (1.0 - min(1.0, used)))
        top = max(scores)
        best = candidates[self._random.choice([place for place, score in enumerate(scores) if score == top])]
        self._waiting[best.replica.id] += 1
        self._tokens[best.replica.id] += ask.prompt_tokens
        return _decide(best, candidates, self.name)

    def first_byte(self, ask: Ask, replica: Replica, seconds: float) -> None:
        """It no longer waits."""
        self._waiting[replica.id] -= 1

    def ended(self, ask: Ask, replica: Replica, chain: Sequence[int], seconds: float) -> None:
        """It no longer holds KV blocks."""
        self._tokens[replica.id] -= ask.prompt_tokens


class DynamoModel:
    """Lowest of overlap_weight x (queued and own uncached tokens) in blocks + distinct blocks of the sequences that
    would run there; temperature 0."""

    name = "dynamo-model"
    uses_cache = True

    def __init__(self, overlap_weight: float = 1.0) -> None:
        self._overlap = overlap_weight
        self._random = random.Random(0)
        self._prefill: Counter[str] = Counter()
        self._active: dict[str, Counter[int]] = defaultdict(Counter)
        self._sent: dict[int, int] = {}
        """id() of an ask under way -> the uncached tokens it was counted with."""

    def select(self, ask: Ask, candidates: Sequence[Candidate]) -> Decision:
        """Chooses, and counts the request's blocks there."""
        chain = _chain(ask)
        block = ask.block if isinstance(ask, ChainAsk) else 1
        costs = []
        for candidate in candidates:
            worker = candidate.replica.id
            active = self._active[worker]
            uncached = ask.prompt_tokens - candidate.cached(ask)
            new = sum(key not in active for key in chain)
            costs.append(self._overlap * (self._prefill[worker] + uncached) / block + len(active) + new)
        least = min(costs)
        best = candidates[self._random.choice([place for place, cost in enumerate(costs) if cost == least])]
        uncached = ask.prompt_tokens - best.cached(ask)
        self._sent[id(ask)] = uncached
        self._prefill[best.replica.id] += uncached
        self._active[best.replica.id].update(chain)
        return _decide(best, candidates, self.name)

    def first_byte(self, ask: Ask, replica: Replica, seconds: float) -> None:
        """Its prompt is computed."""
        self._prefill[replica.id] -= self._sent.pop(id(ask))

    def ended(self, ask: Ask, replica: Replica, chain: Sequence[int], seconds: float) -> None:
        """Its blocks are in use no longer."""
        active = self._active[replica.id]
        for key in _chain(ask):
            active[key] -= 1
            if not active[key]:
                del active[key]


class LMetricModel:
    """Lowest of (queued and own uncached tokens) x (running sequences + 1)."""

    name = "lmetric-model"
    uses_cache = True

    def __init__(self) -> None:
        self._queued: Counter[str] = Counter()
        self._sent: dict[int, int] = {}

    def select(self, ask: Ask, candidates: Sequence[Candidate]) -> Decision:
        """Chooses, and counts the request's uncached tokens there."""

        def cost(candidate: Candidate) -> tuple[int, int]:
            replica = candidate.replica
            tokens = self._queued[replica.id] + ask.prompt_tokens - candidate.cached(ask)
            return tokens * (replica.load.sequences + 1), replica.load.turn

        best = min(candidates, key=cost)
        uncached = ask.prompt_tokens - best.cached(ask)
        self._sent[id(ask)] = uncached
        self._queued[best.replica.id] += uncached
        return _decide(best, candidates, self.name)

    def first_byte(self, ask: Ask, replica: Replica, seconds: float) -> None:
        """Its prompt is computed."""
        self._queued[replica.id] -= self._sent.pop(id(ask))

    def ended(self, ask: Ask, replica: Replica, chain: Sequence[int], seconds: float) -> None:
        """Nothing more: the router's own load counts sequences."""


PEERS: dict[str, Callable[[], Policy]] = {
    "sglang-model": SglangModel,
    "sglang-tuned-model": lambda: SglangModel("sglang-tuned-model", balance_abs=4, balance_rel=1.1),
    "production-stack-model": ProductionStackModel,
    "llm-d-model": LlmdModel,
    "dynamo-model": DynamoModel,
    "lmetric-model": LMetricModel,
}
