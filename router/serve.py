"""Run the router: one endpoint in front of the replicas named by flags or a configuration file.

examples:
  prefix-router serve --replica http://10.0.0.7:8000 --replica http://10.0.0.8:8000 --model-files Qwen/Qwen3-8B
  prefix-router serve --config router.yaml
  prefix-router serve --config router.yaml --policy round_robin --set limits.max_body_mb=128

Then point any OpenAI client at http://HOST:PORT/v1. SIGTERM and SIGINT drain: running answers finish first. SIGHUP
takes up a changed configuration, as a changed file does by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
import yaml

from router.app import App
from router.config import Config, ConfigError, load_config
from router.heap import one_heap, settle_collector
from router.index.redis.connect import RedisConfigError
from router.reload import Reloader, apply, set_log_levels
from router.routing.policies import POLICIES
from router.signals import ignore_stop_signals, on_stop_signals
from router.supervisor import Supervisor

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file (YAML)")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default 8000; 0: a free one)")
    parser.add_argument("--admin-port", type=int, help="port of /metrics and /replicas (default 9000)")
    parser.add_argument(
        "--replica", action="append", default=[], metavar="URL", help="base URL of an engine; repeat for each"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes that share the port (default 1)")
    parser.add_argument(
        "--model-files",
        metavar="DIR_OR_HUB_ID",
        help="tokenizer and chat template of models the configuration doesn't name",
    )
    parser.add_argument("--policy", choices=sorted(POLICIES), help="routing policy (default prefix)")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--access-log", action="store_true", default=None, help="a line of JSON for each request")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="any setting by its dotted key"
    )


def configuration(args: argparse.Namespace) -> Config:
    """File, environment and flags together. Raises ConfigError."""
    overrides: list[tuple[str, Any]] = []
    for setting in args.settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: write it as KEY=VALUE, for example --set routing.policy=session.")
        try:
            overrides.append((key, yaml.safe_load(text)))
        except yaml.YAMLError:
            raise ConfigError(f"--set {setting}: the value is not valid YAML.") from None
    for key, value in (
        ("listen.host", args.host),
        ("listen.port", args.port),
        ("workers", args.workers),
        ("admin.port", args.admin_port),
        ("routing.policy", args.policy),
        ("log.level", args.log_level),
        ("log.access", args.access_log),
        ("replicas", [{"url": url} for url in args.replica] or None),
    ):
        if value is not None:
            overrides.append((key, value))
    config = load_config(args.config, os.environ, overrides)
    discovery = config.discovery
    discovers = discovery.files or discovery.dns or discovery.kubernetes
    if not (config.replicas or discovers or (config.index.backend == "redis" and config.redis.discover)):
        raise ConfigError("no replicas: name at least one with --replica URL under `replicas:`, or by `discovery:`.")
    return config


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop; returns the exit status."""
    one_heap()
    try:
        config = configuration(args)
    except ConfigError as error:
        sys.stderr.write(f"prefix-router: {error}\n")
        return 2
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(message)s")
    set_log_levels(config)
    return uvloop.run(_serve(config, args))


async def _serve(config: Config, args: argparse.Namespace) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    on_stop_signals(loop, stopping.set)
    app: App | Supervisor
    try:
        if config.workers > 1:
            app = Supervisor(config, model_files=args.model_files)
        else:
            app = App(config, model_files=args.model_files)
    except (RedisConfigError, ConfigError) as error:
        sys.stderr.write(f"prefix-router: {error}\n")
        return 2
    try:
        await app.start()
    except OSError as error:
        sys.stderr.write(f"prefix-router: can't listen: {error.strerror or error}. Set listen.port or admin.port.\n")
        await app.stop()
        return 1
    except ConfigError as error:
        sys.stderr.write(f"prefix-router: {error}\n")
        await app.stop()
        return 2
    settle_collector()
    take_up = app.apply if isinstance(app, Supervisor) else partial(apply, app)
    reloader = Reloader(args.config, lambda: configuration(args), take_up, app.reloads, config, app.credentials)
    loop.add_signal_handler(signal.SIGHUP, reloader.ask)
    watching = asyncio.create_task(reloader.run(), name="reload")
    try:
        await stopping.wait()
        log.info(
            "stopping: running answers may finish for %g s; a second signal cuts them", app.config.shutdown.grace_s
        )
    finally:
        watching.cancel()
        on_stop_signals(loop, app.hurry)
        await app.stop()
        ignore_stop_signals(loop)
    return 0
