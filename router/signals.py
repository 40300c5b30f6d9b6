"""The signals that stop a process of the router: SIGTERM, and SIGINT of a terminal."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

_STOP = (signal.SIGTERM, signal.SIGINT)


def on_stop_signals(loop: asyncio.AbstractEventLoop, action: Callable[[], None]) -> None:
    """Call `action` at each from now on, instead of what was called before."""
    for number in _STOP:
        loop.add_signal_handler(number, action)


def ignore_stop_signals(loop: asyncio.AbstractEventLoop) -> None:
    """When everything is done: one more signal, while the interpreter winds up, must not turn the exit status into the
    signal's."""
    for number in _STOP:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
