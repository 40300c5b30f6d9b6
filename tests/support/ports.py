"""Free loopback ports for servers that can't be given port 0."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterator

_RANGE = range(20_000, 32_000)
"""Below the ports that Linux gives to whoever asks for any (from 32,768): nobody gets one of these by chance between
its pick here and its use, nor while the server that has it is restarted."""
_given: set[int] = set()


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """A port whose connections are refused: it is held, so that nobody else listens there meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


def free_port() -> int:
    """A port that was free a moment ago, and another one each time."""
    return free_run(1)


def free_run(count: int) -> int:
    """The first of `count` ports in a row that were free a moment ago."""
    for _ in range(1000):
        first = _RANGE.start + secrets.randbelow(len(_RANGE) - count)
        ports = range(first, first + count)
        if _given.isdisjoint(ports) and all(map(_is_free, ports)):
            _given.update(ports)
            return first
    raise AssertionError(f"no {count} free ports in a row")


def _is_free(port: int) -> bool:
    """On every address, as a server that listens on all of them needs it."""
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
