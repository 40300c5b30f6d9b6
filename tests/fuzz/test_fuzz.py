"""A few thousand fuzzed requests through the whole router (make fuzz-requests: a million)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import aiohttp
import pytest
from fuzz.client import Fuzz
from fuzz.engine import Engine
from support.waiting import until

from replica.simulator.config import MODEL_DIR
from router.app import App
from router.config import load_config
from router.fleet.replica import Health


@pytest.fixture
async def system() -> AsyncIterator[tuple[Engine, App]]:
    engine = Engine()
    await engine.start()
    settings = [
        ("listen.port", 0),
        ("admin.port", 0),
        ("replicas", [{"url": engine.url}]),
        ("limits.header_timeout_s", 0.3),
        ("limits.body_timeout_s", 0.3),
        ("limits.keepalive_s", 0.5),
    ]
    app = App(load_config(overrides=settings), model_files=str(MODEL_DIR))
    await app.start()
    await until(lambda: all(replica.health is Health.UP for replica in app.fleet) and len(app.fleet) > 0, "up")
    yield engine, app
    await app.stop()
    await engine.stop()


async def test_fuzzed_requests(system: tuple[Engine, App]) -> None:
    engine, app = system
    fuzz = Fuzz(app.server.port, seed=5)
    loop_faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: loop_faults.append(context))
    await fuzz.run(int(os.environ.get("PREFIX_ROUTER_FUZZ", "4000")))
    assert not fuzz.faults, fuzz.faults[:3]
    assert not engine.faults, engine.faults[:3]
    assert not loop_faults
    assert fuzz.statuses[200] > fuzz.sent / 4 and fuzz.statuses[400] > fuzz.sent / 20, fuzz.statuses
    await until(lambda: not app.server.connections, "every connection ended")
    await until(lambda: app.server.held_bytes == 0 and not app.pool.busy, "no request is held, no connection in use")
    await until(lambda: len(app.admission.queue) == 0, "nobody waits")
    await until(lambda: all((r.load.running, r.load.pending_prefill) == (0, 0) for r in app.fleet), "nothing is booked")
    async with aiohttp.ClientSession() as client:
        body = {"model": "sim", "messages": [{"role": "user", "content": "still there?"}]}
        async with client.post(f"http://127.0.0.1:{app.server.port}/v1/chat/completions", json=body) as answer:
            assert answer.status == 200
