"""A worker's process: the whole router but for the admin port, told by its supervisor what to do (router.workers)."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

import msgspec
import uvloop
from aiohttp import web

from router.app import App
from router.config import Config, ConfigError
from router.credentials import Credentials
from router.fleet.membership import Wishes
from router.fleet.replica import Health
from router.heap import one_heap, settle_collector
from router.index.redis.connect import RedisConfigError
from router.reload import apply, set_log_levels
from router.signals import ignore_stop_signals, on_stop_signals
from router.workers import Place, Setup

log = logging.getLogger(__name__)

SETTLE_S = 5.0
SETTLE_PAUSE_S = 0.05


def main() -> int:
    """Serve until told to stop; returns the exit status."""
    one_heap()
    setup = msgspec.json.decode(sys.stdin.buffer.readline(), type=Setup)
    form = f"%(asctime)s %(levelname)-7s worker {setup.number}: %(message)s"
    logging.basicConfig(stream=sys.stderr, format=form)
    set_log_levels(setup.config)
    return uvloop.run(_work(setup))


def _say(line: str) -> None:
    sys.stdout.write(line.replace("\n", " ") + "\n")
    sys.stdout.flush()


async def _work(setup: Setup) -> int:
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    # Signals may come to the whole group, the supervisor included: one more must not cut what runs.
    on_stop_signals(loop, stopping.set)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        app = App(setup.config, model_files=setup.model_files, place=Place.of(setup), more_routes=_routes)
    except (RedisConfigError, ConfigError) as error:
        _say(f"failed: {error}")
        return 2
    watching = asyncio.create_task(_obey(app, stopping), name="supervisor")
    try:
        await app.follow()
        await app.membership.wish(setup.wishes)
        if setup.again:
            await _settled(app)
        settle_collector()
        await app.listen()
        _say("up")
        await stopping.wait()
    except OSError as error:
        _say(f"failed: can't listen: {error.strerror or error}")
        return 1
    finally:
        await app.stop()
        watching.cancel()
        ignore_stop_signals(loop)
    return 0


async def _obey(app: App, stopping: asyncio.Event) -> None:
    """Carry out what the supervisor writes. When it is gone, this worker goes too."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    while line := await reader.readline():
        if line == b"hurry\n":
            app.hurry()
        stopping.set()
    stopping.set()


async def _settled(app: App) -> None:
    """Every replica has been heard of, or time is up."""
    for _ in range(int(SETTLE_S / SETTLE_PAUSE_S)):
        if len(app.fleet) and not any(replica.health is Health.NEW for replica in app.fleet):
            return
        await asyncio.sleep(SETTLE_PAUSE_S)
    log.warning("not all replicas have answered after %g s; listening all the same", SETTLE_S)


def _routes(app: App) -> list[web.RouteDef]:
    """What only the supervisor asks."""

    async def families(request: web.Request) -> web.Response:
        return web.Response(body=msgspec.msgpack.encode(app.metrics.families()))

    async def configure(request: web.Request) -> web.Response:
        config = msgspec.json.decode(await request.read(), type=Config)
        try:
            credentials = await asyncio.to_thread(Credentials.read, config)
            await apply(app, config, credentials)
        except ConfigError as error:
            return web.json_response({"error": str(error)}, status=400)
        except Exception as error:
            log.exception("taking up the configuration failed")
            return web.json_response({"error": f"taking it up failed; see the log: {error}"}, status=500)
        return web.json_response({})

    async def wish(request: web.Request) -> web.Response:
        await app.membership.wish(msgspec.json.decode(await request.read(), type=Wishes))
        return web.json_response({})

    return [web.get("/families", families), web.put("/config", configure), web.put("/wishes", wish)]


if __name__ == "__main__":
    sys.exit(main())
