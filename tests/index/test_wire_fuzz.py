"""Mutated batches: never a crash, never a block that the bytes did not announce, against an oracle of their meaning.

Recorded and generated streams, part of whose payloads are mutated (bytes, or fields and events of the decoded batch),
go through what a subscriber feeds. After each payload the published blocks must be the oracle's: exactly those, or,
when the mutated bytes gave two meanings to one hash, none beside them. Each episode ends with a cleared cache and an
intact stream: from there on all is exact.

PREFIX_ROUTER_FUZZ=N sets how many mutated payloads (default 6,000); `make fuzz-events` runs a million.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.event_oracle import Oracle

from router.index.intake import FeedStatus, Intake
from router.index.ledger import CacheLedger
from router.index.types import Cleared, Delta, Tier
from router.index.wire import WireError, parse_live, parse_replay

COUNT = int(os.environ.get("PREFIX_ROUTER_FUZZ", "6000"))
SEED = int(os.environ.get("PREFIX_ROUTER_FUZZ_SEED", "20261123"))
Event = dict[str, Any]
Read = Callable[[Path], list[bytes]]
encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode
STRANGE = [None, 0, -1, 1, 2**32, 2**64 - 1, True, 1.5, "", "x", "GPU", "CPU", "DISK", "EXTERNAL", b"x", [], [None], {}]
EVENTS = [["AllBlocksCleared"], ["Later", 1], ["BlockStored", 7], {"type": "BlockStored"}] * 3
EVENTS += [[], 7, {"type": 5}, ["BlockRemoved", 7], ["BlockStored", [1], None, [[1, 2], [2, 3]], 2]]
EVENTS += [["BlockStored", [5], None, [0] * 24, 24]]
STORED = [
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
]


class Published:
    """A sink that holds what it was told."""

    def __init__(self) -> None:
        self.held: dict[int, set[int]] = {tier: set() for tier in Tier}

    def apply(self, replica_id: str, delta: Delta) -> None:
        if delta.cleared:
            self.held = {tier: set() for tier in Tier}
        for tier, keys in delta.dropped.items():
            self.held[tier] -= set(keys)
        for tier, keys in delta.stored.items():
            self.held[tier] |= set(keys)


def mutate_bytes(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        at = chance.randrange(len(out)) if out else 0
        kind = chance.randrange(5)
        if kind == 0 and out:
            out[at] = chance.randrange(256)
        elif kind == 1 and out:
            out[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            out[at:at] = chance.randbytes(chance.choice([1, 4]))
        elif kind == 3:
            del out[at : at + chance.choice([1, 2, 8])]
        else:
            del out[at:]
    return bytes(out)


def mutate_meaning(payload: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """Another batch that is well-formed for the most part: its fields and events are changed, not its bytes."""
    batch = decode(payload)
    events = batch["events"] if isinstance(batch, dict) else batch[1]
    for _ in range(chance.choice([1, 1, 2, 3])):
        mutate_events(events, decode(chance.choice(others)), chance)
    return encode(batch)


def mutate_events(events: list[Any], other: Any, chance: random.Random) -> None:
    theirs = other["events"] if isinstance(other, dict) else other[1]
    kind = chance.randrange(12)
    if kind == 0 or not events:
        events[chance.randint(0, len(events)) :] = chance.choice([theirs, theirs[:1], []])
        return
    at = chance.randrange(len(events))
    if kind == 1:
        del events[at]
    elif kind == 2:
        events.insert(chance.randint(0, len(events)), decode(encode(events[at])))
    elif kind == 3:
        chance.shuffle(events)
    elif kind == 4:
        events.append(decode(encode(chance.choice(EVENTS))))
    else:
        event = events[at]
        if not isinstance(event, dict | list) or not event:
            return
        fields = list(event) if isinstance(event, dict) else list(range(len(event)))
        field = chance.choice(fields)
        if kind in (5, 6):
            event[field] = decode(encode(chance.choice(STRANGE)))
        elif kind == 7 and isinstance(event, list):
            del event[chance.randrange(len(event)) :]
        elif kind == 7:
            del event[field]
        elif isinstance(event[field], list) and event[field]:
            mutate_list(event[field], hashes_of(theirs) + hashes_of(events), chance)
        elif isinstance(event[field], int | bytes):
            event[field] = chance.choice(hashes_of(theirs) + hashes_of(events) + [1, 8, 16, 32, 64])


def mutate_list(values: list[Any], hashes: list[Any], chance: random.Random) -> None:
    at = chance.randrange(len(values))
    kind = chance.randrange(6)
    if kind == 0:
        del values[at:]
    elif kind == 1:
        values[at] = decode(encode(chance.choice(STRANGE)))
    elif kind == 2:
        values.insert(at, values[at])
    elif kind == 3 and isinstance(values[at], int):
        values[at] ^= 1
    else:
        values[at] = chance.choice(hashes or [0])


def hashes_of(events: list[Any]) -> list[Any]:
    found = []
    for event in events:
        if isinstance(event, dict):
            hashes = event.get("block_hashes")
        else:
            hashes = event[1] if isinstance(event, list) and len(event) > 1 else None
        found += hashes if isinstance(hashes, list) else []
    return found


class Engine:
    """Streams no recording has: pages of any size, tiers, placeholders, groups, adapters, salts, images, copies."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.page = chance.choice([1, 4, 8, 16, 16, 32, 64])
        self.raw = chance.random() < 0.2
        self.array = chance.random() < 0.4
        self.signed = chance.random() < 0.5
        self.live: list[tuple[Any, str | None, int]] = []
        self.prompts = [
            ([chance.randrange(3) for _ in range(128)], chance.choice([None, None, "ad"]), chance.choice(["", "salt"]))
            for _ in range(3)
        ]

    def name(self, *of: Any) -> Any:
        number = msgspec.msgpack.encode(of)
        digest = random.Random(number).randbytes(8)
        return digest if self.raw else int.from_bytes(digest, "big", signed=self.signed)

    def batch(self) -> bytes:
        chance = self.chance
        events = [self.store() if chance.random() < 0.7 else self.remove() for _ in range(chance.randint(1, 3))]
        if chance.random() < 0.02:
            self.live.clear()
            events.append({"type": "AllBlocksCleared"})
        encoded = [self.encoded(event) for event in events if event]
        return encode(chance.choice([[1.5, encoded, 0], {"ts": 1.5, "events": encoded, "data_parallel_rank": 0}]))

    def store(self) -> Event:
        chance, page = self.chance, self.page
        tokens, adapter, salt = chance.choice(self.prompts)
        cut = chance.choice([len(tokens), len(tokens), 64])
        tokens = tokens[:cut] + [9] * (128 - cut)
        pages = 128 // page
        first = chance.choice([0, 0, chance.randrange(pages)])
        count = chance.randint(1, min(pages - first, max(1, 96 // page)))
        names = [self.name(tokens[: at * page], adapter, salt) for at in range(first + 1, first + count + 1)]
        image = chance.random() < 0.1 and [["image", 3]]
        group, medium = chance.choice([0, 0, 1]), chance.choice(["GPU", "GPU", "GPU", None, "CPU", "STORAGE"])
        extra: list[Any] = [([adapter] if adapter else []) for _ in names]
        if salt and not first:
            extra[0] = [*extra[0], salt]
        if image:
            extra[-1] = [*extra[-1], *image]
            names[-1] = self.name(tokens[: (first + count) * page], adapter, salt, "image")
        self.live += [(name, medium, group) for name in names]
        parent = self.name(tokens[: first * page], adapter, salt) if first else None
        kind = chance.choice(["full_attention", "full_attention", "full_attention", "mla_attention", "sliding_window"])
        values = [names, parent, tokens[first * page : (first + count) * page], page, 1 if adapter else None, medium]
        values += [adapter, [entry or None for entry in extra], group, kind]
        if chance.random() < 0.05:  # an offload connector that describes nothing
            values[1:4] = [None, [], 0]
        return {"type": "BlockStored", **dict(zip(STORED, values, strict=True))}

    def remove(self) -> Event:
        if not self.live:
            return {}
        name, medium, group = self.live.pop(self.chance.randrange(len(self.live)))
        return {"type": "BlockRemoved", "block_hashes": [name], "medium": medium, "group_idx": group}

    def encoded(self, event: Event) -> Any:
        if not self.array:
            return event
        names = STORED if event["type"] == "BlockStored" else ["block_hashes", "medium", "group_idx"]
        return [event["type"], *(event[name] for name in names if name in event)]


def recorded(captures: Path, read_frames: Read) -> list[tuple[int, bool, list[bytes]]]:
    """(block size, whether copies are counted, payloads) of each recording."""
    streams = [(16, True, [path.read_bytes() for path in sorted((captures / "old-vllm-wire").glob("*.msgpack"))])]
    for folder, pattern, size in (
        ("vllm-0.32.0/frames-int-hash", "*.bin", 32),
        ("vllm-0.32.0/frames-bytes-hash", "*.bin", 32),
        ("sglang-0.5.23/frames", "run1-*.bin", 16),
        ("sglang-0.5.23/frames", "run2-*.bin", 16),
    ):
        paths = sorted((captures / folder).glob(pattern))
        payloads = [parse_live(read_frames(path))[1] for path in paths]
        streams.append((size, size == 32, [payload for payload in payloads if len(payload) < 4000]))
    return streams


class Episode:
    """One intake and one oracle, fed the same bytes."""

    def __init__(self, block_size: int, counts: bool) -> None:
        self.status = FeedStatus()
        self.published = Published()
        self.ledger = CacheLedger("m", block_size, counts_copies=counts)
        self.intake = Intake("a", self.ledger, self.published, self.status)
        self.oracle = Oracle("m", block_size, counts_copies=counts)

    def feed(self, payload: bytes) -> str:
        clears, refused = self.status.clears, self.status.malformed
        verdict = self.oracle.feed(payload)
        self.intake.apply(payload)
        assert self.status.clears - clears == (verdict == "cleared"), (verdict, self.status)
        assert (self.status.state == "unsupported") == (verdict == "unsupported"), (verdict, self.status)
        assert self.status.malformed > refused or verdict != "cleared", "what could not be read is counted"
        allowed, held = self.oracle.keys(), self.published.held
        for tier in Tier:
            assert held[tier] <= allowed[tier], f"wrong blocks in {tier!r}: {held[tier] - allowed[tier]}"
            if self.oracle.certain:
                assert held[tier] == allowed[tier], f"blocks missing in {tier!r}: {allowed[tier] - held[tier]}"
        assert self.ledger.live_blocks == sum(map(len, held.values()))
        if verdict == "unsupported":
            self.intake.clear(Cleared.RESTARTED, "the engine restarted")
        return verdict

    @property
    def tangled(self) -> bool:
        """One hash has so many meanings by now that following all of them is slow."""
        return any(len(paths) > 4 for paths in self.oracle.paths.values())


def test_mutated_batches_never_crash_or_publish_a_wrong_block(
    captures: Path, read_frames: Read, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "router.index.intake")
    chance = random.Random(SEED)
    streams = recorded(captures, read_frames)
    payloads = [payload for _, _, stream in streams for payload in stream]
    verdicts: Counter[str] = Counter()
    mutated = exact = compared = 0
    started = time.perf_counter()
    while mutated < COUNT:
        size, counts, stream = chance.choice(streams)
        if chance.random() < 0.5:
            size, counts, engine = chance.choice([16, 16, 32]), chance.random() < 0.7, Engine(chance)
            stream = [engine.batch() for _ in range(30)]
        episode = Episode(size, counts)
        seen = [*stream[:5], chance.choice(payloads)]
        share, meaning = chance.choice([0.3, 0.6, 0.9]), chance.choice([0.0, 0.9, 1.0, 1.0])
        for payload in stream:
            seen.append(payload)
            damaged = payload
            if chance.random() < share:
                mutated += 1
                change = chance.random() < meaning
                damaged = mutate_meaning(payload, seen, chance) if change else mutate_bytes(payload, chance)
            verdicts[episode.feed(damaged)] += 1
            exact += episode.oracle.certain
            compared += sum(map(len, episode.published.held.values()))
            if episode.tangled:
                break
        episode.feed(encode([1.0, [["AllBlocksCleared"]], 0]))
        for payload in stream[:10]:
            episode.feed(payload)
            assert episode.oracle.certain, "intact bytes have one meaning"
    took = time.perf_counter() - started
    print(
        f"\n{mutated} mutated payloads in {took:.0f} s: {verdicts['applied']} payloads applied, {verdicts['cleared']} "
        f"cleared, {verdicts['unsupported']} refused; after {exact} the blocks had to be exactly the oracle's; "
        f"{compared} published blocks compared, none wrong"
    )
    assert verdicts["applied"] > COUNT / 4 and verdicts["cleared"] > COUNT / 50 and exact > COUNT / 2
    assert verdicts["unsupported"] > COUNT / 1000
    assert compared > COUNT


def test_random_frames_only_ever_raise_wire_errors() -> None:
    chance = random.Random(7)
    for _ in range(2000):
        frames = [chance.randbytes(chance.choice([0, 1, 8, 8, 9])) for _ in range(chance.randrange(6))]
        for parse in (parse_live, parse_replay):
            with contextlib.suppress(WireError):
                parse(frames)
