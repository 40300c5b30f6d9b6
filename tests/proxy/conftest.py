"""A raw scripted upstream and a router over it, on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import uvloop

from router.http.errors import UpstreamError
from router.http.limits import Limits, UpstreamLimits
from router.http.message import Request
from router.http.response import Response
from router.http.server import HttpServer
from router.http.upstream import Origin, UpstreamPool
from router.proxy.forward import Forwarder
from router.proxy.plan import Attempt, Outcome, Target
from router.proxy.retry import RetryPolicy

Script = Callable[["Raw", bytes, int], Awaitable[None]]


class Raw:
    """One upstream connection as its script sees it."""

    def __init__(self, upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.upstream, self.reader, self.writer = upstream, reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Until the router closes."""
        while await self.reader.read(65536):
            pass


@dataclass
class Upstream:
    """Records every byte; answers by its script (connection, request bytes, number of the request on it)."""

    script: Script
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def origin(self) -> Origin:
        return Origin("127.0.0.1", self.port)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        raw = Raw(self, reader, writer)
        number = 0
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.split(b"\r\n"):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                request = head + await reader.readexactly(length)
                self.requests.append(request)
                number += 1
                await self.script(raw, request, number)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@dataclass
class Plan:
    """Targets in order; keeps what the callbacks say."""

    targets: list[Target]
    log: list[str] = field(default_factory=list)
    in_flight: dict[str, int] = field(default_factory=dict)
    survivors: set[str] = field(default_factory=set)
    ended: list[Attempt] = field(default_factory=list)

    def next_target(self, excluded: set[str], last_error: UpstreamError | None) -> Target | None:
        return next((target for target in self.targets if target.id not in excluded), None)

    def response_headers(self, target: Target) -> list[tuple[bytes, bytes]]:
        return [(b"x-prefix-router-replica", target.id.encode())]

    def on_send(self, target: Target) -> None:
        self.log.append(f"send {target.id}")
        self.in_flight[target.id] = self.in_flight.get(target.id, 0) + 1

    def on_first_byte(self, target: Target, status: int, seconds: float) -> None:
        self.log.append(f"first {target.id} {status}")

    async def alive(self, target: Target) -> bool:
        return target.id in self.survivors

    def on_end(self, target: Target, attempt: Attempt) -> None:
        self.log.append(f"end {target.id} {attempt.error}")
        self.in_flight[target.id] -= 1
        self.ended.append(attempt)


@dataclass
class Router:
    server: HttpServer
    pool: UpstreamPool
    targets: list[Target] = field(default_factory=list)
    survivors: set[str] = field(default_factory=set)
    plans: list[Plan] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def port(self) -> int:
        return self.server.port

    async def talk(self, data: bytes) -> bytes:
        """Send a request that asks to close; the whole answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            async with asyncio.timeout(60):
                return await reader.read()
        finally:
            writer.close()

    async def post(self, body: bytes = b"{}", *, version: bytes = b"1.1", path: bytes = b"/v1/x") -> bytes:
        return await self.talk(
            b"POST %b HTTP/%b\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
            % (path, version, len(body), body)
        )


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every test runs on the stock loop and on uvloop, whose transports differ in detail."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def upstream() -> AsyncIterator[Callable[[Script], Awaitable[Upstream]]]:
    servers: list[asyncio.Server] = []
    loop = asyncio.get_running_loop()

    async def make(script: Script) -> Upstream:
        up = Upstream(script)

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = loop.create_task(up.serve(reader, writer))
            up.tasks.add(task)
            task.add_done_callback(up.tasks.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=4096)
        servers.append(server)
        up.port = server.sockets[0].getsockname()[1]
        all_tasks.append(up.tasks)
        return up

    all_tasks: list[set[asyncio.Task[None]]] = []
    yield make
    for server in servers:
        server.close()
    for tasks in all_tasks:
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def route() -> AsyncIterator[Callable[..., Awaitable[Router]]]:
    routers: list[Router] = []

    async def make(
        *ups: Upstream | Origin,
        limits: UpstreamLimits | None = None,
        server_limits: Limits | None = None,
        policy: RetryPolicy | None = None,
    ) -> Router:
        pool = UpstreamPool(limits)
        forwarder = Forwarder(pool, policy)

        async def handler(request: Request, response: Response) -> None:
            plan = Plan(router.targets, survivors=router.survivors)
            router.plans.append(plan)
            try:
                router.outcomes.append(await forwarder.forward(request, response, plan))
            finally:
                router.done.set()

        router = Router(HttpServer(handler, limits=server_limits), pool)
        for n, up in enumerate(ups):
            router.targets.append(Target(f"r{n}", up if isinstance(up, Origin) else up.origin))
        await router.server.start("127.0.0.1", 0)
        routers.append(router)
        return router

    yield make
    for router in routers:
        await router.server.close()
        router.pool.close()
        assert not router.pool.busy
        assert all(not count for plan in router.plans for count in plan.in_flight.values())
