"""The forwarder over real sockets: byte identity, keep-alive, faults in every phase, cancellation, backpressure."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import time
from contextlib import ExitStack

import pytest
from support.ports import refusing_port

from router.http.framing import LAST_CHUNK, ChunkScanner, chunk
from router.http.limits import Limits, UpstreamLimits
from router.http.message import Request
from router.http.upstream import Origin
from router.proxy.headers import request_head
from router.proxy.plan import Target
from router.proxy.retry import RetryPolicy

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Engine: e\r\n\r\nok"
SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,'
    b'"prompt_tokens_details":{"cached_tokens":8}}}\n\n'
)


async def ok(raw, request, number):
    await raw.send(OK)


def test_an_address_in_the_host_header_is_in_brackets():
    """Of a client that sent none."""
    request = Request("GET", b"/", [], version="1.0")
    for host, told in (
        ("fd00::1", b"[fd00::1]:8000"),
        ("10.0.0.7", b"10.0.0.7:8000"),
        ("b\u00fccher.x", b"xn--bcher-kva.x:8000"),
    ):
        assert b"\r\nhost: %b\r\n" % told in request_head(request, Origin(host, 8000), [])


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


async def test_bytes_reach_the_replica_unchanged(upstream, route):
    up = await upstream(ok)
    router = await route(up)
    body = b'{"z":1, "a" : "\xc3\xa9", "unknown":{"b":[1.0,1e5]}}' * 20_000
    answer = await router.talk(
        b"POST /v1/chat/completions?x=%%2F&y HTTP/1.1\r\nhOsT: Fleet.Example\r\nX-B: 2\r\nx-a:  1 \r\nX-B: \xff\r\n"
        b"Connection: close, X-Hop, Content-Length\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nProxy-Foo: 1\r\n"
        b"x-prefix-router-replica: evil\r\nAccept-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    assert up.requests == [
        b"POST /v1/chat/completions?x=%%2F&y HTTP/1.1\r\nhOsT: Fleet.Example\r\nX-B: 2\r\nx-a: 1\r\nX-B: \xff\r\n"
        b"Accept-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    ]
    assert answer == (
        b"HTTP/1.1 200 OK\r\nX-Engine: e\r\nx-prefix-router-replica: r0\r\n"
        b"content-length: 2\r\nconnection: close\r\n\r\nok"
    )


async def test_chunked_upload_goes_out_with_content_length(upstream, route):
    up = await upstream(ok)
    router = await route(up)
    await router.talk(
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"
    )
    assert up.requests == [b"POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 4\r\n\r\nabcd"]


async def test_connection_is_reused_and_unexpected_bytes_end_it(upstream, route):
    async def script(raw, request, number):
        await raw.send(OK + (b"garbage" if number == 3 else b""))

    up = await upstream(script)
    router = await route(up)
    for _ in range(5):
        assert body_of(await router.post()) == b"ok"
    assert up.connections == 2


async def test_stale_keep_alive_is_never_seen(upstream, route):
    async def close_after_each(raw, request, number):
        await raw.send(OK)
        raw.writer.close()

    async def close_at_reuse(raw, request, number):
        if number == 1:
            await raw.send(OK)
        else:
            raw.reset()

    for script in (close_after_each, close_at_reuse):
        up = await upstream(script)
        router = await route(up)
        for _ in range(6):
            assert body_of(await router.post()) == b"ok"
        assert all(len(outcome.attempts) == 1 and outcome.error is None for outcome in router.outcomes)


async def test_idle_connections_are_dropped_before_the_engine_does(upstream, route):
    kept = 0.05
    dropped = asyncio.Event()

    async def script(raw, request, number):
        began = time.monotonic()
        await raw.send(OK)
        await raw.gone()
        assert time.monotonic() - began >= kept, "it was not kept at all"
        dropped.set()

    up = await upstream(script)
    router = await route(up, limits=UpstreamLimits(keepalive_s=kept))
    await router.post()
    async with asyncio.timeout(60):
        await dropped.wait()
    assert not router.pool.idle_count


async def hang(raw, request, number):
    await raw.gone()


async def kill_before_head(raw, request, number):
    raw.reset()


async def kill_in_head(raw, request, number):
    await raw.send(b"HTTP/1.1 200 OK\r\nContent-Le")
    raw.writer.close()


async def kill_before_body(raw, request, number):
    await raw.send(SSE)
    raw.writer.close()


async def not_http(raw, request, number):
    await raw.send(b"SSH-2.0-x\r\n\r\n")


async def busy(raw, request, number):
    await raw.send(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy")


async def bare_line_feeds(raw, request, number):
    await raw.send(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok")
    await raw.gone()


async def long_head_at_once(raw, request, number):
    await raw.send(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 70_000 + b"\r\nContent-Length: 2\r\n\r\nok")


FAULTS = [hang, kill_before_head, kill_in_head, kill_before_body, not_http, busy, bare_line_feeds, long_head_at_once]


@pytest.mark.parametrize("fault", FAULTS)
async def test_failover_before_the_first_byte(upstream, route, fault):
    bad, good = await upstream(fault), await upstream(ok)
    router = await route(bad, good, limits=UpstreamLimits(first_byte_timeout_s=1 if fault is hang else 300))
    answer = await router.post()
    assert body_of(answer) == b"ok" and b"x-prefix-router-replica: r1" in answer
    assert [entry.partition(" ")[0] for entry in router.plans[0].log if "r0" in entry][-1] == "end"
    assert router.outcomes[0].target_id == "r1" and router.outcomes[0].attempts[0].error is not None


async def test_any_number_of_dead_replicas_within_max_attempts(upstream, route):
    with ExitStack() as stack:
        dead = [Origin("127.0.0.1", stack.enter_context(refusing_port())) for _ in range(3)]
        router = await route(*dead, await upstream(ok), policy=RetryPolicy(max_attempts=4))
        assert body_of(await router.post()) == b"ok"


async def test_poison_request_reaches_two_replicas_at_most(upstream, route):
    ups = [await upstream(kill_before_head) for _ in range(4)]
    router = await route(*ups, policy=RetryPolicy(max_attempts=10))
    answer = await router.post()
    assert answer.startswith(b"HTTP/1.1 502 ") and b"r0" in answer and b"r1" in answer
    assert [len(up.requests) for up in ups] == [1, 1, 0, 0]


async def test_a_replica_that_outlives_a_lost_connection_acquits_the_request(upstream, route):
    ups = [await upstream(kill_before_head) for _ in range(3)]
    router = await route(*ups, await upstream(ok))
    router.survivors.update(("r0", "r1", "r2"))
    assert body_of(await router.post()) == b"ok"
    router.survivors.clear()
    assert (await router.post()).startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize(("survivors", "status"), [({"r0"}, 200), ({"r1"}, 200), (set(), 502)])
async def test_only_those_that_died_under_a_request_speak_against_it(upstream, route, survivors, status):
    """Two connections are lost. If only one of the replicas is gone, the third is tried."""
    ups = [await upstream(kill_before_head) for _ in range(2)]
    router = await route(*ups, await upstream(ok))
    router.survivors.update(survivors)
    assert (await router.post()).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(("fault", "status"), [(hang, 504), (kill_before_head, 502), (busy, 503)])
async def test_exhausted(upstream, route, fault, status):
    up = await upstream(fault)
    router = await route(up, limits=UpstreamLimits(first_byte_timeout_s=0.1 if fault is hang else 300))
    answer = await router.post()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    if fault is busy:
        assert body_of(answer) == b"busy"  # the replica's own answer, when there is no other to ask
    else:
        assert json.loads(body_of(answer))["error"]["code"] == status


async def test_no_replica(route):
    router = await route()
    answer = await router.post()
    assert answer.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in answer
    assert router.outcomes[0].error == "no_replica"


async def test_total_deadline(upstream, route):
    ups = [await upstream(hang) for _ in range(3)]
    router = await route(*ups, limits=UpstreamLimits(keepalive_s=0.1), policy=RetryPolicy(total_s=1, max_timeouts=5))
    async with asyncio.timeout(60):
        assert (await router.post()).startswith(b"HTTP/1.1 504 ")
    assert sum(len(up.requests) for up in ups) == 1


async def test_stream_passes_byte_for_byte_with_usage(upstream, route):
    events = [
        b": ping\n\n",
        b'data: {"choices":[{"delta":{"content":"\\"usage\\":{1}"}}]}\n\n',
        USAGE,
        b"data: [DONE]\n\n",
    ]

    async def script(raw, request, number):
        await raw.send(SSE)
        for event in events:
            data = chunk(event)
            await raw.send(data[:5])
            await asyncio.sleep(0)
            await raw.send(data[5:])
        await raw.send(LAST_CHUNK)

    up = await upstream(script)
    router = await route(up)
    assert body_of(await router.post()) == b"".join(chunk(event) for event in events) + LAST_CHUNK
    assert body_of(await router.post(version=b"1.0")) == b"".join(events)
    for outcome in router.outcomes:
        assert outcome.usage is not None and outcome.usage.cached_tokens == 8 and outcome.usage.prompt_tokens == 9
        assert outcome.events == 4 and outcome.ttft_s is not None and outcome.error is None
    assert up.connections == 1


@pytest.mark.parametrize(("end", "told"), [(b"\n\n", True), (b"\n", False), (b"", False)])
async def test_a_closing_comment_is_never_put_into_an_event(upstream, route, end, told):
    async def script(raw, request, number):
        await raw.send(SSE + chunk(b"data: 1\n\n") + chunk(b"data: [DONE]" + end) + LAST_CHUNK)

    up = await upstream(script)
    router = await route(up)
    router.targets[:] = [Target("r0", up.origin, closing=lambda usage: b": closing\n\n")]
    payload = ChunkScanner().feed(body_of(await router.post()))
    assert payload == b"data: 1\n\ndata: [DONE]" + end + (b": closing\n\n" if told else b"")


EVENT = b"data: 1\n\n"


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize(
    ("framing", "pieces"),
    [
        ("chunked", [b"data: 1\n", b"\n"]),
        ("chunked", [b"data: 1\r\n\r", b"\n"]),
        ("chunked", [EVENT[n : n + 1] for n in range(len(EVENT))]),
        ("close", [b"data: 1\n", b"\n"]),
        ("close", [b"data: 1\r\n", b"\r", b"\n"]),
        ("gzip", [gzip.compress(EVENT)]),
    ],
)
async def test_an_event_goes_on_as_soon_as_it_is_whole(upstream, route, framing, pieces, version):
    seen = asyncio.Event()
    coding = {"chunked": b"transfer-encoding: chunked", "gzip": b"content-encoding: gzip", "close": b"x-a: b"}[framing]

    async def script(raw, request, number):
        await raw.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n%b\r\n\r\n" % coding)
        for piece in pieces:
            await raw.send(chunk(piece) if framing == "chunked" else piece)
            for _ in range(20):  # pieces are to come one by one
                await asyncio.sleep(0)
        await seen.wait()  # the rest of the answer is not made yet

    router = await route(await upstream(script))
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(b"POST / HTTP/%b\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}" % version)
    got, scanner = b"", ChunkScanner()
    async with asyncio.timeout(60):
        await reader.readuntil(b"\r\n\r\n")
        while got != b"".join(pieces):
            data = await reader.read(65536)
            got += scanner.feed(data) if version == b"1.1" else data
    seen.set()
    writer.close()


@pytest.mark.parametrize("tail", [b"", b"1f\r\ndata: {", b"1"])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_stream_that_breaks_ends_with_an_error_event(upstream, route, tail, version):
    async def script(raw, request, number):
        await raw.send(SSE + chunk(b"data: 1\n\n") + tail)
        raw.writer.close()

    router = await route(await upstream(script), await upstream(ok))
    body = body_of(await router.post(version=version))
    if version == b"1.1":
        assert body.startswith(chunk(b"data: 1\n\n")) and body.endswith(LAST_CHUNK)
        assert b"data: {\r\n" not in body
        size, _, rest = body[len(chunk(b"data: 1\n\n")) :].partition(b"\r\n")
        payload = rest[: int(size, 16)]
    else:
        payload = body.removeprefix(b"data: 1\n\n")
    first, second, empty = payload.split(b"\n\n")
    assert json.loads(first.removeprefix(b"data: "))["error"]["code"] == 502
    assert second == b"data: [DONE]" and empty == b""
    assert router.outcomes[0].error == "cut" and router.plans[0].log[-1] == "end r0 cut"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 100\r\n\r\ndata: 1\n\n",
    ],
)
async def test_body_that_breaks_never_ends_cleanly(upstream, route, head):
    async def script(raw, request, number):
        await raw.send(head)
        await asyncio.sleep(0.01)
        raw.writer.close()

    router = await route(await upstream(script))
    answer = await router.post()
    assert answer.startswith(b"HTTP/1.1 200") and not answer.endswith(LAST_CHUNK)
    assert len(body_of(answer)) < 100 and b"error" not in answer


async def test_http10_client_sees_a_broken_body_as_a_reset(upstream, route):
    async def script(raw, request, number):
        await raw.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await asyncio.sleep(0.01)
        raw.writer.close()

    router = await route(await upstream(script))
    with pytest.raises(ConnectionResetError):
        await router.post(version=b"1.0")


async def test_stalled_stream_ends_with_an_error_event(upstream, route):
    async def script(raw, request, number):
        await raw.send(SSE + chunk(b"data: 1\n\n"))
        await raw.gone()

    router = await route(await upstream(script), limits=UpstreamLimits(idle_timeout_s=0.1))
    assert (await router.post()).endswith(b"data: [DONE]\n\n\r\n" + LAST_CHUNK)


async def test_error_event_of_the_engine_is_a_failure(upstream, route):
    async def script(raw, request, number):
        error = b'data: {"error": {"message": "EngineCore", "code": 500}}\n\n'
        await raw.send(SSE + chunk(b"data: 1\n\n") + chunk(error) + chunk(b"data: [DONE]\n\n") + LAST_CHUNK)

    router = await route(await upstream(script))
    await router.post()
    assert router.outcomes[0].error == "engine_error"


async def test_until_close_1xx_and_bodyless_answers(upstream, route):
    async def script(raw, request, number):
        if b"/close" in request:
            await raw.send(b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\nuntil close")
            raw.writer.close()
        elif b"HEAD" in request:
            await raw.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n")
        else:
            await raw.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    up = await upstream(script)
    router = await route(up)
    assert body_of(await router.post(path=b"/close")) == b"b\r\nuntil close\r\n" + LAST_CHUNK
    head = await router.talk(b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"content-length: 50" in head and body_of(head) == b""
    answer = await router.post()
    assert answer.startswith(b"HTTP/1.1 204") and body_of(answer) == b"" and b"content-length" not in answer
    assert up.connections == 2


@pytest.mark.parametrize("streaming", [True, False])
async def test_client_that_leaves_closes_the_upstream(upstream, route, streaming):
    gone = asyncio.Event()

    async def script(raw, request, number):
        if streaming:
            await raw.send(SSE + chunk(b"data: 1\n\n"))
        raw.upstream.requests.append(b"waiting")
        await raw.gone()
        gone.set()

    up = await upstream(script)
    router = await route(up, await upstream(ok))
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    async with asyncio.timeout(60):
        if streaming:
            await reader.readuntil(b"data: 1\n\n")
        while b"waiting" not in up.requests:
            await asyncio.sleep(0.005)
        writer.close()
        await gone.wait()
        await router.done.wait()
    assert router.outcomes[0].client_gone and router.plans[0].in_flight == {"r0": 0}
    assert router.plans[0].log[-1] == "end r0 client_gone"


async def test_slow_reader_stops_the_upstream(upstream, route):
    """100 MB stream to a client that does not read: little of it leaves the replica; then all of it arrives."""
    sent = 0
    event = chunk(b"data: " + b"x" * 9994 + b"\n\n")
    total = 10_000

    async def script(raw, request, number):
        nonlocal sent
        await raw.send(SSE)
        for _ in range(total):
            await raw.send(event)
            sent += len(event)
        await raw.send(LAST_CHUNK)

    router = await route(await upstream(script))
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port, limit=65536)
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    last = -1
    async with asyncio.timeout(240):
        while sent != last or sent == 0:
            last = sent
            await asyncio.sleep(0.2)
        assert sent < 40_000_000  # socket buffers of both hops (up to 6 MB each way), not the stream
        connection = next(iter(router.server.connections))
        assert connection._transport.get_write_buffer_size() < 1_000_000
        got = 0
        while data := await reader.read(1 << 20):
            got += len(data)
    writer.close()
    assert got > total * len(event)


async def test_reader_that_never_reads_is_dropped(upstream, route):
    async def script(raw, request, number):
        await raw.send(SSE)
        while True:
            await raw.send(chunk(b"data: " + b"x" * 100_000 + b"\n\n"))

    router = await route(await upstream(script), server_limits=Limits(write_timeout_s=0.2))
    _, writer = await asyncio.open_connection("127.0.0.1", router.port, limit=1024)
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    async with asyncio.timeout(60):
        await router.done.wait()
    assert router.outcomes[0].client_gone
    writer.close()


async def test_two_thousand_streams_at_once(upstream, route):
    gate = asyncio.Event()
    arrived = 0

    async def script(raw, request, number):
        nonlocal arrived
        arrived += 1
        if arrived == 2000:
            gate.set()
        await raw.send(SSE + chunk(b"data: 1\n\n"))
        await gate.wait()
        await raw.send(chunk(b"data: [DONE]\n\n") + LAST_CHUNK)

    router = await route(await upstream(script))

    async def one() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
        answer = await reader.read()
        writer.close()
        return answer

    async with asyncio.timeout(240):
        answers = await asyncio.gather(*(one() for _ in range(2000)))
    assert all(answer.endswith(b"data: [DONE]\n\n\r\n" + LAST_CHUNK) for answer in answers)
    assert not router.pool.busy


async def test_fuzzed_answers_never_hang_or_crash_the_router(upstream, route):
    rng = random.Random(11)
    seeds = [OK, SSE + chunk(b"data: 1\n\n") + chunk(USAGE) + LAST_CHUNK, b"HTTP/1.1 103 E\r\n\r\n" + OK]
    parts = [b"\r\n", b"\n", b"\0", b":", b"chunked", b"ffffffff", b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"\xff"]

    async def script(raw, request, number):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.randint(0, 4)] = rng.choice(parts)
        await raw.send(bytes(data))
        raw.writer.close()

    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    up = await upstream(script)
    router = await route(up, limits=UpstreamLimits(first_byte_timeout_s=0.5, idle_timeout_s=0.5))
    for _ in range(int(os.environ.get("PREFIX_ROUTER_FUZZ", "300")) // 50):
        for answer in await asyncio.gather(*(router.post() for _ in range(50)), return_exceptions=True):
            assert isinstance(answer, ConnectionError) or not answer.startswith(b"HTTP/1.1 500 Internal"), answer
    assert not faults and all(outcome.error != "internal" for outcome in router.outcomes)
