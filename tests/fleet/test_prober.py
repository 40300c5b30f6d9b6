"""Health: replicas join, go down and come back as their engine answers; over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web
from support import waiting

from router.fleet.fleet import Fleet
from router.fleet.prober import Prober
from router.fleet.replica import Health, Replica


class Engine:
    """A vLLM-like server whose health can be switched."""

    def __init__(self) -> None:
        self.healthy = True
        self.models = ["m"]
        self.url = ""
        self.rest: dict[str, dict[str, bool]] = {}
        self.metrics = ""
        app = web.Application()
        app.router.add_get("/version", self._version)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/{name:is_.*}", self._rest)
        self._runner = web.AppRunner(app)

    async def start(self, port: int = 0) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "1"})

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in self.models]})

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text="vllm:num_requests_running 4\nvllm:num_requests_waiting 2\n" + self.metrics)

    async def _rest(self, request: web.Request) -> web.Response:
        said = self.rest.get(request.path)
        return web.Response(status=404) if said is None else web.json_response(said)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    server = Engine()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def joined() -> list[str]:
    return []


@pytest.fixture
async def prober(joined: list[str]) -> AsyncIterator[Prober]:
    async def on_join(replica: Replica) -> None:
        joined.append(replica.id)

    prober = Prober(on_join, interval_s=0.05, timeout_s=2, failures=2, load_interval_s=0.05)
    yield prober
    await prober.close()


async def until(condition: Callable[[], bool]) -> None:
    await waiting.until(condition, "the prober has noticed")


async def test_a_replica_joins_goes_down_and_comes_back(engine: Engine, prober: Prober, joined: list[str]) -> None:
    replica = Replica("r", engine.url)
    prober.watch(replica)
    await until(lambda: replica.health is Health.UP and replica.reported is not None)
    assert replica.serves("m") and not replica.serves("x")
    assert replica.reported is not None and (replica.reported.running, replica.reported.waiting) == (4, 2)
    assert joined == ["r"]
    engine.healthy = False
    await until(lambda: replica.health is Health.DOWN)
    assert "HTTP 503" in replica.reason
    engine.healthy = True
    engine.models = ["m", "alias"]
    await until(lambda: replica.health is Health.UP)
    assert joined == ["r", "r"], "asked again: it may have restarted with other settings"
    assert replica.serves("alias")


async def test_a_replica_that_never_answered_stays_new_and_says_why(prober: Prober, joined: list[str]) -> None:
    replica = Replica("r", "http://127.0.0.1:1")
    prober.watch(replica)
    await until(lambda: "127.0.0.1:1" in replica.reason)
    assert replica.health is Health.NEW
    assert joined == []


async def test_a_refused_connection_takes_a_replica_out_at_once_and_a_probe_brings_it_back(
    engine: Engine, prober: Prober
) -> None:
    replica = Replica("r", engine.url)
    prober.watch(replica)
    await until(lambda: replica.health is Health.UP)
    prober.suspect(replica, "connection refused")
    assert replica.health is Health.DOWN
    await until(lambda: replica.health is Health.UP)


async def test_a_draining_replica_is_not_brought_back_by_its_probes(engine: Engine, prober: Prober) -> None:
    replica = Replica("r", engine.url)
    prober.watch(replica)
    await until(lambda: replica.health is Health.UP)
    replica.mark(Health.DRAINING, "asked to")
    seen = replica.reported
    await until(lambda: replica.reported is not seen)
    assert replica.health is Health.DRAINING


async def test_only_replicas_that_are_up_get_requests_unless_none_is(engine: Engine) -> None:
    prober = Prober(lambda replica: asyncio.sleep(0), interval_s=60, timeout_s=2, failures=2, load_interval_s=60)
    fleet = Fleet()
    for name in ("a", "b", "c"):
        fleet.add(Replica(name, engine.url if name != "c" else "http://127.0.0.1:1"))
    for replica in fleet:
        prober.watch(replica)
    a, b = fleet.get("a"), fleet.get("b")
    assert a is not None and b is not None
    await until(lambda: a.health is Health.UP and b.health is Health.UP)
    await prober.close()
    assert [r.id for r in fleet.candidates("m")] == ["a", "b"]
    assert fleet.candidates("unknown") == []
    a.mark(Health.DOWN, "")
    assert [r.id for r in fleet.candidates("m")] == ["b"]
    b.mark(Health.DOWN, "")
    assert [r.id for r in fleet.candidates("m")] == ["a", "b"], "panic: better try than refuse"
    b.mark(Health.DRAINING, "")
    assert [r.id for r in fleet.candidates("m")] == ["a"]
    with pytest.raises(ValueError, match="exists"):
        fleet.add(Replica("a", engine.url))


async def test_the_model_list_is_the_union(engine: Engine) -> None:
    fleet = Fleet()
    prober = Prober(lambda replica: asyncio.sleep(0), interval_s=60, timeout_s=2, failures=2, load_interval_s=60)
    engine.models = ["base", "alias"]
    fleet.add(Replica("a", engine.url))
    prober.watch(next(iter(fleet)))
    await until(lambda: len(fleet.models()) == 2)
    await prober.close()
    assert [entry["id"] for entry in fleet.models()] == ["base", "alias"]
    assert fleet.canonical_model("alias") == "base"
    assert fleet.canonical_model("adapter") == "adapter"


async def test_sleeping_and_paused_engines_get_no_requests_until_they_wake(engine: Engine, prober: Prober) -> None:
    replica = Replica("r", engine.url)
    prober.watch(replica)
    await until(lambda: replica.health is Health.UP)
    engine.rest = {"/is_paused": {"is_paused": True}}
    replica.info = None  # as after a restart: what it can be asked is found out anew
    await until(lambda: replica.health is Health.PAUSED)
    assert replica.reason == "its engine is paused"
    engine.rest = {"/is_paused": {"is_paused": False}}
    await until(lambda: replica.health is Health.UP)
    engine.metrics = 'vllm:engine_sleep_state{engine="0",sleep_state="weights_offloaded"} 1.0\n'
    engine.metrics += 'vllm:engine_sleep_state{engine="0",sleep_state="awake"} 0.0\n'
    await until(lambda: replica.health is Health.PAUSED)
    assert replica.reason == "its engine is sleeping"
    engine.metrics = 'vllm:engine_sleep_state{engine="0",sleep_state="awake"} 1.0\n'
    await until(lambda: replica.health is Health.UP)
