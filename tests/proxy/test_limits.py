"""What bounds memory and connections: request bodies, upstream connections, vanished peers."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from support.ports import refusing_port

from router.http.limits import Limits, UpstreamLimits
from router.http.upstream import Origin, UpstreamPool

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def test_bodies_in_memory_are_bounded_and_given_back(upstream, route):
    gate = asyncio.Event()

    async def script(raw, request, number):
        await gate.wait()
        await raw.send(OK)

    up = await upstream(script)
    router = await route(up, server_limits=Limits(max_buffered_bytes=100_000, linger_s=0.1))
    first = asyncio.create_task(router.post(b"x" * 60_000))
    async with asyncio.timeout(60):
        while not up.requests:
            await asyncio.sleep(0.005)
    assert router.server.held_bytes == 60_000
    refused = await router.post(b"x" * 60_000)
    assert refused.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in refused
    small = asyncio.create_task(router.post(b"x" * 30_000))
    async with asyncio.timeout(60):
        while len(up.requests) < 2:
            await asyncio.sleep(0.005)
    gate.set()
    assert (await first).endswith(b"ok") and (await small).endswith(b"ok")
    # A body of which only a part came is given back, too.
    _, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000\r\n\r\n" + b"x" * 40_000)
    async with asyncio.timeout(60):
        while router.server.held_bytes != 40_000:
            await asyncio.sleep(0.005)
        writer.close()
        while router.server.held_bytes:
            await asyncio.sleep(0.005)


async def test_connections_to_one_replica_are_bounded_and_the_rest_goes_elsewhere(upstream, route):
    gate = asyncio.Event()

    async def script(raw, request, number):
        await gate.wait()
        await raw.send(OK)

    async def quick(raw, request, number):
        await raw.send(OK)

    up, other = await upstream(script), await upstream(quick)
    router = await route(up, other, limits=UpstreamLimits(max_per_origin=3))
    held = [asyncio.create_task(router.post()) for _ in range(3)]
    async with asyncio.timeout(60):
        while len(up.requests) < 3:
            await asyncio.sleep(0.005)
    assert (await router.post()).endswith(b"ok") and len(up.requests) == 3 and len(other.requests) == 1
    alone = await route(up, limits=UpstreamLimits(max_per_origin=1))
    last = asyncio.create_task(alone.post())
    async with asyncio.timeout(60):
        while len(up.requests) < 4:
            await asyncio.sleep(0.005)
    refused = await alone.post()
    assert refused.startswith(b"HTTP/1.1 503 ") and b"retry-after" in refused
    gate.set()
    await asyncio.gather(*held, last)
    for each in (router, alone):
        each.pool.close()
        async with asyncio.timeout(60):
            while each.pool.open:
                await asyncio.sleep(0.005)


async def test_failed_connects_leave_no_count(route):
    with refusing_port() as port:
        router = await route(Origin("127.0.0.1", port))
        for _ in range(5):
            assert (await router.post()).startswith(b"HTTP/1.1 502 ")
    assert not router.pool.open


async def test_a_vanished_peer_is_noticed_by_the_kernel(upstream, route):
    async def script(raw, request, number):
        await raw.send(OK)

    router = await route(await upstream(script))
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    async with asyncio.timeout(60):
        await reader.readuntil(b"\r\n\r\n")
    client = next(iter(router.server.connections))._transport.get_extra_info("socket")
    replica = next(iter(router.pool._idle.values()))[0]._transport.get_extra_info("socket")
    for sock in (client, replica):
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
    writer.close()


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_a_connection_made_while_this_loop_was_busy_was_made_in_time(turns):
    """Under load a turn of the loop can take longer than the timeout; the replica is not to blame."""
    listening = socket.create_server(("127.0.0.1", 0))
    pool = UpstreamPool()
    try:
        connecting = asyncio.create_task(pool.connect(Origin("127.0.0.1", listening.getsockname()[1]), 0.1))
        for _ in range(turns):
            await asyncio.sleep(0)
        time.sleep(0.3)
        connection = await connecting
        assert connection.usable
        connection.abort()
    finally:
        pool.close()
        listening.close()
