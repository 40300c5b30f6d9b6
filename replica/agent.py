"""Run beside one engine: follow its KV events, publish what its cache holds and how loaded it is.

The agent asks the engine what it serves and where its events are, keeps the truth about its cache, and writes it to
Redis for every router of the pool. A restarted engine's old blocks disappear at once; a lost agent's lease runs out
within seconds. One agent serves all data-parallel ranks of its engine.

examples:
  prefix-router agent --engine-url http://127.0.0.1:8000 --redis-url redis://cache:6379
  prefix-router agent --engine-url http://127.0.0.1:8000 --redis-url rediss://cache:6379 --pool llama \\
      --redis-password-file /run/pw --replica-id "$POD_NAME" --advertise-url "http://$POD_IP:8000"
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys

import aiohttp
import uvloop

from replica.asking import answered, base_url, engine_key, engine_session
from replica.publication import LoadReader, Publication
from router.engines import ENGINES, Engine, EngineInfo, EventSource, recognise
from router.index.redis.connect import RedisConfigError, connect
from router.index.redis.layout import Layout
from router.index.redis.store import Store

log = logging.getLogger(__name__)

INSPECT_S = 30.0
"""How often an engine is asked what it serves when no outage of it was seen."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--engine-url", required=True, type=_url, metavar="URL", help="the engine beside this agent")
    parser.add_argument(
        "--redis-url", required=True, metavar="URL", help="redis://, rediss://, unix://, redis+sentinel://"
    )
    parser.add_argument("--redis-username")
    parser.add_argument("--redis-password-file", metavar="FILE", help="or set PREFIX_ROUTER_REDIS_PASSWORD")
    parser.add_argument("--redis-ca-file", metavar="FILE", help="CA certificate for rediss://")
    parser.add_argument("--redis-cluster", action="store_true", help="the server is a cluster node")
    parser.add_argument(
        "--pool", default="default", help="index the replica belongs to; routers name the same (default)"
    )
    parser.add_argument("--replica-id", help="name in receipts and metrics (default: host:port of the advertised URL)")
    parser.add_argument(
        "--advertise-url", type=_url, metavar="URL", help="where routers reach the engine (default: --engine-url)"
    )
    parser.add_argument(
        "--engine", choices=["auto", *sorted(ENGINES)], default="auto", help="engine kind (default auto)"
    )
    parser.add_argument(
        "--engine-api-key-file", metavar="FILE", help="the engine's own key; or set PREFIX_ROUTER_ENGINE_API_KEY"
    )
    parser.add_argument("--model", help="canonical model name (default: the first the engine lists)")
    parser.add_argument(
        "--block-size", type=int, help="canonical block size in tokens (default: the engine's, at least 16)"
    )
    parser.add_argument("--events-endpoint", metavar="ADDRESS", help="KV event socket (default: as the engine says)")
    parser.add_argument("--replay-endpoint", metavar="ADDRESS", help="replay socket, with --events-endpoint")
    parser.add_argument("--topic", default="", help="ZMQ topic prefix, with --events-endpoint")
    parser.add_argument("--bind", action="store_true", help="bind --events-endpoint: the engine connects to it")
    parser.add_argument("--interval-ms", type=int, default=250, help="time between load samples (default 250)")
    parser.add_argument("--lease-s", type=float, default=3.0, help="lease without a renewal (default 3)")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info")


def _url(text: str) -> str:
    try:
        return base_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(args: argparse.Namespace) -> int:
    """Publish until told to stop; returns the exit status (3: another agent took the replica over)."""
    logging.basicConfig(
        level=args.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(message)s"
    )
    if args.interval_ms < 20 or args.lease_s * 1000 < 2 * args.interval_ms:
        sys.stderr.write("prefix-router: --interval-ms must be at least 20, and --lease-s at least twice as long.\n")
        return 2
    try:
        store = connect(
            args.redis_url,
            username=args.redis_username,
            password=os.environ.get("PREFIX_ROUTER_REDIS_PASSWORD"),
            password_file=args.redis_password_file,
            ca_file=args.redis_ca_file,
            cluster=args.redis_cluster,
        )
        key = engine_key(args.engine_api_key_file)
    except (RedisConfigError, OSError) as error:
        sys.stderr.write(f"prefix-router: {error}\n")
        return 2
    return uvloop.run(_main(args, store, key))


async def _main(args: argparse.Namespace, store: Store, key: str | None) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    agent = asyncio.create_task(Agent(args, store, key).run())
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait({agent, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    superseded = agent.done() and agent.exception() is None
    agent.cancel()
    result = (await asyncio.gather(agent, return_exceptions=True))[0]
    await store.close()
    if isinstance(result, Exception):
        raise result
    return 3 if superseded else 0


class Agent:
    """One engine's agent: waits for the engine, then publishes each of its ranks."""

    def __init__(self, args: argparse.Namespace, store: Store, key: str | None) -> None:
        self._args = args
        self._key = key
        self._store = store
        self._url: str = args.engine_url

    async def run(self) -> None:
        """Until cancelled, or until a newer agent owns the replica. An engine that comes back as another one (model,
        ranks, cache size, event sockets) is published anew."""
        async with engine_session(self._key) as session:
            engine, info = await self._ask(session)
            while True:
                load = LoadReader(engine, session, self._url, self._args.interval_ms / 1000)
                publishing = asyncio.create_task(self._publish(info, load))
                changing = asyncio.create_task(self._changed(session, info, load))
                try:
                    await asyncio.wait({publishing, changing}, return_when=asyncio.FIRST_COMPLETED)
                    superseded = publishing.done()
                finally:
                    publishing.cancel()
                    changing.cancel()
                    ended, new = await asyncio.gather(publishing, changing, return_exceptions=True)
                for result in (ended, new):
                    if isinstance(result, Exception):
                        raise result
                if superseded or isinstance(new, BaseException):
                    return
                engine, info = new
                log.info("the engine came back as another one (%s): publishing it anew", ", ".join(info.models))

    async def _ask(self, session: aiohttp.ClientSession) -> tuple[Engine, EngineInfo]:
        engine = await answered(lambda: self._recognise(session), "waiting for the engine")
        return engine, await answered(lambda: engine.inspect(session, self._url), "asking the engine what it serves")

    async def _changed(
        self, session: aiohttp.ClientSession, known: EngineInfo, load: LoadReader
    ) -> tuple[Engine, EngineInfo]:
        """Waits until the engine is not what it was; asked after every outage, and now and then."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INSPECT_S):
                    await load.returned.wait()
            load.returned.clear()
            engine, info = await self._ask(session)
            if _published(info) != _published(known):
                return engine, info

    async def _publish(self, info: EngineInfo, load: LoadReader) -> None:
        args = self._args
        configured = None
        if args.events_endpoint:
            configured = EventSource(args.events_endpoint, args.replay_endpoint, args.topic, args.bind)
        if configured is None and not info.events:
            log.warning("the engine publishes no KV events: only its load is reported")
        url: str = args.advertise_url or self._url
        name = args.replica_id or url.split("://", 1)[1]
        several = len(info.ranks) > 1
        async with asyncio.TaskGroup() as group:
            for position, rank in enumerate(info.ranks):
                publication = Publication(
                    f"{name}/dp{rank}" if several else name,
                    url,
                    info,
                    configured.of_rank(position) if configured else info.source(rank),
                    self._store,
                    Layout(args.pool),
                    model=args.model or info.models[0],
                    block_size=args.block_size or max(16, info.block_size or 16),
                    rank=rank if several else None,
                    interval_s=args.interval_ms / 1000,
                    lease_s=args.lease_s,
                )
                group.create_task(publication.run(load))

    async def _recognise(self, session: aiohttp.ClientSession) -> Engine:
        if self._args.engine == "auto":
            return await recognise(session, self._url)
        return ENGINES[self._args.engine]


def _published(info: EngineInfo) -> tuple[object, ...]:
    """What is said of an engine, or decides how its events are read; LoRA adapters come and go without it."""
    return info.kind, info.version, info.models[0], info.block_size, info.kv_tokens, info.events, info.ranks
