"""The router and simulated replicas as processes of their own, to be measured and killed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

from support.waiting import PATIENCE_S

_LISTENS = re.compile(r"listening on https?://127\.0\.0\.1:(\d+)")
_ADMIN = re.compile(r"metrics and status on http://127\.0\.0\.1:(\d+)")
_REPLICA = re.compile(r"(http://127\.0\.0\.\d+:\d+)")


class Process:
    """A command of ours. Its output is kept: `lines`."""

    def __init__(self, *arguments: str, preload: str = "") -> None:
        """preload: Python text to run before the command, in its process."""
        self._arguments = arguments
        self._preload = preload
        self.lines: list[str] = []
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        code = f"{self._preload}\nimport sys; from router.cli import main; sys.exit(main())"
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, *self._arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        async for line in self._process.stdout:
            self.lines.append(line.decode(errors="replace").rstrip())
            del self.lines[:-2000]

    async def find(self, pattern: re.Pattern[str], seconds: float = PATIENCE_S) -> str:
        """The first group of the pattern in the output, waited for."""
        async with asyncio.timeout(seconds):
            while True:
                for line in self.lines:
                    if match := pattern.search(line):
                        return match[1]
                if not self.alive:
                    raise AssertionError("\n".join(self.lines[-20:]))
                await asyncio.sleep(0.02)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status."""
        if self._process is None:
            return 0
        if self.alive:
            self.send(number)
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
        status = await self._process.wait()
        if self._reader is not None:
            await self._reader
        return status

    @property
    def rss_mb(self) -> float:
        """Resident memory now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


class RouterProcess(Process):
    """`prefix-router serve`; `url` and `admin_url` once it is started."""

    def __init__(self, *arguments: str, preload: str = "") -> None:
        super().__init__("serve", "--port", "0", "--admin-port", "0", *arguments, preload=preload)
        self.port = self.admin_port = 0

    async def start(self) -> None:
        await super().start()
        self.port, self.admin_port = int(await self.find(_LISTENS)), int(await self.find(_ADMIN))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"


class ReplicaProcess(Process):
    """`prefix-router simulate` with one replica, at the same port again after a restart."""

    def __init__(self, *arguments: str, port: int, host: str = "127.0.0.1") -> None:
        super().__init__("simulate", "--replicas", "1", "--host", host, "--port", str(port), *arguments)
        self.url = f"http://{host}:{port}"

    async def start(self) -> None:
        self.lines.clear()
        await super().start()
        await self.find(_REPLICA)
