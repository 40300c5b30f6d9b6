"""The parts without I/O: records, merged deltas, the walk over bitmaps, error kinds."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions as redis_errors

from router.index.redis.direct import Walk
from router.index.redis.health import Health, LayoutError, Trouble, reason
from router.index.redis.layout import Layout
from router.index.redis.leases import ReplicaLoad, ReplicaMeta, decode_load, decode_meta, encode
from router.index.redis.pending import Pending
from router.index.redis.records import DELTA, RecordError, delta_records, head_of, read_delta
from router.index.types import Cleared, Delta, Match, Tier

HASHES = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 12))
SIDES = st.dictionaries(st.sampled_from(list(Tier)), st.lists(HASHES, unique=True, max_size=20), max_size=3)


@st.composite
def deltas(draw: st.DrawFn) -> Delta:
    stored, dropped = draw(SIDES), draw(SIDES)
    for tier, keys in dropped.items():
        dropped[tier] = [key for key in keys if key not in stored.get(tier, ())]
    return Delta(draw(st.booleans()), stored, dropped)


def run(deltas: list[Delta], state: dict[Tier, set[int]] | None = None) -> dict[Tier, set[int]]:
    state = {tier: set(keys) for tier, keys in (state or {}).items()}
    for delta in deltas:
        if delta.cleared:
            state = {}
        for tier, keys in delta.dropped.items():
            state.setdefault(tier, set()).difference_update(keys)
        for tier, keys in delta.stored.items():
            state.setdefault(tier, set()).update(keys)
    return {tier: keys for tier, keys in state.items() if keys}


@given(deltas(), st.integers(0, 4095), st.integers(1, 7))
def test_records_say_the_same_as_the_delta(delta: Delta, slot: int, limit: int) -> None:
    records = list(delta_records(delta, slot, limit))
    assert all(head_of(record) == (DELTA, slot) for record in records)
    parts = [read_delta(record) for record in records]
    assert all(sum(map(len, [*part.stored.values(), *part.dropped.values()])) <= limit for part in parts)
    assert not any(part.stored and part.dropped for part in parts)
    before = {tier: set(range(12)) for tier in Tier}
    delta.cleared = Cleared.NO
    assert run(parts, before) == run([delta], before)


@given(st.binary(max_size=40))
def test_a_damaged_record_is_an_error_or_a_delta(record: bytes) -> None:
    try:
        head_of(record)
        read_delta(record)
    except RecordError:
        pass


@given(st.lists(deltas(), max_size=8))
def test_pending_deltas_have_the_net_effect(parts: list[Delta]) -> None:
    pending = Pending()
    for part in parts:
        pending.add(part)
    size = pending.size
    merged = pending.take()
    assert size == sum(map(len, [*merged.stored.values(), *merged.dropped.values()]))
    assert not pending.size
    before = {tier: set(range(12)) for tier in Tier}
    assert run([merged], before) == run(parts, before)


@given(st.lists(st.tuples(*[st.integers(0, 2**10 - 1)] * 3), max_size=12), st.integers(0, 2**10 - 1), st.integers(1, 5))
def test_the_walk_counts_leading_blocks(bitmaps: list[tuple[int, int, int]], mask: int, step: int) -> None:
    walk = Walk(mask)
    for at in range(0, len(bitmaps), step):
        part = bitmaps[at : at + step]
        walk.feed([[row[tier].to_bytes(2, "little") if row[tier] else None for row in part] for tier in range(3)])
        if not walk.holders:
            break
    expected = {}
    for slot in range(10):
        depth = lower = 0
        for device, host, disk in bitmaps if mask >> slot & 1 else ():
            if not (device | host | disk) >> slot & 1:
                break
            depth += 1
            lower += not device >> slot & 1
        if depth:
            expected[slot] = Match(depth, lower)
    assert walk.matches() == expected


def test_leases_of_other_versions_are_understood() -> None:
    meta, load = ReplicaMeta("http://a:1", model="llama"), ReplicaLoad(running=3, kv_use=0.5)
    assert decode_meta(encode(meta)) == meta
    assert decode_load(encode(load)) == load
    assert decode_load(b'{"running": 2, "novelty": [1]}') == ReplicaLoad(running=2)
    assert decode_meta(b"{") is None
    assert decode_load(b'{"running": "x"}') is None
    assert encode(ReplicaLoad()) != b"", "an empty lease would read as none"


def test_pools_have_prefixes_of_one_hash_tag() -> None:
    one, two = Layout("llama"), Layout("llama/tenant-b")
    assert one.prefix != two.prefix
    keys = [one.head, one.stream, one.reverse(Tier.HOST, 7), *one.blocks(Tier.DEVICE, [1])]
    assert all(key.startswith(one.prefix) for key in keys)
    assert one.blocks(Tier.DISK, [1, 2**64 - 1]) == [
        one.prefix + b"2\x01\0\0\0\0\0\0\0",
        one.prefix + b"2" + b"\xff" * 8,
    ]
    with pytest.raises(ValueError, match="pool"):
        Layout("")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (redis_errors.AuthenticationError("WRONGPASS invalid"), Trouble.AUTH),
        (redis_errors.ResponseError("NOAUTH Authentication required."), Trouble.AUTH),
        (redis_errors.BusyLoadingError("Redis is loading the dataset in memory"), Trouble.LOADING),
        (redis_errors.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), Trouble.FULL),
        (redis_errors.ReadOnlyError("You can't write against a read only replica."), Trouble.READONLY),
        (redis_errors.TimeoutError("Timeout reading"), Trouble.SLOW),
        (TimeoutError(), Trouble.SLOW),
        (redis_errors.ConnectionError("refused"), Trouble.DOWN),
        (OSError("no route"), Trouble.DOWN),
        (redis_errors.ClusterDownError("CLUSTERDOWN Hash slot not served"), Trouble.LOADING),
        (redis_errors.MasterDownError("Link with MASTER is down"), Trouble.LOADING),
        (LayoutError("other"), Trouble.LAYOUT),
        (redis_errors.ResponseError("ERR syntax"), Trouble.ERROR),
    ],
)
def test_errors_have_kinds(error: Exception, kind: Trouble) -> None:
    assert reason(error)[0] is kind
    wrapped = redis_errors.ConnectionError(error)
    wrapped.__cause__ = error  # redis-py's, while a connection is set up
    assert reason(wrapped)[0] is kind


def test_a_lasting_trouble_is_logged_twice_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    health = Health("mirror", logging.getLogger("h"), clock=lambda: now[0])
    for second in range(61):
        now[0] = second
        health.fail(OSError("refused"))
    assert len(caplog.records) == 3
    health.fail(TimeoutError())
    assert len(caplog.records) == 4, "another trouble is said at once"
    with caplog.at_level(logging.INFO):
        health.ok()
        health.ok()
    assert len(caplog.records) == 5
    assert health.failures == 62
