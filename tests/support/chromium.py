"""Headless Chromium, driven over its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.waiting import PATIENCE_S

KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, ""), "ArrowLeft": (37, ""), "ArrowRight": (39, "")}


class Page:
    """One tab. `troubles`: errors and warnings of the page's scripts; `asked`: addresses it loaded from."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, session: str) -> None:
        self.troubles: list[str] = []
        self.asked: list[str] = []
        self._socket = socket
        self._session = session
        self._count = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            method, params = told.get("method"), told.get("params", {})
            if "id" in told and (waiting := self._waiting.pop(told["id"], None)):
                waiting.set_result(told)
            elif method == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.troubles.append(details.get("exception", {}).get("description") or details["text"])
            elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                self.troubles.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            elif method == "Network.requestWillBeSent":
                self.asked.append(params["request"]["url"])
        for waiting in self._waiting.values():
            waiting.set_exception(ConnectionError("Chromium ended"))

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol. AssertionError if Chromium refuses it."""
        self._count += 1
        number = self._count
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params, "sessionId": self._session})
        async with asyncio.timeout(60):
            told = await waiting
        assert "error" not in told, f"{method}: {told['error']}"
        return dict(told["result"])

    async def get(self, expression: str) -> Any:
        """What a JavaScript expression gives (a promise is awaited)."""
        told = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def until(self, expression: str, seconds: float = PATIENCE_S) -> Any:
        """The expression's value once it is truthy; until then it may throw, as on a page that is being loaded."""
        value, tried = None, f"(() => {{ try {{ return {expression} }} catch {{ return null }} }})()"
        try:
            async with asyncio.timeout(seconds):
                while not (value := await self.get(tried)):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            shown = await self.get("document.body.innerText")
            said = f"not within {seconds} s: {expression}; {self.troubles}; the page says: {shown}"
            raise AssertionError(said) from None
        return value

    async def key(self, name: str) -> None:
        """Press and release a key."""
        code, typed = KEYS[name]
        same = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **same, **({"text": typed} if typed else {}))
        await self.call("Input.dispatchKeyEvent", type="keyUp", **same)

    async def look(self, scheme: str) -> None:
        """`light` or `dark`, as the user's system prefers."""
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def picture(self, file: Path) -> bytes:
        """The whole page as PNG, also written to `file`."""
        told = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        data = base64.b64decode(told["data"])
        file.write_bytes(data)
        return data


@contextlib.asynccontextmanager
async def chromium_page(folder: Path, *, width: int = 1360, height: int = 1400) -> AsyncIterator[Page]:
    """A fresh browser with one tab. Skips where there is no Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("chromium is not here (Debian package chromium): the dashboard was not tried in a browser")
    process = await asyncio.create_subprocess_exec(
        program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        "--remote-debugging-port=0", "--remote-debugging-address=127.0.0.1", f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},{height}", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    draining: asyncio.Task[bytes] | None = None
    try:
        async with asyncio.timeout(60):
            url = ""
            while not url:
                line = (await process.stderr.readline()).decode(errors="replace")
                assert line, "chromium ended before it listened"
                if found := re.search(r"DevTools listening on (ws://\S+)", line):
                    url = found[1]
        draining = asyncio.create_task(process.stderr.read())
        async with aiohttp.ClientSession() as client, client.ws_connect(url, max_msg_size=0) as socket:
            page = Page(socket, await _tab(socket))
            for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
                await page.call(f"{domain}.enable")
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            await page.call("Emulation.setDeviceMetricsOverride", **metrics)
            yield page
    finally:
        process.terminate()
        await process.wait()
        if draining is not None:
            await draining


async def _tab(socket: aiohttp.ClientWebSocketResponse) -> str:
    """Attach to the browser's only tab; its session's id."""
    await socket.send_json({"id": -1, "method": "Target.getTargets"})
    target = ""
    async for message in socket:
        told = json.loads(message.data)
        if told.get("id") == -1:
            target = next(one["targetId"] for one in told["result"]["targetInfos"] if one["type"] == "page")
            break
    await socket.send_json(
        {"id": -2, "method": "Target.attachToTarget", "params": {"targetId": target, "flatten": True}}
    )
    async for message in socket:
        told = json.loads(message.data)
        if told.get("id") == -2:
            return str(told["result"]["sessionId"])
    raise ConnectionError("Chromium ended")
