"""Free loopback ports for servers that can't be given port 0."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from loadtest.processes import free_port


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """A port whose connections are refused: it is held, so that nobody else listens there meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


def free_run(count: int) -> int:
    """The first of `count` ports in a row that were free a moment ago."""
    for _ in range(100):
        first = free_port()
        probes = []
        try:
            for port in range(first, first + count):
                probes.append(socket.socket())
                probes[-1].bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            continue
        finally:
            for probe in probes:
                probe.close()
        return first
    raise AssertionError(f"no {count} free ports in a row")
