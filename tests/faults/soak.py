"""A soak: many requests while replicas and Redis are broken and mended; failures, counters and memory over time.

python tests/faults/soak.py --requests 200000
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from time import monotonic

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.system import System, system
from faults.traffic import Traffic

WARM_SHARE = 0.25
"""Caches and tables fill up to their bounds in the first part; memory must be flat after it."""


def resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


async def soak(found: System, requests: int, calm: bool) -> int:
    traffic, began = Traffic(found.router.url, seed=7, clients=24), monotonic()
    load = asyncio.create_task(traffic.run(requests))
    chaos = found.chaos(seed=7)
    readings: list[tuple[int, float]] = []
    told = 0
    while not load.done():
        breaking = asyncio.sleep(10) if calm else chaos.run(10)
        await asyncio.wait([load, asyncio.ensure_future(breaking)], return_when=asyncio.ALL_COMPLETED, timeout=12)
        readings.append((traffic.requests, resident_mb(found.router.pid)))
        if traffic.requests - told >= requests // 20:
            told = traffic.requests
            print(f"{told:8,} requests, {monotonic() - began:5.0f} s, RSS {readings[-1][1]:.0f} MB", flush=True)
    await load
    left = await found.left_over()
    warm = [mb for count, mb in readings if count >= WARM_SHARE * requests] or [readings[-1][1]]
    print(f"requests {traffic.requests:,}: {dict(traffic.counts)} in {monotonic() - began:.0f} s")
    print(f"faults: {dict(chaos.done)}")
    print(f"RSS after {WARM_SHARE:.0%}: {warm[0]:.0f} MB, most {max(warm):.0f} MB, at the end {warm[-1]:.0f} MB")
    print(f"counters that did not return to zero: {left or 'none'}; errors in the log: {len(found.troubles())}")
    for failure in traffic.failures[:10]:
        print("FAILED", failure)
    return 1 if traffic.failures or left else 0


async def run(requests: int, calm: bool) -> int:
    with tempfile.TemporaryDirectory() as folder:
        async with system(Path(folder)) as found:
            return await soak(found, requests, calm)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--calm", action="store_true", help="no faults")
    args = parser.parse_args()
    return asyncio.run(run(args.requests, args.calm))


if __name__ == "__main__":
    sys.exit(main())
