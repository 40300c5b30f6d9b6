"""Bounds of the HTTP data plane. Sizes in bytes, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client connection may use up. A bound that is crossed is answered (status in brackets) or closed."""

    max_body_bytes: int = 64 * 1024 * 1024  # [413]
    max_header_bytes: int = 64 * 1024  # whole header block and request line [431]
    max_headers: int = 128  # [431]
    max_target_bytes: int = 16 * 1024  # [414]
    max_pipelined: int = 64  # parsed requests that wait on one connection; more in one read closes it after these
    max_connections: int = 20_000  # [503]
    max_buffered_bytes: int = 1024 * 1024 * 1024  # request bodies of all connections, from first byte to answer [503]
    header_timeout_s: float = 10.0  # first byte of a request (or accept) to the end of its header block [408]
    body_timeout_s: float = 30.0  # grace for the body, plus its size / min_body_rate [408]
    min_body_rate: float = 4096.0  # bytes per second: slower uploads run into the body timeout
    keepalive_s: float = 75.0  # idle connection between two requests
    write_timeout_s: float = 120.0  # a client that takes nothing from a full buffer for so long is dropped
    linger_s: float = 2.0  # after an early error: keep reading so that the client sees the answer, not a reset
    write_buffer_bytes: int = 64 * 1024  # above it, the upstream is no longer read

    def tick_s(self) -> float:
        """Period of the sweep that enforces all timeouts: a quarter of the shortest one, within 20 ms and 0.5 s."""
        shortest = min(
            self.header_timeout_s, self.body_timeout_s, self.keepalive_s, self.write_timeout_s, self.linger_s
        )
        return min(0.5, max(0.02, shortest / 4))


@dataclass(frozen=True, slots=True)
class UpstreamLimits:
    """What the router grants the replicas' connections."""

    connect_timeout_s: float = 3.0
    first_byte_timeout_s: float = 300.0  # request sent to first byte of the answer's body, each try
    idle_timeout_s: float = 120.0  # between two pieces of an answer
    keepalive_s: float = 4.0  # engines (uvicorn) close idle connections after 5 s
    max_idle_per_origin: int = 256
    max_per_origin: int = 4096  # open connections; beyond it requests go elsewhere or wait
    max_head_bytes: int = 64 * 1024

    def tick_s(self) -> float:
        """Period of the timeout sweep: a quarter of the shortest timeout, within 20 ms and 0.5 s."""
        shortest = min(self.first_byte_timeout_s, self.idle_timeout_s, self.keepalive_s)
        return min(0.5, max(0.02, shortest / 4))
