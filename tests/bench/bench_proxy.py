"""CPU of the bare data plane: server + forwarder in a process of its own, backend and client in others.

    python tests/bench/bench_proxy.py [--seconds 5] [--connections 16] [--streams 64] [--loop uvloop|asyncio]

Prints user+sys microseconds of the router's process per request (2 kB and 64 kB bodies, small JSON answer) and per
streamed event (an event per 10 ms and stream). Compare with the cost table of the peers on a machine of your own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import resource
import time
from multiprocessing.connection import Connection
from typing import Any

import uvloop

EVENT = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,' + (
    b'"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}\n\n'
)
ANSWER = json.dumps(
    {"choices": [{"message": {"content": "x" * 300}}], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}
).encode()


def run(loop_name: str, main: Any) -> None:
    factory = uvloop.new_event_loop if loop_name == "uvloop" else None
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


def pin(core: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setaffinity(0, {core % (os.cpu_count() or 1)})


class Backend(asyncio.Protocol):
    """Answers POST /stream?n with n paced events, anything else with ANSWER; parses as little as it can."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        at = self.buffer.lower().find(b"content-length: ")
        length = int(self.buffer[at + 16 : self.buffer.index(b"\r\n", at)])
        if len(self.buffer) < end + 4 + length:
            return
        first = self.buffer[:64]
        self.buffer = b""
        if b"/stream?" in first:
            count = int(first.partition(b"?")[2].split()[0])
            self.transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            self.chunk = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
            self.event(count, asyncio.get_running_loop().time())
        else:
            self.transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (len(ANSWER), ANSWER)
            )

    def event(self, left: int, due: float) -> None:
        if self.transport.is_closing():
            return
        if not left:
            self.transport.write(b"0\r\n\r\n")
            return
        self.transport.write(self.chunk)
        asyncio.get_running_loop().call_at(due + 0.01, self.event, left - 1, due + 0.01)


def backend(pipe: Connection) -> None:
    pin(0)

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    run("uvloop", main())


def router(pipe: Connection, backend_port: int, loop_name: str) -> None:
    pin(1)
    from router.http.server import HttpServer
    from router.http.upstream import Origin, UpstreamPool
    from router.proxy.forward import Forwarder
    from router.proxy.plan import Target

    target = Target("r0", Origin("127.0.0.1", backend_port))

    class Plan:
        def next_target(self, excluded: set[str], last_error: object) -> Target | None:
            return None if excluded else target

        def response_headers(self, target: Target) -> list[tuple[bytes, bytes]]:
            return [(b"x-prefix-router-replica", b"r0"), (b"x-prefix-router-reason", b"bench")]

        def on_send(self, target: Target) -> None: ...
        def on_first_byte(self, target: Target, status: int, seconds: float) -> None: ...
        def on_end(self, target: Target, attempt: object) -> None: ...

    async def main() -> None:
        forwarder = Forwarder(UpstreamPool())
        plan = Plan()

        async def handler(request: Any, response: Any) -> None:
            await forwarder.forward(request, response, plan)

        server = HttpServer(handler)
        await server.start("127.0.0.1", 0)
        pipe.send(server.port)
        loop = asyncio.get_running_loop()

        def report() -> None:
            pipe.recv()
            usage = resource.getrusage(resource.RUSAGE_SELF)
            pipe.send((usage.ru_utime + usage.ru_stime, usage.ru_maxrss))

        loop.add_reader(pipe.fileno(), report)
        await asyncio.Event().wait()

    run(loop_name, main())


class Client(asyncio.Protocol):
    """One keep-alive connection that sends the next request when an answer is whole."""

    def __init__(self, request: bytes, last: bytes, state: dict[str, Any]) -> None:
        self.request, self.last, self.state = request, last, state
        self.tail = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.begun = time.perf_counter()
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.state["events"] += data.count(b"data: {")
        self.tail = (self.tail + data)[-len(self.last) :]
        if self.tail == self.last:
            self.tail = b""
            now = time.perf_counter()
            self.state["latencies"].append(now - self.begun)
            if now < self.state["until"]:
                self.begun = now
                self.transport.write(self.request)
            else:
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.state["open"] -= 1
        if not self.state["open"]:
            self.state["done"].set()


async def load(port: int, request: bytes, last: bytes, connections: int, seconds: float) -> dict[str, Any]:
    state: dict[str, Any] = {"events": 0, "latencies": [], "open": connections, "done": asyncio.Event()}
    state["until"] = time.perf_counter() + seconds
    loop = asyncio.get_running_loop()
    for _ in range(connections):
        await loop.create_connection(lambda: Client(request, last, state), "127.0.0.1", port)
    await state["done"].wait()
    return state


def post(path: bytes, size: int) -> bytes:
    body = b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * (size - 55) + b'"}]}'
    headers = (
        b"Host: a\r\nContent-Type: application/json\r\nAccept: */*\r\nAuthorization: Bearer x\r\nUser-Agent: bench\r\n"
    )
    return b"POST %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (path, headers, len(body), body)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    backend_pipe, backend_end = context.Pipe()
    router_pipe, router_end = context.Pipe()
    processes = [context.Process(target=backend, args=(backend_end,), daemon=True)]
    processes[0].start()
    backend_port = backend_pipe.recv()
    processes.append(context.Process(target=router, args=(router_end, backend_port, args.loop), daemon=True))
    processes[1].start()
    port = router_pipe.recv()
    pin(0)

    def used() -> tuple[float, int]:
        router_pipe.send("report")
        cpu, rss = router_pipe.recv()
        return float(cpu), int(rss)

    def measure(name: str, request: bytes, last: bytes, connections: int, *, events: bool) -> None:
        run("uvloop", load(port, request, last, connections, 0.5))
        before, _ = used()
        holder: list[dict[str, Any]] = []

        async def once() -> None:
            holder.append(await load(port, request, last, connections, args.seconds))

        run("uvloop", once())
        after, rss = used()
        state = holder[0]
        count = state["events"] if events else len(state["latencies"])
        latencies = sorted(state["latencies"])
        p50, p99 = latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.99)]
        print(
            f"{name:16} {(after - before) / count * 1e6:8.1f} us CPU each   n={count:7}   "
            f"p50 {p50 * 1e3:.2f} ms p99 {p99 * 1e3:.2f} ms   peak RSS {rss / 1024:.0f} MB"
        )

    measure("2 kB request", post(b"/v1/x", 2000), ANSWER[-20:], args.connections, events=False)
    measure("64 kB request", post(b"/v1/x", 64_000), ANSWER[-20:], args.connections, events=False)
    measure("streamed event", post(b"/stream?200", 2000), b"\r\n0\r\n\r\n", args.streams, events=True)
    for process in processes:
        process.terminate()


if __name__ == "__main__":
    main()
