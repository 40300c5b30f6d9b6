"""Mutated batches: never anything but a WireError. PREFIX_ROUTER_FUZZ=N sets how many (default 20,000)."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

from router.index.ledger import CacheLedger
from router.index.wire import BlockStored, WireError, decode_batch, parse_live, parse_replay

COUNT = int(os.environ.get("PREFIX_ROUTER_FUZZ", "20000"))


def mutate(data: bytes, chance: random.Random) -> bytes:
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


def test_mutated_batches_only_ever_raise_wire_errors(captures: Path) -> None:
    seeds = [path.read_bytes() for path in sorted((captures / "old-vllm-wire").glob("*.msgpack"))]
    for path in [*(captures / "vllm-0.32.0").glob("*/*.bin"), *(captures / "sglang-0.5.23").glob("frames/*.bin")]:
        data = path.read_bytes()
        seeds.append(data[data.index(b"\x93\xcb") :])
    seeds = sorted(seed for seed in seeds if len(seed) < 1200)
    chance = random.Random(20261123)
    ledgers = [CacheLedger("m", size, max_blocks=5000, counts_copies=size == 16) for size in (16, 32, 128)]
    refused = events = 0
    for number in range(COUNT):
        payload = mutate(chance.choice(seeds), chance)
        try:
            batch = decode_batch(payload)
        except WireError:
            refused += 1
            continue
        events += len(batch.events)
        for event in batch.events:
            if isinstance(event, BlockStored):
                assert isinstance(event.tokens, bytes)
        ledger = ledgers[number % len(ledgers)]
        ledger.apply(batch)
        if ledger.live_blocks > 4000:
            ledger.clear()
    assert refused > COUNT / 100
    assert events > COUNT / 100


def test_random_frames_only_ever_raise_wire_errors() -> None:
    chance = random.Random(7)
    for _ in range(2000):
        frames = [chance.randbytes(chance.choice([0, 1, 8, 8, 9])) for _ in range(chance.randrange(6))]
        for parse in (parse_live, parse_replay):
            with contextlib.suppress(WireError):
                parse(frames)
