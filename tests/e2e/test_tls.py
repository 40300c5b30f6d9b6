"""TLS in and out of the whole router, with certificates made for the test; replicas that ask for one of ours."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import openai
import pytest
from support.certificates import Authority, Pair
from support.waiting import until

from replica.simulator.config import MODEL_DIR
from router.app import App
from router.config import ConfigError, load_config
from router.fleet.replica import Health
from router.http.tls import server_context


@asynccontextmanager
async def behind_tls(url: str, pair: Pair, client_ca: str | None) -> AsyncIterator[str]:
    """The address of an https front that passes bytes on to `url`; with client_ca it wants a certificate."""
    to = urlsplit(url)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection(to.hostname, to.port)
        await asyncio.gather(pump(reader, outer), pump(inner, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context(pair.cert, pair.key, client_ca))
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


async def start(stack: AsyncExitStack, url: str, **settings: object) -> App:
    overrides = {
        "listen.port": 0, "admin.port": 0, "health.interval_s": 0.1, "replicas": [{"url": url}], **settings
    }  # fmt: skip
    app = App(load_config(overrides=list(overrides.items())), model_files=str(MODEL_DIR))
    await app.start()
    stack.push_async_callback(app.stop)
    return app


async def test_mtls_on_both_sides_with_the_openai_client(build, stack, tmp_path: Path) -> None:
    system = await build(replicas=1, settings={"replicas": []})
    inside, outside = Authority(tmp_path / "in"), Authority(tmp_path / "out")
    engine, ours = inside.issue("engine.internal"), inside.issue("router")
    front, agent = outside.issue("127.0.0.1"), outside.issue("agent")
    url = await stack.enter_async_context(behind_tls(system.fleet[0].url, engine, inside.file))
    tls = {"cert_file": front.cert, "key_file": front.key}
    app = await start(stack, url, **{
        "listen.tls": {**tls, "client_ca_file": outside.file}, "admin.tls": tls,
        "proxy.tls": {
            "ca_file": inside.file, "cert_file": ours.cert, "key_file": ours.key, "server_name": "engine.internal"
        },
    })  # fmt: skip
    await until(lambda: [r.health for r in app.fleet] == [Health.UP], "probes get through")
    trust = ssl.create_default_context(cafile=outside.file)
    base = f"https://127.0.0.1:{app.server.port}/v1"
    anonymous = openai.DefaultAsyncHttpxClient(verify=trust)
    async with openai.AsyncOpenAI(base_url=base, api_key="x", max_retries=0, http_client=anonymous) as client:
        with pytest.raises(openai.APIConnectionError):
            await client.models.list()
    known = ssl.create_default_context(cafile=outside.file)
    known.load_cert_chain(agent.cert, agent.key)
    async with openai.AsyncOpenAI(
        base_url=base, api_key="x", max_retries=0, http_client=openai.DefaultAsyncHttpxClient(verify=known)
    ) as client:
        stream = await client.chat.completions.create(
            model="sim", messages=[{"role": "user", "content": "hi"}], max_tokens=5, stream=True
        )
        assert [chunk.choices[0].finish_reason async for chunk in stream if chunk.choices][-1] == "length"
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"https://127.0.0.1:{app.admin_port}/metrics", ssl=trust) as page,
    ):
        assert page.status == 200


@pytest.mark.parametrize("wrong", ["other authority", "other name", "no client certificate"])
async def test_a_replica_that_cannot_be_trusted_gets_nothing(build, stack, tmp_path: Path, wrong: str) -> None:
    system = await build(replicas=1, simulator={"record_requests": 10_000}, settings={"replicas": []})
    inside, other = Authority(tmp_path / "in"), Authority(tmp_path / "other")
    engine, ours = inside.issue("engine.internal"), inside.issue("router")
    url = await stack.enter_async_context(behind_tls(system.fleet[0].url, engine, inside.file))
    settings = {"ca_file": inside.file, "server_name": "engine.internal", "cert_file": ours.cert, "key_file": ours.key}
    settings |= {
        "other authority": {"ca_file": other.file},
        "other name": {"server_name": "engine.elsewhere"},
        "no client certificate": {"cert_file": None, "key_file": None},
    }[wrong]
    app = await start(stack, url, **{"proxy.tls": settings})
    await until(lambda: "can't be used" in repr(app.ready()) or "not probed" not in repr(app.ready()), "it was probed")
    assert not app.ready()[0]
    assert not system.fleet[0].requests


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    good = Authority(tmp_path / "ca").issue("a")
    other = Authority(tmp_path / "cb").issue("b")
    empty = tmp_path / "empty"
    empty.write_text("")
    for settings, said in (
        (
            {"listen.tls": {"cert_file": "/nonexistent", "key_file": good.key}},
            "listen.tls.cert_file: /nonexistent can't",
        ),
        ({"listen.tls": {"cert_file": good.cert, "key_file": other.key}}, "listen.tls.cert_file: "),
        ({"admin.tls": {"cert_file": good.cert, "key_file": good.key, "client_ca_file": str(empty)}}, "client_ca_file"),
        ({"proxy.tls": {"ca_file": str(empty)}}, "proxy.tls.ca_file: "),
        ({"keys.file": str(empty)}, f"keys.file: {empty}: must be a list"),
        ({"keys.env": "NOT_SET_ANYWHERE"}, "keys.env: the environment variable NOT_SET_ANYWHERE is not set"),
        ({"admin.token_file": str(empty)}, "admin.token_file: "),
        ({"proxy.api_key_env": "NOT_SET_ANYWHERE"}, "proxy.api_key_env: "),
    ):
        with pytest.raises(ConfigError) as caught:
            App(load_config(overrides=list(settings.items())))
        assert said in str(caught.value)
