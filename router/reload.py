"""A changed configuration taken up while requests run.

It is read and checked whole before anything changes: a file that can't be used is refused with its error in the log,
in /ready and in a metric, and everything stays as it was. What can change only by a restart (addresses, index, Redis,
sizes of caches) is named and left as it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from router.api.status import Reloads
from router.app import App
from router.config import Config, ConfigError
from router.credentials import Credentials
from router.prompt.hub import ModelFilesError
from router.settings import (
    configured,
    make_policy,
    naming,
    outlier_policy,
    patience,
    poison_guard,
    pools,
    retry_budget,
    retry_policy,
    room_policy,
    server_limits,
    upstream_limits,
)
from router.sources import make_sources

log = logging.getLogger(__name__)

FIXED = frozenset(
    {
        *("listen.host", "listen.port", "workers", "admin.enabled", "admin.host", "admin.port", "index", "redis"),
        *("prompt.unreproducible", "prompt.ask_timeout_s", "prompt.ask_cache_mb"),
        *("prompt.message_cache_mb", "prompt.render_cache_mb", "prompt.segment_cache_mb", "prompt.chain_cache_mb"),
        *("admission.max_queue", "observe", "routing.max_sessions"),
    }
)
"""Settings, and whole sections, that take effect at a restart."""

LIVE = frozenset(
    {
        *("listen", "admin", "keys", "models", "replicas", "discovery", "routing", "prompt", "proxy", "limits"),
        *("admission", "health", "shutdown", "reload", "log"),
    }
)
"""Sections whose other settings `apply` carries over. Any other section counts as fixed."""


def differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """Dotted keys by which two configurations differ; lists and optional sections count as one setting."""
    for name in old.__struct_fields__:
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        if isinstance(before, msgspec.Struct) and isinstance(after, msgspec.Struct):
            yield from differences(before, after, f"{at}{name}.")
        else:
            yield f"{at}{name}"


def is_fixed(key: str) -> bool:
    """Whether a changed setting needs a restart."""
    section = key.partition(".")[0]
    return key in FIXED or section in FIXED or section not in LIVE


def in_force(started: Config, new: Config) -> Config:
    """What a router that started with one configuration does once it took up another: `new`, but for fixed settings."""
    for key in differences(started, new):
        if is_fixed(key):
            section, _, name = key.partition(".")
            if not name:
                new = msgspec.structs.replace(new, **{section: getattr(started, section)})
                continue
            kept = msgspec.structs.replace(getattr(new, section), **{name: getattr(getattr(started, section), name)})
            new = msgspec.structs.replace(new, **{section: kept})
    return new


async def apply(app: App, new: Config, credentials: Credentials) -> tuple[str, ...]:
    """Take `new` up; returns the changed settings that need a restart. Raises ConfigError before anything changed."""
    try:
        models = await app.catalog.preview(new.models)
    except ModelFilesError as error:
        raise ConfigError(str(error)) from None
    sources = make_sources(new.discovery)
    old, before = app.config, app.credentials
    app.config, app.credentials = new, credentials

    if credentials.marks["listen"] != before.marks["listen"]:
        await app.server.renew(credentials.listen_tls)
    if credentials.marks["admin"] != before.marks["admin"]:
        await app.admin.renew(credentials.admin_tls)
    if credentials.marks["replicas"] != before.marks["replicas"]:
        await app.reconnect()
    app.gate.configure(credentials.keys, salted=new.keys.isolation == "salt")
    app.forwarder.headers = credentials.header_rules(new)

    app.catalog.adopt(new.models, models)
    await app.rejoin(models)
    app.membership.report("configuration", configured(new))
    await app.membership.follow(sources)

    if new.routing != old.routing:
        app.placement.policy = make_policy(new.routing)
        app.warmup.prefixes = app.warm_prefixes(new)
        app.route.naming, app.route.pools = naming(new), pools(new)
    app.route.send_token_ids = new.prompt.send_token_ids
    app.trust.configure(new.prompt.parity_interval_s, new.prompt.drift_alert, new.prompt.parity_generate)
    if new.proxy != old.proxy:
        app.pool.limits = upstream_limits(new)
        app.forwarder.policy = retry_policy(new)
        app.forwarder.budget = retry_budget(new)
        app.forwarder.poison = poison_guard(new)
        if app.siblings is not None:
            app.siblings.watch_poison()
        app.api.blocked = tuple(new.proxy.blocked_paths)
    app.room.policy = room_policy(new)
    app.route.turns.patience = patience(new)
    app.server.limits = server_limits(new)
    health = new.health
    app.prober.configure(health.interval_s, health.timeout_s, health.failures, health.load_interval_s)
    app.outliers.configure(outlier_policy(new))
    app.observer.log_blocks = new.log.blocks
    set_log_levels(new)
    return tuple(key for key in differences(app.started_with, new) if is_fixed(key))


def set_log_levels(config: Config) -> None:
    """The log's levels as configured."""
    logging.getLogger().setLevel(config.log.level.upper())
    logging.getLogger("router.access").setLevel(logging.INFO if config.log.access else logging.WARNING)


class Reloader:
    """Reads the configuration again when asked, and when `path` or a file it names has changed.

    `load` reads it as at the start; `carry_out` takes it up (see `apply`). `state` is told what came of it.
    """

    def __init__(
        self,
        path: Path | None,
        load: Callable[[], Config],
        carry_out: Callable[[Config, Credentials], Awaitable[tuple[str, ...]]],
        state: Reloads,
        config: Config,
        credentials: Credentials,
    ) -> None:
        self._path = path
        self._load = load
        self._carry_out = carry_out
        self._state = state
        self._config = config
        self._files = credentials.files
        self._asked = asyncio.Event()
        self._seen = self._stamps()

    def ask(self) -> None:
        """Read it again now (SIGHUP)."""
        self._asked.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            settings = self._config.reload
            try:
                async with asyncio.timeout(settings.interval_s if settings.watch else None):
                    await self._asked.wait()
            except TimeoutError:
                if await asyncio.to_thread(self._stamps) == self._seen:
                    continue
            self._asked.clear()
            await self.reload()

    async def reload(self) -> None:
        """Read it again and take it up, or say why not."""
        state = self._state
        seen = self._seen = await asyncio.to_thread(self._stamps)
        try:
            config, credentials = await asyncio.to_thread(self._read)
            waiting = await self._carry_out(config, credentials)
        except ConfigError as error:
            state.refused += 1
            state.problem = str(error)
            if self._path is not None and str(self._path) not in state.problem:
                state.problem = f"{self._path}: {error}"
            log.error("configuration refused, nothing has changed: %s", state.problem)
            return
        except Exception:
            state.refused += 1
            state.problem = "taking it up failed; see the log"
            log.exception("taking up the configuration failed")
            return
        self._config, self._files = config, credentials.files
        # A file that changed again while it was read must not count as seen.
        self._seen = await asyncio.to_thread(self._stamps) | seen
        self._seen = {file: self._seen[file] for file in self._watched()}
        state.taken += 1
        state.problem = ""
        state.waiting = waiting
        log.info("configuration taken up")
        if state.waiting:
            log.warning("configuration: these take effect at the next restart: %s", ", ".join(state.waiting))

    def _read(self) -> tuple[Config, Credentials]:
        config = self._load()
        return config, Credentials.read(config)

    def _stamps(self) -> dict[Path, tuple[int, int, int] | None]:
        return {file: _stamp(file) for file in self._watched()}

    def _watched(self) -> list[Path]:
        return ([] if self._path is None else [self._path]) + list(self._files)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
