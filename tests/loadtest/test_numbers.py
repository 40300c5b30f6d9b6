"""Golden checks of the arithmetic: percentiles, sums with unknowns, ideal hit rate, stickiness, hotspot, counters."""

from __future__ import annotations

from array import array
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.engines import EngineCounters, parse
from loadtest.ideal import InfiniteCache, ideal_hit_rate
from loadtest.prompts import ChatPrompt, HashPrompt, text_chain
from loadtest.record import RequestRecord
from loadtest.stats import Distribution
from loadtest.summary import Tokens, meets, stickiness, summarize
from loadtest.types import PrefixChain


def test_percentiles_interpolate_between_ranks() -> None:
    values = Distribution.of([4.0, 1.0, None, 3.0, 2.0])
    assert values is not None
    assert (values.mean, values.p50, values.percentile(0), values.percentile(100)) == (2.5, 2.5, 1.0, 4.0)
    assert values.p90 == pytest.approx(3.7)
    assert values.p99 == pytest.approx(3.97)
    assert values.std == pytest.approx(1.118033988749895)
    with pytest.raises(ValueError, match="between 0 and 100"):
        values.percentile(101)
    assert Distribution.of([None]) is None


@settings(max_examples=60)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40))
def test_percentiles_are_ordered_and_within(values: list[float]) -> None:
    distribution = Distribution.of(values)
    assert distribution is not None
    marks = [distribution.percentile(percent) for percent in (0, 10, 50, 90, 99, 100)]
    assert all(low <= high + 1e-6 for low, high in pairwise(marks))
    assert marks[0] == min(values)
    assert marks[-1] == max(values)


def answered(session: str, step: int, **fields: object) -> RequestRecord:
    record = RequestRecord(session, step, start_s=0.0)
    for name, value in fields.items():
        setattr(record, name, value)
    return record


def test_unknowns_stay_unknown() -> None:
    nothing = Tokens.of([answered("a", 1), answered("b", 1, prompt_tokens=10)])
    assert (nothing.prompt, nothing.cached, nothing.prefill, nothing.hit_rate, nothing.counted) == (
        10,
        None,
        None,
        None,
        0,
    )
    some = Tokens.of(
        [answered("a", 1, prompt_tokens=10, cached_tokens=8), answered("b", 1, prompt_tokens=30), answered("c", 1)]
    )
    assert (some.prompt, some.cached, some.prefill, some.hit_rate, some.counted) == (40, 8, 2, 0.8, 1)


def test_an_empty_run_is_all_unknown() -> None:
    summary = summarize([], 1.0)
    assert (summary.requests, summary.errors, summary.fleet_size) == (0, 0, 0)
    assert (summary.hit_rate, summary.stickiness, summary.hotspot, summary.prediction) == (None,) * 4


def test_stickiness_skips_unanswered_steps() -> None:
    records = [answered("s", step, replica=name) for step, name in ((1, "a"), (2, "a"), (4, "b"), (5, "b"))]
    assert stickiness([*records, answered("t", 1, replica="b"), answered("u", 1), answered("u", 2)]) == pytest.approx(
        2 / 3
    )
    assert stickiness([answered("t", 1, replica="b")]) is None


def test_hotspot_counts_prefill_not_requests() -> None:
    records = [
        answered("a", 1, replica="x", prompt_tokens=100, cached_tokens=0),
        answered("b", 1, replica="y", prompt_tokens=100, cached_tokens=80),
        answered("c", 1, replica="y", prompt_tokens=100, cached_tokens=80),
    ]
    assert summarize(records, 1.0).hotspot == pytest.approx(2 * 100 / 140)
    assert summarize(records, 1.0, replicas=8).hotspot == pytest.approx(8 * 100 / 140)
    without = [answered(r.session, 1, replica=r.replica) for r in records]
    assert summarize(without, 1.0).hotspot == pytest.approx(2 * 2 / 3)


def test_goodput_objectives() -> None:
    record = answered("a", 1, ttft_s=0.1, decode_s=0.2, e2el_s=0.4, output_tokens=5)
    assert record.tpot_s == pytest.approx(0.05)
    assert meets(record, {"ttft": 0.1, "tpot": 0.06, "e2el": 0.4})
    assert not meets(record, {"tpot": 0.04})
    assert meets(answered("a", 1, ttft_s=0.1, output_tokens=1), {"ttft": 0.2, "tpot": 0.01})
    assert not meets(answered("a", 1, e2el_s=0.1), {"ttft": 9.0})


def test_ideal_of_the_design_example() -> None:
    """200 tokens + 300 a step: 4,000 prompt tokens, of which 1,400 must be computed (blocks of 100 divide evenly)."""
    blocks = [PrefixChain(range(length // 100), 100, length, exact=True) for length in (200, 500, 800, 1100, 1400)]
    assert ideal_hit_rate((chain, None) for chain in blocks) == pytest.approx(2600 / 4000)


def test_ideal_counts_full_blocks_and_computes_the_last_token() -> None:
    cache = InfiniteCache()
    assert cache.reuse(PrefixChain([1, 2], 16, 40, exact=True)) == 0.0
    assert cache.reuse(PrefixChain([1, 2], 16, 40, exact=True)) == pytest.approx(32 / 40)
    assert cache.reuse(PrefixChain([1, 2], 16, 32, exact=True)) == pytest.approx(16 / 32)
    assert cache.reuse(PrefixChain([1, 9], 16, 33, exact=True)) == pytest.approx(16 / 33)
    assert cache.reuse(PrefixChain([], 16, 5, exact=True)) == 0.0
    assert ideal_hit_rate([]) is None


def test_ideal_is_weighted_by_the_engine_s_tokens() -> None:
    same = PrefixChain([1], 16, 20, exact=True)
    assert ideal_hit_rate([(same, 100), (same, 300)]) == pytest.approx(0.8 * 300 / 400)


@settings(max_examples=60)
@given(st.text(max_size=300), st.text(max_size=200), st.text(max_size=200))
def test_text_chains_share_exactly_the_common_prefix(common: str, left: str, right: str) -> None:
    a, b = text_chain(common + left), text_chain(common + right)
    shared = sum(x == y for x, y in zip(a.keys, b.keys, strict=False))
    prefix = 0
    for x, y in zip(common + left, common + right, strict=False):
        if x != y:
            break
        prefix += 1
    assert shared == prefix // a.block
    assert len(a.keys) * a.block <= a.total


def test_chat_chain_starts_with_the_tools() -> None:
    messages = [{"role": "user", "content": "x" * 300}]
    plain, tooled = ChatPrompt(messages, 1), ChatPrompt(messages, 1, [{"name": "f"}])
    assert plain.chain().keys[0] != tooled.chain().keys[0]
    assert tooled.body()["tools"] == [{"name": "f"}]
    assert "tools" not in plain.body()


def test_hash_prompt_lengths() -> None:
    prompt = HashPrompt(array("q", [7, 8, 9]), 40, 16, seed=0, vocabulary=1000)
    ids = prompt.body()["prompt"]
    assert len(ids) == 40
    assert all(256 <= token < 1000 for token in ids)
    assert list(prompt.chain().keys) == [7, 8]
    longer = HashPrompt(array("q", [7, 8, 9, 10]), 64, 16, seed=0, vocabulary=1000).body()["prompt"]
    assert longer[:40] == ids
    words = HashPrompt(array("q", [7, 8, 9]), 40, 16, seed=0).body()["prompt"]
    assert len(words.split()) == 40


def test_engine_counters_of_both_engines() -> None:
    sglang = parse(
        "u",
        '# TYPE sglang:prompt_tokens_total counter\nsglang:prompt_tokens_total{tp="0"} 100\n'
        "# TYPE sglang:cached_tokens_total counter\n"
        'sglang:cached_tokens_total{cache_source="device"} 30\nsglang:cached_tokens_total{cache_source="host"} 20\n',
    )
    assert (sglang.queried, sglang.hit, sglang.computed, sglang.hit_rate) == (100, 50, 50, 0.5)
    bare = parse("u", "# TYPE x gauge\nx 1\n")
    assert (bare.queried, bare.hit, bare.computed, bare.hit_rate) == (None, None, None, None)


def test_engine_counters_across_a_restart() -> None:
    before = [EngineCounters("u", 1000, 500), EngineCounters("v", 10, 0)]
    after = [EngineCounters("u", 100, 80), EngineCounters("v", 110, 50)]
    fleet = EngineCounters.difference(before, after)
    assert [(engine.queried, engine.hit) for engine in fleet.engines] == [(100, 80), (100, 50)]
    assert fleet.hit_rate == pytest.approx(130 / 200)
    assert fleet.hotspot == pytest.approx(2 * 50 / 70)
    unknown = EngineCounters.difference(before, [after[0], EngineCounters("v", None, None)])
    assert (unknown.hit_rate, unknown.computed, unknown.hotspot) == (None, None, None)
