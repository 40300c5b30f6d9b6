"""Processes that a load test starts: on loopback, stopped by their own handle, and what they cost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import socket
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

START_S = 120.0
STOP_S = 10.0
KEPT_LINES = 30
POLL_S = 0.05
PORTS = range(20_000, 32_768)
"""Below those that Linux gives to whoever takes any: such a one could be another's before the program listens on it."""


class StartError(RuntimeError):
    """A process did not come up; the message holds its last lines."""


class Child:
    """A started process. An async context manager: leaving it stops the process, by its handle alone.

    `lines` are the last of what it printed (stdout and stderr together).
    """

    def __init__(self, name: str, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._argv = argv
        self._environment = {**os.environ, **(environment or {})}
        self._process: Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._printed = asyncio.Event()

    async def __aenter__(self) -> Self:
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, env=self._environment, limit=1 << 20
            )
        except OSError as error:
            raise StartError(f"{self.name} cannot be started: {error}") from None
        self._reading = asyncio.create_task(self._read(self._process))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        assert process is not None
        assert self._reading is not None
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def printed(self, pattern: str, times: int = 1) -> list[str]:
        """The first group of `pattern` in the lines printed so far, once it was found `times` times.

        Raises StartError if the process ends before, or takes START_S.
        """
        found: list[str] = []
        try:
            async with asyncio.timeout(START_S):
                while True:
                    found = [match[1] for line in self.lines if (match := re.search(pattern, line))]
                    if len(found) >= times:
                        return found
                    await self._check()
                    self._printed.clear()
                    await self._printed.wait()
        except TimeoutError:
            raise StartError(f"{self.name} did not say {pattern!r} in {START_S:g} s;\n{self._said()}") from None

    async def answers(self, url: str, part: str = "") -> None:
        """Wait until GET `url` is answered with 200 and a body that has `part`.

        Raises StartError if the process ends before, or takes START_S.
        """
        try:
            async with asyncio.timeout(START_S), aiohttp.ClientSession() as http:
                while True:
                    await self._check()
                    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                        async with http.get(url, timeout=aiohttp.ClientTimeout(total=5)) as response:
                            if response.status == 200 and part in await response.text():
                                return
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise StartError(
                f"{self.name}: {url} was not answered with 200{f' and {part}' * bool(part)} in {START_S:g} s;\n"
                f"{self._said()}"
            ) from None

    async def _check(self) -> None:
        assert self._process is not None
        assert self._reading is not None
        if self._process.returncode is not None:
            await asyncio.wait({self._reading}, timeout=1)
            raise StartError(f"{self.name} ended with status {self._process.returncode}:\n{self._said()}")

    def _said(self) -> str:
        return "\n".join(f"  {line}" for line in self.lines)

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # longer than the limit
                continue
            if line:
                self.lines.append(line.decode(errors="replace").rstrip())
            self._printed.set()
            if not line:
                await process.wait()
                self._printed.set()
                return


def free_port() -> int:
    """A port that was free a moment ago, for programs that cannot take any free one themselves. Raises StartError."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise StartError(f"none of a hundred ports from {PORTS.start} on is free")


def tree(pid: int) -> list[int]:
    """A process and its descendants, from /proc (Linux); empty elsewhere or when it is gone."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    if pid not in parents:
        return []
    found = [pid]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its descendants; 0 where there is no /proc. Resolution: 10 ms."""
    ticks = 0
    for each in tree(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants (shared pages counted for each); 0 where there is no /proc."""
    pages = 0
    for each in tree(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            pages += int(Path(f"/proc/{each}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
