"""The hit rate within reach where caches are too small: of routers that see every cache and every later request.

Requests are taken one at a time, in the order in which they were sent; a cache keeps the most recently used blocks, and
of one sequence the last blocks go first, as in vLLM. Two kinds of router are tried, and the best result counts:

* greedy: to the replica where it costs least, among equals to the one that has computed least so far:

      cost = tokens of this prompt that are not cached there + tokens of blocks that it would push out and that a later
             request asks for

* dealt: sessions are dealt to the first n replicas in turn and stay, for every n. (A greedy router fills one replica
  before it uses the next, which is seldom the best start.)

Neither plans ahead, so a better placement may exist; neither knows of latency.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadtest.types import PrefixChain


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that was sent. output: tokens of the answer, whose blocks nobody asks for again."""

    session: str
    chain: PrefixChain
    output: int


class Cache:
    """One replica's blocks, least recently used first."""

    def __init__(self, blocks: int) -> None:
        self.computed = 0
        self._blocks = blocks
        self._held: OrderedDict[int, None] = OrderedDict()

    def matched(self, request: Sent) -> int:
        """Tokens of the prompt that are held: whole leading blocks, and never all of it."""
        chain, held = request.chain, self._held
        blocks = next((place for place, key in enumerate(chain.keys) if key not in held), len(chain.keys))
        return min(blocks, (chain.total - 1) // chain.block) * chain.block

    def victims(self, request: Sent) -> list[int]:
        """What would be pushed out to make room for prompt and answer."""
        own, held = set(request.chain.keys), self._held
        room = self._blocks - len(held) - answer_blocks(request) - sum(key not in held for key in own)
        found: list[int] = []
        for key in held:
            if room + len(found) >= 0:
                break
            if key not in own:
                found.append(key)
        return found

    def enter(self, request: Sent, answer: Sequence[int]) -> None:
        """answer: keys of the answer's blocks."""
        held = self._held
        for key in self.victims(request):
            del held[key]
        for key in (*reversed(answer), *reversed(request.chain.keys)):
            held[key] = None
            held.move_to_end(key)


def answer_blocks(request: Sent) -> int:
    chain = request.chain
    return (chain.total + request.output - 1) // chain.block - len(chain.keys)


Choose = Callable[[int, Sent, Sequence[Cache]], int]
"""(number of the request, request, caches) -> place."""


def reachable_hit_rate(requests: Sequence[Sent], replicas: int, kv_blocks: int) -> float | None:
    """Share of all prompt tokens; None where there are no requests."""
    if not requests:
        return None
    choices = [_greedy(requests), *(_dealt(requests, count) for count in range(1, replicas + 1))]
    return max(_hit_rate(requests, choose, replicas, kv_blocks) for choose in choices)


def _hit_rate(requests: Sequence[Sent], choose: Choose, replicas: int, kv_blocks: int) -> float:
    caches = [Cache(kv_blocks) for _ in range(replicas)]
    reused = total = made = 0
    for number, request in enumerate(requests):
        cache = caches[choose(number, request, caches)]
        hit = cache.matched(request)
        blocks = answer_blocks(request)
        cache.enter(request, range(-made - blocks, -made))
        made += blocks
        cache.computed += request.chain.total - hit
        reused += hit
        total += request.chain.total
    return reused / total


def _greedy(requests: Sequence[Sent]) -> Choose:
    last_use = {key: number for number, request in enumerate(requests) for key in request.chain.keys}

    def choose(number: int, request: Sent, caches: Sequence[Cache]) -> int:
        def cost(place: int) -> tuple[int, int]:
            cache = caches[place]
            lost = sum(last_use.get(key, -1) > number for key in cache.victims(request))
            return request.chain.total - cache.matched(request) + lost * request.chain.block, cache.computed

        return min(range(len(caches)), key=cost)

    return choose


def _dealt(requests: Sequence[Sent], count: int) -> Choose:
    homes: dict[str, int] = {}
    for request in requests:
        homes.setdefault(request.session, len(homes) % count)
    return lambda number, request, caches: homes[request.session]
