"""A scripted Kubernetes API server that enforces the chart's own Role, and a collector of what sources report."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import yaml
from support.kubernetes_api import ApiServer, failure, opened
from support.waiting import PATIENCE_S

from router.fleet.discovery import Endpoint, Source
from router.fleet.discovery.cluster import Cluster

ROLE = Path(__file__).resolve().parents[2] / "helm" / "prefix-router" / "files" / "role-rules.yaml"


@pytest.fixture
async def api() -> AsyncIterator[ApiServer]:
    async with ApiServer(yaml.safe_load(ROLE.read_text())) as server:
        yield server


@pytest.fixture
def cluster(api: ApiServer, tmp_path: Path) -> Callable[[], Cluster]:
    token = tmp_path / "token"
    token.write_text("first\n")
    return lambda: Cluster(url=api.url, namespace="models", token_file=token)


class Reports:
    """Runs a source and waits for what it reports."""

    def __init__(self) -> None:
        self.all: list[list[Endpoint]] = []
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, source: Source) -> None:
        self._tasks.append(asyncio.create_task(source.run(self._update)))

    def _update(self, endpoints: list[Endpoint]) -> None:
        self.all.append(endpoints)
        self._news.set()

    @property
    def now(self) -> dict[str, Endpoint]:
        return {endpoint.id: endpoint for endpoint in self.all[-1]} if self.all else {}

    async def until(self, wanted: Callable[[dict[str, Endpoint]], bool]) -> dict[str, Endpoint]:
        async with asyncio.timeout(PATIENCE_S):
            while not self.all or not wanted(self.now):
                self._news.clear()
                done = [task for task in self._tasks if task.done()]
                if done:
                    done[0].result()
                await self._news.wait()
        return self.now

    async def names(self, *ids: str) -> dict[str, Endpoint]:
        return await self.until(lambda now: set(now) == set(ids))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
async def reports() -> AsyncIterator[Reports]:
    collector = Reports()
    yield collector
    await collector.close()


@pytest.fixture
def scripted() -> Iterator[type]:
    """The pieces scripts are made of."""

    class Pieces:
        failure = staticmethod(failure)
        opened = staticmethod(opened)

    yield Pieces
