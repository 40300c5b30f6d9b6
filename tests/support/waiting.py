"""Waiting for a condition with the event loop free."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PATIENCE_S = 60.0
"""How long a test waits for what is under way: a process that starts on a busy machine takes tens of seconds."""


async def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_S) -> None:
    """Return once `condition` holds. AssertionError that says `what` after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {what}") from None
