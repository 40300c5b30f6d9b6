import asyncio
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session


@pytest.fixture
def until() -> Callable[[Callable[[], object]], "asyncio.Future[None]"]:
    """Wait for a condition, at most 60 s."""

    async def wait(condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.002)

    return wait
