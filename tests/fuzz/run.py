"""Many fuzzed requests against a router process: make fuzz-requests [REQUESTS=1000000].

Prints the figures; the exit status is 1 if anything crashed, hung, was answered with 500 or 502, or did not return to
zero.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from pathlib import Path

import aiohttp
import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.client import Fuzz
from fuzz.engine import Engine
from support.process import RouterProcess

from replica.simulator.config import MODEL_DIR

SETTINGS = ("limits.header_timeout_s=0.3", "limits.body_timeout_s=0.3", "limits.keepalive_s=0.5")
ZERO = ("replica_running", "replica_pending_prefill_tokens", "queue_requests", "request_bytes_held")


async def main(count: int, seed: int) -> int:
    engine = Engine()
    await engine.start()
    settings = [argument for setting in SETTINGS for argument in ("--set", setting)]
    router = RouterProcess("--replica", engine.url, "--model-files", str(MODEL_DIR), *settings)
    await router.start()
    async with aiohttp.ClientSession() as client:
        while True:
            async with client.get(router.url + "/ready") as answer:
                if answer.status == 200:
                    break
            await asyncio.sleep(0.05)
        fuzz = Fuzz(router.port, seed)
        begun = time.monotonic()
        step = max(1, count // 10)
        for target in range(step, count + 1, step):
            await fuzz.run(target)
            took = time.monotonic() - begun
            print(f"{fuzz.sent:>9,} requests  {fuzz.sent / took:6.0f}/s  router {router.rss_mb:6.1f} MB", flush=True)
            if fuzz.faults or not router.alive:
                break
        await asyncio.sleep(2)  # the router's own time limits end what is still open
        async with client.get(router.admin_url + "/metrics") as answer:
            page = await answer.text()
        left = re.findall(rf"^prefix_router_(?:{'|'.join(ZERO)})(?:{{[^}}]*}})? (?!0\.0$).*$", page, re.MULTILINE)
        body = {"model": "sim", "messages": [{"role": "user", "content": "still there?"}]}
        async with client.post(router.url + "/v1/chat/completions", json=body) as answer:
            alive = answer.status == 200
    errors = [line for line in router.lines if "ERROR" in line or "Traceback" in line]
    status = await router.stop()
    await engine.stop()
    print(f"answers: {dict(sorted(fuzz.statuses.items()))}; connections ended without one: {fuzz.closed:,}")
    print(f"forwarded: {engine.requests:,}; malformed at the engine: {len(engine.faults)}")
    print(f"crashes, hangs, 500s, 502s: {len(fuzz.faults)}; errors logged: {len(errors)}; not back to zero: {left}")
    for fault in (*fuzz.faults[:5], *engine.faults[:5], *errors[:5]):
        print(f"  {fault[:500]}")
    return int(bool(fuzz.faults or engine.faults or errors or left or not alive or status))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    sys.exit(uvloop.run(main(given.requests, given.seed)))
