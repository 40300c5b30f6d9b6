"""The HTTP server over real sockets: framing, refusals, pipelining, timeouts, a client that leaves."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from router.http.limits import Limits
from router.http.message import Request
from router.http.response import Response
from router.http.server import HttpServer

Start = Callable[..., Awaitable[HttpServer]]
LIMITS = Limits(max_body_bytes=100_000, max_header_bytes=4096, max_target_bytes=1024, linger_s=0.2)


async def echo(request: Request, response: Response) -> None:
    body = f"{request.method} {request.target!r} ".encode() + request.body
    response.send(200, [(b"content-type", b"text/plain")], body)


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    servers: list[HttpServer] = []

    async def run(handler=echo, limits: Limits = LIMITS) -> HttpServer:
        server = HttpServer(handler, limits=limits)
        await server.start("127.0.0.1", 0)
        servers.append(server)
        return server

    yield run
    for server in servers:
        await server.close()


async def talk(port: int, data: bytes) -> bytes:
    """Send, then read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    return answer


CLOSE = b"Host: a\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\nxx", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX(: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"FOO / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: magic\r\n\r\n", 417),
        (b"GET /" + b"x" * 2000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n30000\r\n" + b"x" * 0x30000 + b"\r\n", 413),
    ],
)
async def test_refused_and_closed(start: Start, data: bytes, status: int) -> None:
    calls = []

    async def handler(request: Request, response: Response) -> None:
        calls.append(request)
        await echo(request, response)

    server = await start(handler)
    answer = await talk(server.port, data)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"connection: close" in answer and b'"error":' in answer
    assert not calls


async def test_pipelined_requests_are_served_in_order_one_at_a_time(start: Start) -> None:
    running = peak = 0

    async def slow(request: Request, response: Response) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.005)
        running -= 1
        await echo(request, response)

    server = await start(slow)
    data = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(20))
    answer = await talk(server.port, data + b"GET /last HTTP/1.1\r\n" + CLOSE + b"\r\nGET /never HTTP/1.1\r\n\r\n")
    order = [answer.index(b"'/%d'" % n) for n in range(20)]
    assert order == sorted(order) and b"/last" in answer and b"/never" not in answer and peak == 1


async def test_requests_in_pieces_and_a_fault_after_good_ones(start: Start) -> None:
    server = await start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    data = b"POST /p?q=%20 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
    data += b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\nrubbish\r\n\r\n"
    for n in range(len(data)):
        writer.write(data[n : n + 1])
        await writer.drain()
        await asyncio.sleep(0)
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    assert answer.count(b"HTTP/1.1 200") == 2 and answer.count(b"HTTP/1.1 400") == 1
    assert b"POST b'/p?q=%20' abc" in answer


async def test_expect_continue_chunked_upload_and_trailers(start: Start) -> None:
    server = await start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n" + CLOSE + b"\r\n")
    async with asyncio.timeout(60):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: v\r\n\r\n")
        answer = await reader.read()
    writer.close()
    assert answer.endswith(b"POST b'/' abcde")


async def test_head_http10_and_ignored_upgrade(start: Start) -> None:
    async def stream(request: Request, response: Response) -> None:
        response.start(200, [])
        response.write(b"ab")
        response.write(b"c")
        response.end()

    server = await start(stream)
    head = await talk(server.port, b"HEAD / HTTP/1.1\r\n" + CLOSE + b"\r\n")
    assert head.endswith(b"\r\n\r\n")
    old = await talk(server.port, b"GET / HTTP/1.0\r\n\r\n")
    assert old.endswith(b"\r\n\r\nabc") and b"transfer-encoding" not in old and b"connection: close" in old
    upgrade = await talk(
        server.port,
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nGET / HTTP/1.1\r\n" + CLOSE + b"\r\n",
    )
    assert upgrade.count(b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n") == 2


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_request_with_an_upgrade_keeps_its_body(start: Start, framing: str, whole: bool) -> None:
    """Java's HttpClient offers HTTP/2 with its first request. Its body must not be read as another request."""
    server = await start()
    inner = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    framed = b"%x\r\n%b\r\n0\r\nX-T: 1\r\n\r\n" % (len(inner), inner) if framing == "chunked" else inner
    told = b"Transfer-Encoding: chunked" if framing == "chunked" else b"Content-Length: %d" % len(inner)
    data = (
        b"POST /offer HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings%b\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n%b\r\n\r\n%b"
    )
    data = data % (b"", told, framed) + data % (b", close", told, framed)
    data += b"GET /never HTTP/1.1\r\nHost: a\r\n\r\n" if whole else b""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for piece in [data] if whole else [data[n : n + 1] for n in range(len(data))]:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    assert answer.count(b"HTTP/1.1 ") == answer.count(b"POST b'/offer' " + inner) == 2, answer


async def test_client_that_leaves_cancels_the_handler(start: Start) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(request: Request, response: Response) -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            response.write(b"nobody reads this")
            assert response.gone
            cancelled.set()
            raise

    server = await start(wait)
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    async with asyncio.timeout(60):
        await begun.wait()
        writer.close()
        await cancelled.wait()


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"GET / HTTP/1.1\r\nHos", b"HTTP/1.1 408"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nab", b"HTTP/1.1 408"),
        (b"", b""),
    ],
)
async def test_slow_clients_are_cut(start: Start, sent: bytes, expected: bytes) -> None:
    limits = Limits(header_timeout_s=0.1, body_timeout_s=0.1, keepalive_s=0.1, linger_s=0.1)
    server = await start(limits=limits)
    client = socket.create_connection(("127.0.0.1", server.port))
    client.sendall(sent)  # is there before the server's clock starts: this loop has not accepted the connection yet
    reader, writer = await asyncio.open_connection(sock=client)
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(expected) if expected else answer == b""


async def test_handler_faults(start: Start) -> None:
    async def broken(request: Request, response: Response) -> None:
        if request.path == "/late":
            response.start(200, [])
            response.write(b"part")
        raise RuntimeError("bug")

    server = await start(broken)
    assert (await talk(server.port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")).startswith(b"HTTP/1.1 500 ")
    late = await talk(server.port, b"GET /late HTTP/1.1\r\nHost: a\r\n\r\n")
    assert late.endswith(b"4\r\npart\r\n")  # no last chunk


async def test_drain_finishes_running_requests_and_closes_idle_ones(start: Start) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def handler(request: Request, response: Response) -> None:
        begun.set()
        await go.wait()
        await echo(request, response)

    server = await start(handler)
    idle_reader, idle = await asyncio.open_connection("127.0.0.1", server.port)
    busy = asyncio.create_task(talk(server.port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
    async with asyncio.timeout(60):
        await begun.wait()
        draining = asyncio.create_task(server.drain(60))
        assert await idle_reader.read() == b""
        go.set()
        assert await draining is True
        assert (await busy).startswith(b"HTTP/1.1 200")
    idle.close()


async def test_drain_delivers_a_large_answer_to_a_slow_client(start: Start) -> None:
    begun = asyncio.Event()

    async def large(request: Request, response: Response) -> None:
        begun.set()
        response.send(200, [], b"x" * 20_000_000)

    server = await start(large)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    async with asyncio.timeout(60):
        await begun.wait()
        draining = asyncio.create_task(server.drain(60))
        got = 0
        while data := await reader.read(1 << 20):
            got += len(data)
            await asyncio.sleep(0)
        assert await draining is True
    writer.close()
    assert got > 20_000_000


async def test_drain_cuts_what_outlives_the_grace(start: Start) -> None:
    begun = asyncio.Event()

    async def forever(request: Request, response: Response) -> None:
        begun.set()
        await asyncio.sleep(60)

    server = await start(forever)
    client = asyncio.create_task(talk(server.port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
    async with asyncio.timeout(60):
        await begun.wait()
        assert await server.drain(0.05) is False
    await asyncio.gather(client, return_exceptions=True)


async def test_connection_limit(start: Start) -> None:
    server = await start(limits=Limits(max_connections=1, linger_s=0.1))
    _, first = await asyncio.open_connection("127.0.0.1", server.port)
    assert (await talk(server.port, b"")).startswith(b"HTTP/1.1 503 ")
    first.close()


async def test_fuzzed_requests_never_crash_or_hang(start: Start) -> None:
    """Mutated requests: every connection ends with an answer of 2xx/4xx/5xx below 500 or 501/505, or with none."""
    rng = random.Random(7)
    seeds = [
        b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"GET /?a=b HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nGET / HTTP/1.0\r\n\r\n",
    ]
    alphabet = [b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b",", b"chunked", b"\xff", b"0", b"f" * 30, b"HTTP/1.1"]

    def mutate() -> bytes:
        data = bytearray(rng.choice(seeds) + (rng.choice(seeds) if rng.random() < 0.3 else b""))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data) + 1)
            if rng.random() < 0.5:
                data[at:at] = rng.choice(alphabet)
            elif rng.random() < 0.5:
                del data[at : at + rng.randint(1, 8)]
            else:
                data[at : at + 1] = bytes([rng.randrange(256)])
        return bytes(data)

    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    server = await start(limits=Limits(header_timeout_s=0.2, body_timeout_s=0.2, keepalive_s=0.2, linger_s=0.05))

    async def one(data: bytes) -> None:
        try:
            answer = await talk(server.port, data)
        except ConnectionError:
            return
        statuses = [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:] if part[:3].isdigit()]
        assert all(status in (100, 200, 400, 408, 413, 414, 417, 431, 501, 505) for status in statuses), (data, answer)

    count = int(os.environ.get("PREFIX_ROUTER_FUZZ", "600"))
    for begin in range(0, count, 100):
        await asyncio.gather(*(one(mutate()) for _ in range(min(100, count - begin))))
    assert not faults
    assert (await talk(server.port, b"GET / HTTP/1.1\r\n" + CLOSE + b"\r\n")).startswith(b"HTTP/1.1 200")


async def test_clients_that_wait_to_be_accepted_are_taken_together(start):
    """One a turn of the loop, as libuv does, is too slow under load: the queue overflows, clients are reset."""
    server = await start()
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
    try:
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(server.connections) == 100
        loop = asyncio.get_running_loop()
        answers = [await loop.run_in_executor(None, client.recv, 4096) for client in clients]
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
    finally:
        for client in clients:
            client.close()


async def test_a_server_that_stopped_takes_no_connection(start):
    server = await start()
    port = server.port
    await talk(port, b"GET / HTTP/1.1\r\n" + CLOSE + b"\r\n")
    await server.drain(1.0)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
