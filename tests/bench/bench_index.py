"""What the index costs: lookup, ingest (decode + ledger, and into the index), memory. Run as a script; no assertions.

Times are CPU time of this thread, best of several: on a shared machine that is the figure that repeats.
"""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Callable

import msgspec

from router.blocks import chain, pack, root
from router.index.ledger import CacheLedger
from router.index.memory import MemoryIndex
from router.index.types import Delta, Tier
from router.index.wire import decode_batch

SIZE = 16


def best(work: Callable[[], object], rounds: int = 7) -> float:
    """Seconds of CPU of the fastest round."""
    times = []
    for _ in range(rounds):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return min(times)


def lookup(replicas: int = 64) -> None:
    chance = random.Random(1)
    index = MemoryIndex(2_000_000)
    prompt = [chance.getrandbits(64) for _ in range(2048)]
    for number in range(replicas):
        index.add_replica(f"r{number}")
        index.apply(f"r{number}", Delta(stored={Tier.DEVICE: prompt[: 2048 - 16 * number]}))
        index.apply(f"r{number}", Delta(stored={Tier.DEVICE: [chance.getrandbits(64) for _ in range(5000)]}))
    for blocks in (128, 512, 2048):
        took = best(lambda n=blocks: index.match(prompt[:n]), 50)  # type: ignore[misc]
        print(
            f"lookup {blocks:5} blocks, {replicas} replicas: {took * 1e6:7.0f} us  {took / blocks * 1e9:5.0f} ns/block"
        )
    missing = [chance.getrandbits(64) for _ in range(2048)]
    print(f"lookup  miss: {best(lambda: index.match(missing), 50) * 1e6:.1f} us")


def events(hashes: bool, blocks: int = 64, count: int = 400) -> list[bytes]:
    chance = random.Random(2)
    payloads = []
    for _ in range(count):
        names = [chance.randbytes(32) if hashes else chance.getrandbits(64) for _ in range(blocks)]
        tokens = [chance.randrange(150_000) for _ in range(blocks * SIZE)]
        fields = {"type": "BlockStored", "block_hashes": names, "parent_block_hash": None, "token_ids": tokens}
        fields |= {"block_size": SIZE, "lora_id": None, "medium": "GPU", "lora_name": None, "group_idx": 0}
        payloads.append(msgspec.msgpack.encode([1.0, [fields | {"kv_cache_spec_kind": "full_attention"}], 0]))
    return payloads


def ingest() -> None:
    for hashes in (False, True):
        payloads = events(hashes)
        blocks = 64 * len(payloads)
        decode = best(lambda p=payloads: [decode_batch(one) for one in p])  # type: ignore[misc]

        def into_ledger(p: list[bytes] = payloads) -> None:
            ledger = CacheLedger("m", SIZE)
            for one in p:
                ledger.apply(decode_batch(one))

        def into_index(p: list[bytes] = payloads) -> None:
            ledger, index = CacheLedger("m", SIZE), MemoryIndex(1_000_000)
            index.add_replica("r")
            for one in p:
                index.apply("r", ledger.apply(decode_batch(one)))

        kind = "bytes" if hashes else "int"
        ledger, index = best(into_ledger), best(into_index)
        print(f"ingest ({kind} hashes): decode {decode / blocks * 1e9:5.0f} ns/block, + ledger "
              f"{ledger / blocks * 1e9:5.0f} ns/block ({blocks / ledger / 1e3:.0f}k blocks/s), + index "
              f"{index / blocks * 1e9:5.0f} ns/block ({blocks / index / 1e3:.0f}k blocks/s)")  # fmt: skip
    tokens = pack(range(100_000))
    took = best(lambda: chain(root("m", block_size=SIZE), tokens, SIZE))
    print(f"chain of 100k tokens: {took * 1e3:.2f} ms, {took / 6250 * 1e9:.0f} ns/block")


def memory(blocks: int = 300_000) -> None:
    chance = random.Random(3)
    tracemalloc.start()
    index = MemoryIndex(blocks)
    index.add_replica("r")
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(blocks // 1000):
        index.apply("r", Delta(stored={Tier.DEVICE: [chance.getrandbits(64) for _ in range(1000)]}))
    print(f"memory: index {(tracemalloc.get_traced_memory()[0] - before) / blocks:.0f} bytes/block")
    payloads = events(False, count=1000)
    before, ledger = tracemalloc.get_traced_memory()[0], CacheLedger("m", SIZE)
    for one in payloads:
        ledger.apply(decode_batch(one))
    print(f"memory: ledger {(tracemalloc.get_traced_memory()[0] - before) / ledger.live_blocks:.0f} bytes/block")
    tracemalloc.stop()


def sweep(blocks: int = 1_000_000) -> None:
    chance = random.Random(4)
    index = MemoryIndex(blocks)
    index.add_replica("r")
    index.apply("r", Delta(stored={Tier.DEVICE: [chance.getrandbits(64) for _ in range(blocks)]}))
    start = time.thread_time()
    index.remove_replica("r")
    removed = time.thread_time() - start
    steps, more = [], True
    while more:
        start = time.thread_time()
        more = index.sweep()
        steps.append(time.thread_time() - start)
    print(f"remove a replica of {blocks} blocks: {removed * 1e6:.0f} us, then {len(steps)} sweep steps of at most "
          f"{max(steps) * 1e3:.2f} ms, {sum(steps):.2f} s in all")  # fmt: skip


if __name__ == "__main__":
    lookup()
    ingest()
    memory()
    sweep()
