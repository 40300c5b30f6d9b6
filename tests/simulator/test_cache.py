"""The caches against brute force and against a consumer of their events."""

import random
from array import array
from collections import Counter, OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replica.simulator.cache import BlockPool
from replica.simulator.radix import RadixCache
from replica.simulator.records import Cleared, Removed, Stored
from replica.simulator.scheduler import Scheduler
from replica.simulator.sequence import Sequence
from replica.simulator.timing import time_model


def sequence(prompt: list[int], generate: int = 1, **extra: str) -> Sequence:
    return Sequence(len(prompt), generate, array("I", prompt), list(range(9000, 9000 + generate)), **extra)


def drain(scheduler: Scheduler) -> list[object]:
    events, now = list(scheduler.cache.take_events()), 0.0
    for _ in range(10_000):
        step = scheduler.advance(now)
        if step is not None:
            events += step.events
        if not scheduler.running and not scheduler.waiting:
            return events
        now = min(scheduler.next_at, now + 1e9)
    raise AssertionError("the scheduler does not come to an end")


def replay(events: list[object], live: Counter[bytes] | None = None) -> Counter[bytes]:
    """What a consumer that counts copies holds after the events."""
    live = Counter() if live is None else live
    for event in events:
        if isinstance(event, Cleared):
            live.clear()
        elif isinstance(event, Stored):
            live.update(event.hashes)
        elif isinstance(event, Removed):
            for key in event.hashes:
                assert live[key] > 0
                live[key] -= 1
    return +live


def truth(cache: BlockPool | RadixCache) -> Counter[bytes]:
    return Counter({item.prefix.key: item.copies for item in cache.live()})


def run(pool: BlockPool | RadixCache, *sequences: Sequence) -> list[object]:
    scheduler = Scheduler(pool, time_model("8b-h100"))
    for seq in sequences:
        scheduler.submit(seq, 0.0)
    return drain(scheduler)


def test_fully_cached_prompt_recomputes_its_last_block_and_announces_it_twice() -> None:
    pool = BlockPool(32, 4)
    prompt = list(range(12))
    run(pool, sequence(prompt))
    again = sequence(prompt)
    events = run(pool, again)
    assert again.cached == 8
    assert [len(event.hashes) for event in events if isinstance(event, Stored)] == [1]
    assert sorted(truth(pool).values()) == [1, 1, 2]


def test_generated_tokens_are_cached_except_the_last_one() -> None:
    pool = BlockPool(32, 4)
    first = sequence(list(range(6)), generate=7)
    run(pool, first)
    assert len(truth(pool)) == 3  # 6 + 7 tokens, the last never computed: 12
    follow = sequence([*range(6), *first.output, 1, 2])
    run(pool, follow)
    assert follow.cached == 12


def test_eviction_takes_tails_first_and_comes_before_the_store_that_needs_it() -> None:
    pool = BlockPool(4, 4)
    run(pool, sequence(list(range(15))))
    kept = [item.prefix for item in pool.live()]
    events = run(pool, sequence([77] * 7))  # two blocks: the unhashed one, then the tail
    removed = [event for event in events if isinstance(event, Removed)]
    assert [event.hashes for event in removed] == [[kept[-1].key]]
    assert events.index(removed[0]) < next(i for i, event in enumerate(events) if isinstance(event, Stored))


def test_salt_and_lora_separate_equal_prompts() -> None:
    pool = BlockPool(64, 4)
    prompt = list(range(13))
    run(pool, sequence(prompt))
    for extra in ({"salt": "a"}, {"lora": "b"}):
        other = sequence(prompt, **extra)
        run(pool, other)
        assert other.cached == 0


def test_reset_is_refused_while_blocks_are_in_use_and_announced_with_what_follows() -> None:
    pool = BlockPool(32, 4)
    seq = sequence(list(range(9)), generate=4)
    scheduler = Scheduler(pool, time_model("8b-h100"))
    scheduler.submit(seq, 0.0)
    scheduler.advance(0.0)
    assert not pool.reset()
    drain(scheduler)
    assert pool.reset()
    events = run(pool, sequence(list(range(9))))
    assert isinstance(events[0], Cleared)
    assert isinstance(events[1], Stored)


def test_block_id_prompts_need_no_tokens() -> None:
    pool = BlockPool(100, 512, record=False)
    first = Sequence(5 * 512 + 3, 600, keys=[1, 2, 3, 4, 5])
    run(pool, first)
    second = Sequence(4 * 512, 1, keys=[1, 2, 3, 9])
    assert run(pool, second) == []
    assert second.cached == 3 * 512


class ModelPool:
    """Sequential requests only: an LRU over hashes by brute force, to check what a request hits."""

    def __init__(self, blocks: int, size: int) -> None:
        self.size = size
        self.free: OrderedDict[int, tuple[int, ...] | None] = OrderedDict((i, None) for i in range(blocks))
        self.filled: dict[int, int] = {}
        """Block -> when it got its content: of several copies the oldest is hit."""

    def hits(self, tokens: list[int], prompt_len: int) -> int:
        size, found = self.size, []
        for end in range(size, prompt_len, size):
            copies = [b for b, held in self.free.items() if held == tuple(tokens[:end])]
            match = min(copies, key=self.filled.__getitem__, default=None)
            if match is None:
                break
            found.append(match)
        held = [(b, self.free.pop(b)) for b in found]
        for index in range(len(found), -(-len(tokens) // size)):
            block, _old = self.free.popitem(last=False)
            end = (index + 1) * size
            held.append((block, tuple(tokens[:end]) if end <= len(tokens) else None))
            self.filled[block] = max(self.filled.values(), default=0) + 1
        for block, content in reversed(held):
            self.free[block] = content
            if content is None:
                self.free.move_to_end(block, last=False)
        return len(found) * size


prompts = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=14), min_size=1, max_size=25)


@settings(max_examples=60)
@given(prompts)
def test_hits_equal_brute_force(batch: list[list[int]]) -> None:
    pool, model = BlockPool(8, 2), ModelPool(8, 2)
    for prompt in batch:
        seq = sequence(prompt, generate=2)
        run(pool, seq)
        assert seq.cached == model.hits([*prompt, seq.output[0]], len(prompt))


def test_a_pool_that_is_hit_again_and_again_forgets_the_old_order() -> None:
    source, pool, model, places = random.Random(3), BlockPool(48, 2), ModelPool(48, 2), 0
    for number in range(3000):
        prompt = [number // 100 * 8 + source.randrange(3)] * source.randint(1, 40)
        seq = sequence(prompt, generate=2)
        run(pool, seq)
        assert seq.cached == model.hits([*prompt, seq.output[0]], len(prompt))
        assert pool._idle_places == sum(len(freed) for _, freed in pool._idle) <= 4 * 48
        places = max(places, pool._idle_places)
    assert places > 3 * 48, "nothing was ever left out"


@settings(max_examples=60)
@given(prompts, st.integers(1, 4), st.sampled_from(["pool", "radix1", "radix2"]), st.integers(1, 6))
def test_events_replayed_are_the_truth(batch: list[list[int]], at_once: int, kind: str, generate: int) -> None:
    cache: BlockPool | RadixCache
    cache = BlockPool(14, 2) if kind == "pool" else RadixCache(28 if kind == "radix1" else 14, int(kind[-1]))
    scheduler = Scheduler(cache, time_model("8b-h100"), max_num_batched_tokens=5, max_num_seqs=4)
    live: Counter[bytes] = Counter()
    for start in range(0, len(batch), at_once):
        group = [sequence(prompt, generate) for prompt in batch[start : start + at_once]]
        for seq in group:
            scheduler.submit(seq, 0.0)
        live = replay(drain(scheduler), live)
        assert live == truth(cache)
        assert cache.used == 0
        assert all(seq.finished and seq.cached < seq.prompt_len for seq in group)


@settings(max_examples=40)
@given(prompts, st.data())
def test_aborts_leave_no_block_behind(batch: list[list[int]], data: st.DataObject) -> None:
    cache = data.draw(st.sampled_from([BlockPool(20, 2), RadixCache(20, 2), RadixCache(40, 1, prompt_only=True)]))
    scheduler = Scheduler(cache, time_model("8b-h100"), max_num_batched_tokens=5, max_num_seqs=4)
    now, group = 0.0, [sequence(prompt, 5) for prompt in batch]
    for seq in group:
        scheduler.submit(seq, now)
    for seq in group[::2]:
        for _ in range(data.draw(st.integers(0, 3))):
            scheduler.advance(now)
            now = min(scheduler.next_at, now + 100)
        scheduler.abort(seq)
    drain(scheduler)
    assert cache.used == 0
    assert scheduler.counters.finished_requests + scheduler.counters.aborted_requests == len(group)


def test_radix_begins_with_cleared_and_evicts_whole_leaves() -> None:
    cache = RadixCache(8, 2)
    events = run(cache, sequence(list(range(9))))
    assert isinstance(events[0], Cleared)
    events = run(cache, sequence([50 + i for i in range(13)]))
    removed = [event for event in events if isinstance(event, Removed)]
    assert [len(event.hashes) for event in removed] == [4]


def test_radix_holds_a_shared_prefix_once() -> None:
    cache = RadixCache(64, 2)
    run(cache, sequence([1, 2, 3, 4, 5, 6, 7]))
    branch = sequence([1, 2, 3, 4, 9, 9, 9])
    events = run(cache, branch)
    assert branch.cached == 4
    assert [len(event.hashes) for event in events if isinstance(event, Stored)] == [1]


@pytest.mark.parametrize("blocks", [0, -1])
def test_empty_caches_are_refused(blocks: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BlockPool(blocks, 16)
