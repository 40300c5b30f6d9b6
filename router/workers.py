"""One worker of a router of several, seen from both sides: what it is started with, and the process that holds it.

supervisor ── stdin: Setup, one line of JSON; later "drain", "hurry"; its end means drain ──► worker
supervisor ◄─ stdout: "up", or "failed: WHY" ── worker
supervisor ── HTTP on a Unix socket: the admin pages, and what is changed at run time ──► worker
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from router.config.model import Config
from router.fleet.membership import Wishes
from router.observe.metrics import Family

log = logging.getLogger(__name__)

START_S = 120.0
"""A worker that isn't up by then is killed; loading a tokenizer takes seconds."""

ASK_S = 30.0


class Setup(msgspec.Struct, kw_only=True):
    """What a worker starts with. `again`: it takes the place of one that ended, while its siblings serve: it listens
    only once it knows its replicas.
    """

    config: Config
    model_files: str | None
    number: int
    count: int
    socket: str
    board: int
    router_id: str
    wishes: Wishes
    again: bool


class WorkerFailed(Exception):
    """It ended before it was up; the message says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where worker `number` of `count` stands: its supervisor's questions come to `socket`."""

    number: int
    count: int
    socket: Path
    board: int
    router_id: str

    @property
    def maker(self) -> str:
        """Of the names that this worker gives to sessions: another for each, and for each life of one."""
        return f"{self.number:x}{time.time_ns() // 1_000_000_000 & 0xFFFF:x}"

    @classmethod
    def of(cls, setup: Setup) -> Place:
        """As the setup says."""
        return cls(setup.number, setup.count, Path(setup.socket), setup.board, setup.router_id)


class WorkerProcess:
    """The supervisor's side. `up` while it serves. `families`: its metrics as last read."""

    def __init__(self, number: int, socket: Path) -> None:
        self.number = number
        self.socket = socket
        self.up = False
        self.families: list[Family] = []
        self._process: asyncio.subprocess.Process | None = None
        self._client: aiohttp.ClientSession | None = None

    async def start(self, setup: Setup) -> None:
        """Start the process and wait until it serves. Raises WorkerFailed."""
        with contextlib.suppress(FileNotFoundError):
            self.socket.unlink()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "router.worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(setup.board,),
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        line = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(START_S):
                self._process.stdin.write(msgspec.json.encode(setup) + b"\n")
                line = await self._process.stdout.readline()
        if line != b"up\n":
            await self.kill()
            status = await self._process.wait()
            raise WorkerFailed(
                line.decode().removeprefix("failed: ").strip() or f"it ended with status {status}; see the log"
            )
        self._client = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.socket)))
        self.up = True

    @property
    def pid(self) -> int | None:
        """Of its process; None before the first start."""
        return None if self._process is None else self._process.pid

    async def ended(self) -> int:
        """Wait until it has ended; its exit status, negative for a signal."""
        assert self._process is not None
        status = await self._process.wait()
        self.up = False
        await self._close()
        return status

    def tell(self, command: str) -> None:
        """Have it drain, or hurry with it."""
        if self._process is not None and self._process.stdin is not None and self._process.returncode is None:
            with contextlib.suppress(OSError, RuntimeError):
                self._process.stdin.write(command.encode() + b"\n")

    async def kill(self) -> None:
        """At once."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        await self._close()

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        seconds: float = ASK_S,
    ) -> tuple[int, Any]:
        """See api.gathered.Worker."""
        status, answer = await self._asked(method, path, body, headers, seconds)
        return status, msgspec.json.decode(answer) if answer else None

    async def measure(self) -> list[Family]:
        """Its metrics now; empty when it is gone."""
        try:
            _, answer = await self._asked("GET", "/families", None, None, ASK_S)
        except OSError:
            return []
        self.families = msgspec.msgpack.decode(answer, type=list[Family])
        return self.families

    async def _asked(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str] | None, seconds: float
    ) -> tuple[int, bytes]:
        if self._client is None:
            raise ConnectionError(f"worker {self.number} is not up")
        limit = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._client.request(
                method, f"http://worker{path}", data=body, headers=headers, timeout=limit
            ) as answer:
                return answer.status, await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            why = str(error) or f"no answer within {seconds:g} s"
            raise ConnectionError(f"worker {self.number}: {why}") from error

    async def _close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None
