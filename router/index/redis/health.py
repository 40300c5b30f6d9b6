"""What is wrong with Redis, in words: errors -> a kind and a reason, and log lines that don't flood."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from redis import exceptions as redis_errors

LOG_EVERY_S = 30.0


class Trouble(StrEnum):
    DOWN = "down"
    SLOW = "slow"
    AUTH = "auth"
    FULL = "full"
    READONLY = "readonly"
    LOADING = "loading"
    LAYOUT = "layout"
    ERROR = "error"


class LayoutError(redis_errors.RedisError):
    """Redis holds another layout version, or has no slot left."""


STORE_ERRORS = (redis_errors.RedisError, redis_errors.RedisClusterException, OSError, TimeoutError)
"""What a call to the store may raise."""


def reason(error: BaseException) -> tuple[Trouble, str]:
    """The kind of an error and a sentence with what to do. Never holds a password: redis-py puts none into errors."""
    while type(error) is redis_errors.ConnectionError and isinstance(
        error.__cause__, redis_errors.RedisError | TimeoutError
    ):
        error = error.__cause__  # what went wrong while a connection was set up, in redis-py's wrapping
    text = str(error) or type(error).__name__
    upper = text.upper()
    if isinstance(error, LayoutError):
        return Trouble.LAYOUT, text
    if isinstance(error, redis_errors.AuthenticationError | redis_errors.NoPermissionError) or upper.startswith(
        ("NOAUTH", "WRONGPASS", "NOPERM", "AUTHENTICATION REQUIRED", "INVALID USERNAME-PASSWORD")
    ):
        return Trouble.AUTH, f"Redis refuses the credentials: {text}; check the username, password and ACL"
    not_ready = redis_errors.BusyLoadingError | redis_errors.ClusterDownError  # MASTERDOWN is one of the latter
    if isinstance(error, not_ready) or upper.startswith(("LOADING", "MASTERDOWN", "CLUSTERDOWN")):
        return Trouble.LOADING, f"Redis is not ready: {text}"
    if isinstance(error, redis_errors.OutOfMemoryError) or upper.startswith(("OOM", "COMMAND NOT ALLOWED WHEN USED")):
        return Trouble.FULL, f"Redis is full: {text}; raise maxmemory"
    if isinstance(error, redis_errors.ReadOnlyError) or "READONLY" in upper:
        return Trouble.READONLY, f"Redis answers as a read-only replica (a failover?): {text}"
    if isinstance(error, redis_errors.TimeoutError | TimeoutError):
        return Trouble.SLOW, f"Redis does not answer in time: {text}"
    if isinstance(error, redis_errors.ConnectionError | redis_errors.RedisClusterException | OSError):
        return Trouble.DOWN, f"Redis cannot be reached: {text}"
    return Trouble.ERROR, f"Redis answers with an error: {text}"


@dataclass(slots=True)
class Health:
    """Whether one activity that needs Redis works. `since` is a Unix time; `failures` counts since the start."""

    name: str
    log: logging.Logger
    clock: Callable[[], float] = time.monotonic
    trouble: Trouble | None = None
    why: str = ""
    since: float = field(default_factory=time.time)
    failures: int = 0
    _logged: float = -LOG_EVERY_S

    def fail(self, error: BaseException) -> Trouble:
        kind, why = reason(error)
        self.failures += 1
        if self.trouble is None:
            self.since = time.time()
        changed = kind is not self.trouble
        self.trouble, self.why = kind, why
        now = self.clock()
        if changed or now - self._logged >= LOG_EVERY_S:
            self._logged = now
            self.log.warning("%s: %s", self.name, why)
        return kind

    def ok(self) -> None:
        if self.trouble is None:
            return
        self.log.info("%s: Redis works again after %.1f s (was: %s)", self.name, time.time() - self.since, self.trouble)
        self.trouble, self.why, self.since = None, "", time.time()


class Backoff:
    """Pauses of 50 ms, 100 ms ... `most` seconds: an agent is back within a second or two of Redis."""

    def __init__(self, first: float = 0.05, most: float = 1.0) -> None:
        self._first, self._most = first, most
        self._next = first

    async def wait(self) -> None:
        pause, self._next = self._next, min(self._next * 2, self._most)
        await asyncio.sleep(pause)

    def reset(self) -> None:
        self._next = self._first
