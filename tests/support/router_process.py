"""The router as a process of its own, with a configuration file that a test may rewrite."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from support.waiting import PATIENCE_S, until

from replica.simulator.config import MODEL_DIR


class RouterProcess:
    """`log` grows with what the router writes."""

    def __init__(self, folder: Path, settings: dict[str, Any], flags: list[str], environment: dict[str, str]) -> None:
        self.file = folder / "router.yaml"
        self.settings = {
            "listen": {"port": 0}, "admin": {"port": 0}, "health": {"interval_s": 0.1}, "reload": {"interval_s": 0.05},
            "shutdown": {"grace_s": 10}, "models": [{"name": "sim", "files": str(MODEL_DIR)}], **settings,
        }  # fmt: skip
        self.flags = flags
        self.environment = environment
        self.log = ""
        self.process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    def write(self, **settings: Any) -> None:
        """Write the configuration, with some sections in the place of the present ones."""
        self.settings |= settings
        self.write_text(yaml.safe_dump(self.settings))

    def write_text(self, text: str) -> None:
        fresh = self.file.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.file)

    async def start(self) -> None:
        self.write()
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "router.cli", "serve", "--config", str(self.file), *self.flags,
            stderr=asyncio.subprocess.PIPE, env={**os.environ, **self.environment},
        )  # fmt: skip
        self._reading = asyncio.create_task(self._read())
        await until(lambda: self.ended or "metrics and status on" in self.log, "the router listens")
        assert not self.ended, self.log

    async def _read(self) -> None:
        assert self.process is not None and self.process.stderr is not None
        while line := await self.process.stderr.readline():
            self.log += line.decode()

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.returncode is not None

    @property
    def url(self) -> str:
        return self._found(r"listening on (https?://\S+)")

    @property
    def admin_url(self) -> str:
        return self._found(r"metrics and status on (https?://\S+)")

    def _found(self, pattern: str) -> str:
        found = re.search(pattern, self.log)
        assert found is not None, self.log
        return found[1]

    async def said(self, text: str) -> None:
        await until(lambda: text in self.log, f"the log says {text!r}")

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):  # it has ended, and this loop has not been told yet
            os.kill(self.process.pid, number)

    async def up(self, client: aiohttp.ClientSession, count: int) -> None:
        """So many replicas are up."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with client.get(self.admin_url + "/ready") as answer:
                        if (await answer.json())["replicas_up"] == count:
                            return
                await asyncio.sleep(0.02)

    async def stop(self) -> int:
        """SIGTERM; the exit status."""
        if self.process is None:
            return 0
        if not self.ended:
            self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(PATIENCE_S):
                status = await self.process.wait()
        except TimeoutError:
            self.process.kill()
            raise AssertionError(f"the router did not stop:\n{self.log}") from None
        if self._reading is not None:
            await self._reading
        return status


@contextlib.asynccontextmanager
async def router_process(
    folder: Path, settings: dict[str, Any], *flags: str, environment: dict[str, str] | None = None
) -> AsyncIterator[RouterProcess]:
    router = RouterProcess(folder, settings, list(flags), environment or {})
    try:
        await router.start()
        yield router
    finally:
        await router.stop()
