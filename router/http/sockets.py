"""Options of the data plane's TCP connections."""

from __future__ import annotations

import contextlib
import socket
from asyncio import BaseTransport

IDLE_S, INTERVAL_S, PROBES = 30, 10, 3
"""A peer that vanished without a word (power, network) is noticed after a minute, not after the answer's timeout."""
_OPTIONS = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (
            ("TCP_KEEPIDLE", IDLE_S),
            ("TCP_KEEPINTVL", INTERVAL_S),
            ("TCP_KEEPCNT", PROBES),
            ("TCP_USER_TIMEOUT", 1000 * (IDLE_S + INTERVAL_S * PROBES)),
        )
        if hasattr(socket, name)
    ),
]


def notice_vanished_peer(transport: BaseTransport) -> None:
    """Let the kernel end the connection when its peer is gone; nothing on sockets that can't."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            for level, option, value in _OPTIONS:
                sock.setsockopt(level, option, value)
