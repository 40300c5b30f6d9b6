"""Asking the engine beside an agent, which may not be up yet."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address
from pathlib import Path
from typing import TypeVar

import aiohttp

from router.engines import EngineError

log = logging.getLogger(__name__)

T = TypeVar("T")

ENGINE_RETRY_S = 1.0
ENGINE_TIMEOUT_S = 5.0


def base_url(text: str) -> str:
    """An engine's URL without its last slash. Raises ValueError when it is none.

    An IPv6 address gets its brackets: `http://$(POD_IP):8000` in a pod has none.
    """
    scheme, _, rest = text.rstrip("/").partition("://")
    if scheme not in ("http", "https") or not rest:
        raise ValueError(f"{text!r} is no URL: write http://HOST:PORT")
    host, _, port = rest.rpartition(":")
    try:
        IPv6Address(host)
    except ValueError:
        return f"{scheme}://{rest}"
    return f"{scheme}://[{host}]:{port}"


def engine_key(file: str | None) -> str | None:
    """The key that the engine wants, from a file or PREFIX_ROUTER_ENGINE_API_KEY. Raises OSError."""
    return Path(file).read_text("utf-8").strip() if file else os.environ.get("PREFIX_ROUTER_ENGINE_API_KEY")


def engine_session(key: str | None) -> aiohttp.ClientSession:
    """For asking an engine that wants `key`."""
    headers = {"authorization": f"Bearer {key}"} if key else None
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ENGINE_TIMEOUT_S), headers=headers)


async def answered(ask: Callable[[], Awaitable[T]], what: str) -> T:
    """The engine's answer, however long it takes to come up."""
    said = ""
    while True:
        try:
            return await ask()
        except EngineError as error:
            if str(error) != said:
                said = str(error)
                log.info("%s: %s", what, said)
            await asyncio.sleep(ENGINE_RETRY_S)
