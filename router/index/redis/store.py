"""One connection pool to Redis or Valkey, narrowed to what the index needs: a command, a script, a blocking read.

No call is retried here: a retried script runs twice on a slow server. Callers send idempotent scripts and decide.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Protocol, cast

from redis.exceptions import NoScriptError

from router.index.redis.layout import Layout
from router.index.redis.scripts import Script


class Client(Protocol):
    """What is used of redis.asyncio.Redis and redis.asyncio.cluster.RedisCluster."""

    def execute_command(self, *args: Any) -> Awaitable[Any]: ...

    async def aclose(self) -> None: ...


Argument = bytes | str | int


class Store:
    """Errors are redis-py's (RedisError) or OSError; `health.reason` turns them into words."""

    def __init__(self, client: Client, *, timeout_s: float) -> None:
        self._client = client
        self.timeout_s = timeout_s

    async def execute(self, *args: Argument) -> Any:
        """One command. A cancellation always arrives: redis-py 8.1 now and then swallows one (its own timeouts are
        cancellations too), and a task that outlives its cancellation never ends."""
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        try:
            return await self._client.execute_command(*args)
        finally:
            if task and task.cancelling() > before:
                raise asyncio.CancelledError

    async def run(self, script: Script, layout: Layout, *args: Argument) -> list[Any]:
        """Run a script for one pool; sent in full only when the server does not know it yet."""
        try:
            answer = await self.execute("EVALSHA", script.sha, 1, layout.head, *args)
        except NoScriptError:
            answer = await self.execute("EVAL", script.body, 1, layout.head, *args)
        return cast("list[Any]", answer)

    async def read_stream(self, key: bytes, after: int, *, count: int, block_ms: int) -> list[tuple[int, bytes]]:
        """Entries (stream number, record) after number `after`. `block_ms` 0 does not wait; else it must stay below
        the socket timeout."""
        block = ("BLOCK", min(block_ms, int(self.timeout_s * 500))) if block_ms else ()
        answer = await self.execute("XREAD", "COUNT", count, *block, "STREAMS", key, b"%d-0" % after)
        if not answer:
            return []
        entries = next(iter(answer.values()))[0] if isinstance(answer, dict) else answer[0][1]
        return [(int(number.partition(b"-")[0]), fields[b"d"]) for number, fields in entries]

    async def drop_connections(self) -> None:
        """Close idle connections, so that the next call resolves the name (or asks the sentinel) again."""
        pool = getattr(self._client, "connection_pool", None)
        if pool is not None:
            await pool.disconnect(inuse_connections=False)

    async def close(self) -> None:
        await self._client.aclose()
