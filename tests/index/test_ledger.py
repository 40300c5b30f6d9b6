"""CacheLedger against a brute-force model: the token prefixes a replica really holds."""

from __future__ import annotations

import itertools
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.blocks import chain, pack, root
from router.index.ledger import CacheLedger
from router.index.types import Cleared, Delta, Tier
from router.index.wire import AllBlocksCleared, Batch, BlockRemoved, BlockStored

B = 16
Tokens = tuple[int, ...]


def key_of(prefix: Tokens, *, salt: str = "", model: str = "m") -> int:
    return chain(root(model, block_size=B, salt=salt), pack(prefix), B)[-1]


def batch(*events: BlockStored | BlockRemoved | AllBlocksCleared) -> Batch:
    return Batch(0.0, list(events))


def stored(hashes: list[int], parent: int | None, tokens: Tokens, size: int = B, **kwargs: object) -> BlockStored:
    return BlockStored(list(hashes), parent, pack(tokens), size, **kwargs)  # type: ignore[arg-type]


class Mirror:
    """Applies deltas as an index would; checks that they are net."""

    def __init__(self) -> None:
        self.held: dict[Tier, set[int]] = {tier: set() for tier in Tier}

    def apply(self, delta: Delta) -> None:
        if delta.cleared:
            self.held = {tier: set() for tier in Tier}
        for tier in Tier:
            new, gone = delta.stored.get(tier, []), delta.dropped.get(tier, [])
            assert len(set(new)) == len(new)
            assert len(set(gone)) == len(gone)
            assert not set(new) & set(gone)
            assert not set(new) & self.held[tier]
            assert set(gone) <= self.held[tier]
            self.held[tier] = (self.held[tier] - set(gone)) | set(new)


class Engine:
    """A cache of pages, each one named by its whole prefix; copies counted (vLLM) or not (SGLang)."""

    def __init__(self, page: int, *, counts: bool, hash_bytes: bool = False) -> None:
        self.page, self.counts = page, counts
        self.copies: dict[tuple[Tier, Tokens], int] = {}
        self.names: dict[Tokens, int] = {}

    def name(self, prefix: Tokens) -> int:
        return self.names.setdefault(prefix, len(self.names) + 2**63 - 3)

    def has(self, prefix: Tokens) -> bool:
        return any(self.copies.get((tier, prefix)) for tier in Tier)

    def store(self, prompt: Tokens, first: int, count: int, tier: Tier) -> BlockStored | None:
        """Store pages first..first+count of the prompt; the page before the first must be held somewhere."""
        pages = [prompt[: end * self.page] for end in range(first + 1, first + count + 1)]
        pages = [prefix for prefix in pages if len(prefix) % self.page == 0 and len(prefix) > first * self.page]
        before = prompt[: first * self.page]
        if not pages or len(pages) != count or (first and not self.has(before)):
            return None
        for prefix in pages:
            known = self.copies.get((tier, prefix), 0)
            self.copies[tier, prefix] = known + 1 if self.counts else 1
        tokens = prompt[first * self.page : (first + count) * self.page]
        parent = self.name(before) if first else None
        return stored([self.name(prefix) for prefix in pages], parent, tokens, self.page, medium=tier)

    def remove(self, chance: random.Random, count: int) -> list[BlockRemoved]:
        events = []
        for _ in range(count):
            if not self.copies:
                break
            tier, prefix = chance.choice(list(self.copies))
            self.copies[tier, prefix] -= 1
            if not self.copies[tier, prefix]:
                del self.copies[tier, prefix]
            events.append(BlockRemoved([self.name(prefix)], tier))
        return events

    def truth(self, tier: Tier) -> set[int]:
        """Keys of the blocks of B tokens all of whose pages are held in `tier`."""
        keys = set()
        for holder, prefix in self.copies:
            if holder != tier:
                continue
            for end in range(B, len(prefix) + 1, B):
                if end <= len(prefix) - max(self.page, B):
                    continue
                inside = range(end - B + self.page, end + 1, self.page) if self.page < B else ()
                if all((tier, prefix[:at]) in self.copies for at in inside):
                    keys.add(key_of(prefix[:end]))
        return keys


PROMPTS = [tuple((len(fork) * 7 + part) % 50 for part in range(40)) + tuple(fork) * 40 for fork in ([1], [2, 3])]
PROMPTS += [PROMPTS[0][:70] + (9,) * 90, PROMPTS[0][:20] + (8,) * 140, (5,) * 160]
PROMPTS = [prompt + (4,) * (256 - len(prompt)) for prompt in PROMPTS]


@pytest.mark.parametrize(
    ("page", "counts"),
    [(16, True), (32, True), (8, True), (1, False), (4, False), (16, False), (64, False)],
    ids=lambda value: str(value),
)
@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    steps=st.lists(st.sampled_from(["store"] * 5 + ["remove"] * 4 + ["clear"]), max_size=40),
)
def test_holds_what_the_engine_holds(page: int, counts: bool, seed: int, steps: list[str]) -> None:
    chance = random.Random(seed)
    engine, mirror = Engine(page, counts=counts), Mirror()
    ledger = CacheLedger("m", B, counts_copies=counts)
    for step in steps:
        events: list[BlockStored | BlockRemoved | AllBlocksCleared] = []
        for _ in range(chance.randint(1, 3)):
            if step == "store":
                prompt = chance.choice(PROMPTS)
                last = len(prompt) // page
                first = chance.choice([0, 0, chance.randrange(last)])
                event = engine.store(
                    prompt, first, chance.randint(1, last - first), chance.choice([*Tier, Tier.DEVICE])
                )
                events += [event] if event else []
            elif step == "remove":
                events += engine.remove(chance, chance.randint(1, 20))
            elif chance.random() < 0.3:
                engine.copies.clear()
                events.append(AllBlocksCleared())
        mirror.apply(ledger.apply(batch(*events)))
        for tier in Tier:
            assert mirror.held[tier] == engine.truth(tier)
        snapshot = ledger.snapshot()
        assert snapshot.cleared
        assert {tier: set(keys) for tier, keys in snapshot.stored.items()} == {
            t: k for t, k in mirror.held.items() if k
        }
        assert ledger.live_blocks == sum(map(len, mirror.held.values()))
    assert (ledger.orphans, ledger.skipped, ledger.unknown_removals) == (0, 0, 0)
    engine.copies.clear()
    mirror.apply(ledger.apply(batch(AllBlocksCleared())))
    assert ledger.live_blocks == 0


@pytest.mark.parametrize("page", [1, 4])
def test_every_page_removed_leaves_no_page_behind(page: int) -> None:
    engine, ledger, chance = Engine(page, counts=False), CacheLedger("m", B, counts_copies=False), random.Random(1)
    for prompt in PROMPTS:
        event = engine.store(prompt, 0, 256 // page, Tier.DEVICE)
        assert event
        ledger.apply(batch(event))
    assert ledger.live_blocks == len({prompt[:end] for prompt in PROMPTS for end in range(B, 257, B)})
    ledger.apply(batch(*engine.remove(chance, 10_000)))
    assert ledger.live_blocks == 0
    assert [len(tree) for tree in ledger._trees.values()] == [0]


def test_lookahead_blocks_with_one_key_are_counted() -> None:
    ledger, tokens = CacheLedger("m", B), tuple(range(B))
    assert ledger.apply(batch(stored([1], None, tokens), stored([2], None, tokens))).stored == {
        Tier.DEVICE: [key_of(tokens)]
    }
    assert not ledger.apply(batch(BlockRemoved([1])))
    assert ledger.apply(batch(BlockRemoved([2]))).dropped == {Tier.DEVICE: [key_of(tokens)]}


def test_a_batch_that_stores_and_removes_is_no_change() -> None:
    ledger = CacheLedger("m", B)
    assert not ledger.apply(batch(stored([1], None, tuple(range(B))), BlockRemoved([1])))


def test_groups_are_apart_and_only_full_attention_is_indexed() -> None:
    ledger, tokens = CacheLedger("m", B), tuple(range(B))
    for group, kind in enumerate(["sliding_window", "mamba", "chunked_local_attention", "unknown"]):
        assert not ledger.apply(batch(stored([1], None, tokens, group=group, spec_kind=kind)))
    assert ledger.skipped == 4
    assert ledger.apply(batch(stored([1], None, tokens, group=9, spec_kind="mla_attention")))
    assert not ledger.apply(batch(BlockRemoved([1], group=0)))
    assert ledger.apply(batch(BlockRemoved([1], group=9))).dropped


def test_placeholders_are_copies_of_known_blocks_in_another_tier() -> None:
    ledger, tokens = CacheLedger("m", B), tuple(range(B))
    assert not ledger.apply(batch(stored([1], None, (), 0, medium=Tier.HOST)))
    assert ledger.skipped == 1
    ledger.apply(batch(stored([1], None, tokens)))
    assert ledger.apply(batch(stored([1], None, (), 0, medium=Tier.HOST))).stored == {Tier.HOST: [key_of(tokens)]}
    assert ledger.apply(batch(BlockRemoved([1]))).dropped == {Tier.DEVICE: [key_of(tokens)]}
    assert ledger.apply(batch(stored([2], 1, tuple(range(16, 32))))).stored == {
        Tier.DEVICE: [key_of(tuple(range(32)))]
    }, "a parent in a lower tier is a parent"
    assert ledger.apply(batch(BlockRemoved([1], Tier.HOST))).dropped == {Tier.HOST: [key_of(tokens)]}


def test_masked_blocks_and_orphans_are_skipped_and_counted() -> None:
    ledger = CacheLedger("m", B)
    assert not ledger.apply(batch(stored([2], None, tuple(range(32)))))
    assert ledger.skipped == 1
    assert not ledger.apply(batch(stored([2, 3], 1, tuple(range(32)))))
    assert ledger.orphans == 2
    ledger.apply(batch(BlockRemoved([77])))
    ledger.apply(batch(stored([1], None, tuple(range(16))), BlockRemoved([77])))
    assert ledger.unknown_removals == 2


@pytest.mark.parametrize("size", [4, 16, 32])
def test_a_hash_that_names_other_content_is_skipped_with_what_follows(size: int) -> None:
    ledger, tokens = CacheLedger("m", B), tuple(range(64))
    names = list(range(64 // size))
    keys = ledger.apply(batch(stored(names, None, tokens, size))).stored[Tier.DEVICE]
    others = [1000, names[0], *(2000 + name for name in names[2:])]
    held = ledger.apply(batch(stored(others, None, tokens[::-1], size))).stored.get(Tier.DEVICE, [])
    assert held == [key_of(tokens[::-1][:at]) for at in range(B, size + 1, B)], "the block before it"
    assert ledger.conflicts == len(names) - 1
    ledger.apply(batch(stored([names[0]], None, tokens[::-1][:size], size, medium=Tier.HOST)))
    assert ledger.conflicts == len(names), "in another tier it is the same name"
    ledger.apply(batch(BlockRemoved(names)))
    assert not set(keys) & set(ledger.snapshot().stored.get(Tier.DEVICE, [])), "what was skipped left no copy"


def test_salt_and_lora_make_other_roots() -> None:
    tokens = tuple(range(32))
    first, second = tokens[:16], tokens
    for extra, lora, salt in [
        ([["tenant-a"], None], None, "tenant-a"),
        ([["ad", "tenant-a"], ["ad"]], "ad", "tenant-a"),
        ([["ad"], ["ad"]], "ad", ""),
        ([["ad", "ad"], ["ad"]], "ad", "ad"),
    ]:
        ledger = CacheLedger("m", B)
        delta = ledger.apply(batch(stored([1, 2], None, tokens, extra_keys=extra, lora_name=lora)))
        model = lora or "m"
        assert delta.stored[Tier.DEVICE] == [
            key_of(first, salt=salt, model=model),
            key_of(second, salt=salt, model=model),
        ]
    ledger = CacheLedger("m", B, counts_copies=False)
    delta = ledger.apply(batch(stored([1], None, first, salt="t"), stored([2], 1, tokens[16:], salt="t")))
    assert delta.stored[Tier.DEVICE] == [key_of(first, salt="t"), key_of(second, salt="t")]


@pytest.mark.parametrize("size", [8, 16, 32])
def test_anything_else_never_matches_plain_text(size: int) -> None:
    tokens = tuple(range(64))
    plain = {key_of(tokens[:end]) for end in range(B, 65, B)}
    blocks = 64 // size
    extras = [None] * (blocks - 1) + [[["image", 3]]], [[b"digest"]] + [None] * (blocks - 1)
    seen = []
    for extra in extras:
        ledger = CacheLedger("m", B)
        held = set(
            ledger.apply(batch(stored(list(range(blocks)), None, tokens, size, extra_keys=extra))).stored[Tier.DEVICE]
        )
        assert len(held) == 4
        seen.append(len(held & plain))
    assert seen == [3 if size <= B else 2, 0]
    ledger = CacheLedger("m", B)
    held = set(ledger.apply(batch(stored([1], None, tokens[:16], lora_id=3))).stored[Tier.DEVICE])
    assert not held & plain, "an adapter that is not named"


def test_page_sizes_that_do_not_divide_are_refused_with_a_reason() -> None:
    ledger = CacheLedger("m", B)
    assert not ledger.apply(batch(stored([1], None, tuple(range(24)), 24)))
    assert ledger.refused is not None
    assert "24" in ledger.refused
    assert "set the router's block size" in ledger.refused
    ledger.clear(Cleared.LOST)
    assert ledger.refused is None


def test_blocks_beyond_the_bound_are_refused() -> None:
    ledger = CacheLedger("m", B, max_blocks=2)
    assert ledger.apply(batch(stored([1, 2], None, tuple(range(32)))))
    assert not ledger.apply(batch(stored([3], 2, tuple(range(16)))))
    assert ledger.refused_blocks == 1
    ledger.apply(batch(BlockRemoved([2])))
    assert ledger.apply(batch(stored([4], 1, tuple(range(16)))))


def test_bytes_hashes_are_as_good_as_ints() -> None:
    ledger = CacheLedger("m", B)
    names = [msgspec.msgpack.encode(number) * 8 for number in range(2)]
    event = BlockStored(list(names), None, pack(range(32)), B)
    assert len(ledger.apply(batch(event)).stored[Tier.DEVICE]) == 2
    assert ledger.apply(batch(BlockRemoved([names[1]]))).dropped[Tier.DEVICE] == [key_of(tuple(range(32)))]


def test_blocks_of_several_sizes_in_one_chain() -> None:
    """An offload tier that announces chunks of four blocks, named as the last of them is."""
    ledger, tokens = CacheLedger("m", B), tuple(range(64))
    ledger.apply(batch(stored([1, 2, 3, 4], None, tokens)))
    delta = ledger.apply(batch(stored([4], None, tokens, 64, medium=Tier.HOST)))
    keys = [key_of(tokens[:end]) for end in itertools.accumulate([16] * 4)]
    assert delta.stored == {Tier.HOST: keys}
    assert ledger.apply(batch(BlockRemoved([4], Tier.HOST))).dropped == {Tier.HOST: keys}
