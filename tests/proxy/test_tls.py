"""TLS on both sides, with a certificate made for the test."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from router.http.server import HttpServer
from router.http.upstream import Origin, UpstreamPool
from router.proxy.forward import Forwarder
from router.proxy.plan import Target


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command to make a certificate")
async def test_https_in_and_out(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    await asyncio.to_thread(subprocess.run, command.split() + names, check=True, capture_output=True)
    inward = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    inward.load_cert_chain(cert, key)
    outward = ssl.create_default_context(cafile=str(cert))

    async def engine(request, response) -> None:
        response.start(200, [])
        response.write(request.body)
        response.end()

    replica = HttpServer(engine)
    await replica.start("127.0.0.1", 0, ssl=inward)
    trusted = Target("r0", Origin("127.0.0.1", replica.port, outward))
    distrusted = Target("bad", Origin("127.0.0.1", replica.port, ssl.create_default_context()))
    pool = UpstreamPool()
    forwarder = Forwarder(pool)

    class Plan:
        def next_target(self, excluded, last_error):
            return next((target for target in (distrusted, trusted) if target.id not in excluded), None)

        def response_headers(self, target):
            return []

        def on_send(self, target): ...

        def on_first_byte(self, target, status, seconds): ...

        def on_end(self, target, attempt): ...

    outcomes = []

    async def handler(request, response) -> None:
        outcomes.append(await forwarder.forward(request, response, Plan()))

    router = HttpServer(handler)
    await router.start("127.0.0.1", 0, ssl=inward)
    body = b"z" * 300_000
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port, ssl=outward)
        writer.write(
            b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        answer = await reader.read()
        writer.close()
    assert answer.count(b"z") == len(body) and answer.endswith(b"0\r\n\r\n")
    assert [attempt.error for attempt in outcomes[0].attempts] == ["connect", None]
    await router.close()
    pool.close()
    await replica.close()
