"""Every dialect, against batches recorded from real engines and hand-made ones where no recording exists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from router.blocks import chain, pack, root, unpack
from router.index.ledger import CacheLedger
from router.index.types import Tier
from router.index.wire import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    UnsupportedEvents,
    WireError,
    decode_batch,
    parse_live,
    parse_replay,
    replay_request,
)

Read = Callable[[Path], Any]
encode = msgspec.msgpack.encode


def one(event: Any) -> Any:
    batch = decode_batch(encode([1.0, [event], 0]))
    assert (batch.malformed, batch.unknown) == (0, 0)
    return batch.events[0]


@pytest.mark.parametrize("version", ["0.16.0", "0.20.0", "0.21.0", "0.22.0", "0.23.0", "0.24.0", "0.30.0"])
def test_recorded_batches_of_older_vllm(captures: Path, version: str) -> None:
    batch = decode_batch((captures / "old-vllm-wire" / f"vllm-{version}-batch.msgpack").read_bytes())
    assert batch.ts == 1795425013.5
    assert batch.dp_rank == 0
    group = None if version == "0.16.0" else 0
    kind = None if version < "0.22" else "full_attention"
    hashes: list[int | bytes] = [11111111111111111111, 2222]
    assert batch.events == [
        BlockStored(hashes, None, pack(range(100, 132)), 16, group=group, spec_kind=kind),
        BlockRemoved([2222], Tier.DEVICE, group),
        AllBlocksCleared(),
    ]


@pytest.mark.parametrize("folder", ["vllm-0.32.0/frames-int-hash", "vllm-0.32.0/frames-bytes-hash"])
def test_recorded_vllm_frames(captures: Path, read_frames: Read, recorded_json: Read, folder: str) -> None:
    for number, expected in enumerate(recorded_json(captures / folder / "decoded.json")):
        check(read_frames(captures / folder / f"{number:05}.bin"), expected)


@pytest.mark.parametrize("run", ["run1", "run2"])
def test_recorded_sglang_frames(captures: Path, read_frames: Read, recorded_json: Read, run: str) -> None:
    folder = captures / "sglang-0.5.23" / "frames"
    for number, expected in enumerate(recorded_json(folder / f"decoded-{run}.json")):
        check(read_frames(folder / f"{run}-{number:05}.bin"), expected)


def check(frames: list[bytes], expected: Any) -> None:
    seq, payload = parse_live(frames)
    assert seq == expected["seq"]
    batch = decode_batch(payload)
    ts, events, rank = expected["payload"]
    assert (batch.ts, batch.dp_rank, batch.malformed, batch.unknown) == (ts, rank, 0, 0)
    assert len(batch.events) == len(events)
    for event, raw in zip(batch.events, events, strict=True):
        assert type(event).__name__ == raw["type"]
        if isinstance(event, BlockStored | BlockRemoved):
            assert event.block_hashes == raw["block_hashes"]
            assert event.medium == Tier.DEVICE
            assert event.group == raw.get("group_idx")
        if isinstance(event, BlockStored):
            assert event.parent == raw["parent_block_hash"]
            assert unpack(event.tokens) == raw["token_ids"]
            assert event.block_size == raw["block_size"]
            assert event.salt == raw.get("cache_salt", "")


ARRAY = ["BlockStored", [1, -2], 2**64 - 1, list(range(8)), 4, 7, "CPU", "ad", [["ad"], None], 3, "full_attention", 9]


@pytest.mark.parametrize("length", range(5, 13))
def test_arrays_of_every_length(length: int) -> None:
    event = one([*ARRAY, "a field of the future", {"and": "another"}][: length if length < 12 else None])
    assert event == BlockStored(
        [1, -2],
        2**64 - 1,
        pack(range(8)),
        4,
        medium=Tier.HOST if length > 6 else Tier.DEVICE,
        lora_id=7 if length > 5 else None,
        lora_name="ad" if length > 7 else None,
        extra_keys=[["ad"], None] if length > 8 else None,
        group=3 if length > 9 else None,
        spec_kind="full_attention" if length > 10 else None,
    )


def test_batches_that_are_maps_all_through() -> None:
    event = {
        "type": "BlockStored",
        "block_hashes": [b"x" * 32],
        "parent_block_hash": b"y",
        "token_ids": [1],
        "later": 1,
    }
    batch = decode_batch(encode({"ts": 1, "events": [event | {"block_size": 1}], "data_parallel_rank": 3, "new": []}))
    assert (batch.ts, batch.dp_rank) == (1.0, 3)
    assert batch.events == [BlockStored([b"x" * 32], b"y", pack([1]), 1)]
    assert decode_batch(encode({"ts": 1.5, "events": []})).events == []


def test_sglang_salts() -> None:
    array = ["BlockStored", [1], None, [1], 1, None, "GPU", {"cache_salt": "s"}]
    assert one(array) == BlockStored([1], None, pack([1]), 1, salt="s")
    fields = {"block_hashes": [1], "parent_block_hash": None, "token_ids": [1], "block_size": 1, "cache_salt": "s"}
    assert one({"type": "BlockStored", **fields, "lora_name": "ad"}) == BlockStored(
        [1], None, pack([1]), 1, salt="s", lora_name="ad"
    )


@pytest.mark.parametrize(
    ("medium", "tier"),
    [(None, 0), ("GPU", 0), ("CPU", 1), ("CPU_PINNED", 1), ("STORAGE", 2), ("DISK", 2)],
)
def test_media(medium: str | None, tier: int) -> None:
    assert one(["BlockRemoved", [1], medium]) == BlockRemoved([1], Tier(tier))


@pytest.mark.parametrize(
    "event",
    [
        7,
        [],
        {},
        [1],
        ["BlockRemoved"],
        ["BlockRemoved", 5],
        ["BlockRemoved", [1, b"x"]],
        ["BlockRemoved", [1.5]],
        ["BlockRemoved", [True]],
        ["BlockRemoved", [1], 5],
        ["BlockRemoved", [1], "GPU", "group"],
        ["BlockStored", [1], None],
        ["BlockStored", [1], [], [1], 1],
        ["BlockStored", [1], None, [-1], 1],
        ["BlockStored", [1], None, [2**32], 1],
        ["BlockStored", [1], None, ["a"], 1],
        ["BlockStored", [1], None, [[1, 2, 3]], 1],
        ["BlockStored", [1], None, [1], -1],
        ["BlockStored", [1], None, [1], 1, None, None, None, [None, None]],
        ["BlockStored", [1], None, [1], 1, None, None, None, ["text"]],
    ],
    ids=repr,
)
def test_malformed_events_are_counted_and_the_rest_is_kept(event: Any) -> None:
    batch = decode_batch(encode([1.0, [["AllBlocksCleared"], event, ["AllBlocksCleared"]], 0]))
    assert batch.events == [AllBlocksCleared(), AllBlocksCleared()]
    assert batch.malformed == 1


@pytest.mark.parametrize(
    ("event", "lost"),
    [
        (["BlockRemoved", 5], True),
        ({"type": "BlockRemoved", "block_hashes": [1, b"x"]}, True),
        ([5], True),
        (7, True),
        (["BlockStored", 5], False),
        ({"type": "BlockStored"}, False),
        (["BlockMoved", 5], False),
    ],
    ids=repr,
)
def test_what_may_have_been_a_removal_is_told(event: Any, lost: bool) -> None:
    assert decode_batch(encode([1.0, [event, ["AllBlocksCleared"]], 0])).lost_removals is lost


def test_unknown_events_and_media_are_counted_and_skipped() -> None:
    batch = decode_batch(encode([1.0, [["BlockMoved", 1], {"type": "Later"}, ["BlockRemoved", [1], "EXTERNAL"]], 0]))
    assert (batch.events, batch.unknown, batch.malformed) == ([], 3, 0)


@pytest.mark.parametrize("payload", [b"", b"\xc1", encode(5), encode([1.0]), encode({"ts": 1.0}), encode(["a", [], 0])])
def test_what_is_no_batch_is_an_error(payload: bytes) -> None:
    with pytest.raises(WireError):
        decode_batch(payload)


def test_eagle_pairs_are_refused() -> None:
    with pytest.raises(UnsupportedEvents, match="EAGLE"):
        decode_batch(encode([1.0, [["BlockStored", [1], None, [[1, 2], [2, 3]], 2]], 0]))


def test_replay_frames_as_recorded(captures: Path, recorded_json: Read) -> None:
    for path, start in (("vllm-0.32.0/http-replay.json", 5), ("sglang-0.5.23/replay.json", 0)):
        recorded = recorded_json(captures / path)["dealer"]
        assert replay_request(start) == [b"", bytes.fromhex(recorded["sent"][1])]
        first = parse_replay([bytes.fromhex(part) for part in recorded["first_reply_parts"]])
        assert first is not None
        assert first[0] == recorded["first_seq"]
        assert parse_replay([bytes.fromhex(part) for part in recorded["end_marker_parts"]]) is None


def test_replay_frames_of_older_engines() -> None:
    assert parse_replay([b"", (5).to_bytes(8, "big"), b"payload"]) == (5, b"payload")
    assert parse_replay([b"", b"\xff" * 8, b""]) is None


@pytest.mark.parametrize("frames", [[], [b""], [b"", b"12345678"], [b"t", b"1234567", b""], [b"t", b"123456789", b""]])
def test_bad_frames_are_errors(frames: list[bytes]) -> None:
    with pytest.raises(WireError):
        parse_live(frames)


def test_the_recorded_requests_hit_what_the_ledger_predicts(
    captures: Path, read_frames: Read, recorded_json: Read
) -> None:
    """vLLM's own cached_tokens of every recorded request whose token ids are known, from the events alone."""
    requests = recorded_json(captures / "vllm-0.32.0" / "http-multi.json")
    ledger, fed, checked, prompt = CacheLedger("tiny", 32), 0, 0, []
    held: set[int] = set()
    first_prompt = requests[0]["response_json"]["prompt_token_ids"]
    for request in requests:
        name, answer = request["name"], request["response_json"]
        start, end = request["kv_event_frames_during"]
        for number in range(fed, start):
            _, payload = parse_live(read_frames(captures / f"vllm-0.32.0/frames-int-hash/{number:05}.bin"))
            ledger.apply(decode_batch(payload))
        fed = end if start < fed else max(fed, start)
        held = set(ledger.snapshot().stored.get(Tier.DEVICE, []))
        prompt = answer["prompt_token_ids"] or ([] if "changed" in name else first_prompt)
        salt = request["request"]["body"].get("cache_salt", "")
        keys = chain(root("tiny", block_size=32, salt=salt), pack(prompt), 32)
        blocks = next((depth for depth, key in enumerate(keys) if key not in held), len(keys))
        if prompt:
            predicted = min(blocks, (len(prompt) - 1) // 32) * 32
            assert predicted == answer["usage"]["prompt_tokens_details"]["cached_tokens"], name
            checked += 1
    assert checked == 9


def test_recorded_evictions_are_followed_exactly(captures: Path, read_frames: Read) -> None:
    """Bytes hashes, duplicates and evictions on a 96-block replica (block 0 is never used): every copy is counted."""
    ledger = CacheLedger("tiny", 32)
    copies: dict[Any, int] = {}
    for path in sorted((captures / "vllm-0.32.0/frames-bytes-hash").glob("*.bin")):
        batch = decode_batch(parse_live(read_frames(path))[1])
        for event in batch.events:
            assert isinstance(event, BlockStored | BlockRemoved)
            for name in event.block_hashes:
                copies[name] = copies.get(name, 0) + (1 if isinstance(event, BlockStored) else -1)
        ledger.apply(batch)
        assert min(copies.values()) >= 0
        assert sum(copies.values()) <= 95
        assert ledger.live_blocks == sum(count > 0 for count in copies.values())
    assert (ledger.orphans, ledger.skipped, ledger.unknown_removals) == (0, 0, 0)


def test_recorded_sglang_runs_leave_nothing_unexplained(captures: Path, read_frames: Read) -> None:
    for run in ("run1", "run2"):
        ledger = CacheLedger("tiny", 16, counts_copies=False)
        held: set[Any] = set()
        for path in sorted((captures / "sglang-0.5.23/frames").glob(f"{run}-*.bin")):
            batch = decode_batch(parse_live(read_frames(path))[1])
            for event in batch.events:
                if isinstance(event, BlockStored):
                    held |= set(event.block_hashes)
                elif isinstance(event, BlockRemoved):
                    held -= set(event.block_hashes)
                else:
                    held.clear()
            ledger.apply(batch)
            assert ledger.live_blocks == len(held)
        assert (ledger.orphans, ledger.skipped, ledger.unknown_removals) == (0, 0, 0)
