"""The router put together from its configuration: parts, who knows whom, start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from aiohttp import web

from router.api import status
from router.api.admin import Admin, StatusPages
from router.api.admin_auth import TENANT
from router.api.admin_replicas import ReplicaAdmin
from router.api.app import Api
from router.api.dashboard import Dashboard
from router.api.errors import format_at
from router.api.explain import Explain
from router.api.gathered import OWNER
from router.api.keys import Gate
from router.api.report import Report
from router.api.route import Route
from router.api.turn import Turns
from router.asking import AskedReplicas
from router.board import Board
from router.catalog import Catalog
from router.config.load import ConfigError
from router.config.model import Config
from router.credentials import Credentials
from router.fleet.feeds import Feeds
from router.fleet.fleet import Fleet
from router.fleet.membership import Membership, Wishes
from router.fleet.outliers import TICK_S, Outliers
from router.fleet.prober import Prober
from router.fleet.replica import Health, Replica
from router.fleet.room import Room, slots
from router.fleet.shared import SharedIndex
from router.http.server import HttpServer
from router.http.upstream import Origin, UpstreamPool
from router.index.memory import MemoryIndex
from router.index.overlay import PredictedOverlay
from router.index.redis.connect import connect
from router.index.redis.inflight import NONE
from router.observe.digest import Digester
from router.observe.metrics import Metrics
from router.observe.observer import Observer
from router.observe.past import GONE, Past, Standing
from router.observe.recent import Recent
from router.observe.sessions import Sessions
from router.prompt.chains import CHUNK_BLOCKS
from router.prompt.engine_ids import AskedIds
from router.prompt.requests import limit_messages
from router.prompt.stage import PromptStage
from router.proxy.admission import Admission
from router.proxy.forward import Forwarder
from router.routing.placement import Placement
from router.samples import samples
from router.settings import (
    configured,
    make_policy,
    naming,
    origin,
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
from router.sharing import Notes, share_sessions
from router.siblings import Siblings
from router.sources import make_sources
from router.trust import Trust
from router.warmup import Warmup
from router.workers import Place

if TYPE_CHECKING:
    from router.observe.tracing import Tracing

log = logging.getLogger(__name__)

SWEEP_PAUSE_S = 0.02


def tell_addresses(config: Config, port: int, admin_port: int) -> None:
    """Log where the router listens."""
    listen, admin = config.listen, config.admin
    log.info("listening on %s://%s:%d", "https" if listen.tls else "http", _shown(listen.host), port)
    if admin.enabled:
        log.info("metrics and status on %s://%s:%d", "https" if admin.tls else "http", _shown(admin.host), admin_port)


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host or "*"


class App:
    """One router process. `start`, then `stop`; both are idempotent enough to be called in a `finally`."""

    def __init__(
        self,
        config: Config,
        *,
        model_files: str | None = None,
        place: Place | None = None,
        more_routes: Callable[[App], list[web.RouteDef]] = lambda app: [],
    ) -> None:
        """`model_files`: tokenizer files of models that the configuration doesn't name. `place`: as one worker of
        several, whose admin pages, with `more_routes`, are for its supervisor alone.

        Raises RedisConfigError, and ConfigError for files the configuration refers to.
        """
        self.place = place
        self.config = self.started_with = config
        self.credentials = Credentials.read(config)
        self.gate = Gate(self.credentials.keys, salted=config.keys.isolation == "salt")
        self.draining = False
        self.router_id = uuid.uuid4().hex if place is None else place.router_id
        self.reloads = status.Reloads()
        self._hurry = asyncio.Event()
        self.fleet = Fleet()
        overlay = PredictedOverlay(config.index.predicted_ttl_s)
        self.index = MemoryIndex(config.index.max_blocks, overlay)
        self.feeds = Feeds(self.index, shadow_blocks=config.index.shadow_blocks)
        self.membership = Membership(self.fleet, self.add, self.remove)
        if config.index.backend == "redis":
            self.feeds.shared = self._shared(config)
        prompt = config.prompt
        limit_messages(prompt.message_cache_mb << 20)
        self.catalog = Catalog(config.models, model_files, prompt.segment_cache_mb << 20, prompt.render_cache_mb << 20)
        self.asked = AskedReplicas(self.fleet, 1 + 2 * prompt.ask_timeout_s, lambda: self.credentials.session())
        ask = AskedIds(self.asked, seconds=prompt.ask_timeout_s, max_bytes=prompt.ask_cache_mb << 20)
        self.prompts = PromptStage(
            self.catalog.specs,
            engine_ids=ask if prompt.unreproducible == "ask_engine" else None,
            chain_chunks=max(1, (prompt.chain_cache_mb << 20) // (CHUNK_BLOCKS * 10)),
        )
        self.trust = Trust(
            self.prompts,
            self.catalog,
            self.feeds,
            interval_s=prompt.parity_interval_s,
            drift_alert=prompt.drift_alert,
            generate=prompt.parity_generate,
            session=lambda: self.credentials.session(),
        )
        self.metrics = Metrics(lambda: samples(self))
        past = Past(self._standing, max_bytes=config.observe.causes_mb << 20)
        self.index.on_evicted = past.dropped
        self.index.on_cleared = past.cleared
        self.observer = Observer(
            self.metrics,
            Sessions(Digester(keep_text=config.observe.break_text), config.observe.sessions_mb << 20),
            past,
            rate=lambda replica: self.placement.speed.rate / replica.speed.slowness,
            recent=Recent(config.observe.recent_requests),
            log_blocks=config.log.blocks,
        )
        self.placement = Placement(
            make_policy(config.routing),
            time.monotonic,
            max_sessions=config.routing.max_sessions,
            prefix=f"s{self.router_id[:6]}{'' if place is None else place.maker}-",
        )
        self.warmup = Warmup(self.placement, self.warm_prefixes(config), lambda: self.credentials.session())
        self.prober = Prober(
            self._joined,
            interval_s=config.health.interval_s,
            timeout_s=config.health.timeout_s,
            failures=config.health.failures,
            load_interval_s=config.health.load_interval_s,
            session=lambda timeout: self.credentials.session(timeout),
            died=lambda replica: self.forwarder.poison.died(replica.id, time.monotonic()),
        )
        self.outliers = Outliers(
            self.fleet, outlier_policy(config), unreachable=self.prober.suspect, check=self.prober.check
        )
        self.room = Room(self.fleet, room_policy(config))
        self.admission = Admission(
            lambda model: slots(self.fleet.candidates(model), time.monotonic()), size=config.admission.max_queue
        )
        self.pool = UpstreamPool(upstream_limits(config))
        self.origins: dict[str, Origin] = {}
        self.forwarder = Forwarder(
            self.pool,
            retry_policy(config),
            budget=retry_budget(config),
            poison=poison_guard(config),
            headers=self.credentials.header_rules(config),
        )
        self.route = Route(
            self.fleet,
            self.feeds,
            self.prompts,
            self.placement,
            self.forwarder,
            self.metrics,
            naming=naming(config),
            pools=pools(config),
            origin_of=lambda replica: self.origins[replica.id],
            outliers=self.outliers,
            alive=self.prober.answers,
            turns=Turns(self.fleet, self.admission, patience(config)),
            answered=self.trust.answered,
            observer=self.observer,
            send_token_ids=config.prompt.send_token_ids,
            read_always=config.observe.prompts == "always",
        )
        self.tracing = _tracing() if config.observe.traces else None
        self.route.tracing = self.tracing
        self.api = Api(
            self.fleet,
            self.route,
            self.metrics,
            gate=self.gate,
            ready=self.ready,
            blocked_paths=config.proxy.blocked_paths,
        )
        self.server = HttpServer(
            self.api,
            limits=server_limits(config),
            errors_at=format_at,
        )
        self.siblings = None if place is None else self._meet(place)
        streams: list[Notes] = [] if self.feeds.shared is None else [self.feeds.shared.notes]
        share_sessions(
            [*streams, *([] if self.siblings is None else [self.siblings])], self.placement.lineage, self.route.sticky
        )
        pages = StatusPages(metrics=self._metrics_page, ready=self._ready_page, replicas=self._replicas_page)
        owner = (lambda request: request.get(TENANT)) if place is None else (lambda request: request.headers.get(OWNER))
        self.admin = Admin(
            [
                *pages.routes(),
                *ReplicaAdmin(Wishes(), self._view, self.membership.wish).routes(),
                *Report(self.observer, owner, lambda: self.gate.hides_matches).routes(),
                *Explain(self.route).routes(),
                *Dashboard(self.observer, self.ready, self._replicas).routes(),
                *more_routes(self),
            ],
            token=None if place is not None else (lambda: self.credentials.admin_token),
            tenant_of=lambda key: self.gate.tenant(key),
        )
        self.admin_port = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to watch the replicas, and listen. Raises OSError when an address can't be bound."""
        await self.follow()
        await self.listen()

    async def follow(self) -> None:
        """Open the admin port and begin to watch the replicas. Raises OSError when its address can't be bound."""
        config = self.config
        if self.place is not None:
            await self.admin.start_privately(self.place.socket)
        elif config.admin.enabled:
            self.admin_port = await self.admin.start(
                config.admin.host, config.admin.port, ssl=self.credentials.admin_tls
            )
        self.membership.report("configuration", configured(config))
        self.membership.start()
        await self.membership.follow(make_sources(config.discovery))
        if self.feeds.shared is not None:
            self.feeds.shared.start()
        self._tasks = [
            asyncio.create_task(self._sweep(), name="sweep"),
            asyncio.create_task(self._watch(), name="watch"),
        ]
        if self.siblings is not None:
            self.siblings.start()

    async def listen(self) -> None:
        """Open the public port. Raises OSError when its address can't be bound."""
        config, tls, several = self.config, self.credentials.listen_tls, self.place is not None
        await self.server.start(config.listen.host, config.listen.port, ssl=tls, reuse_port=several)
        if not several:
            tell_addresses(config, self.server.port, self.admin_port)

    def add(self, replica: Replica) -> None:
        """Take a replica into the fleet; it gets requests once it answered a probe. Raises ValueError."""
        address = origin(replica.url, self.credentials.replica_tls)
        self.fleet.add(replica)
        self.origins[replica.id] = address
        self.prober.watch(replica)

    async def remove(self, replica_id: str) -> None:
        """Take a replica out of the fleet; its running requests go on."""
        if self.fleet.remove(replica_id) is not None:
            del self.origins[replica_id]
            await self.prober.unwatch(replica_id)
            self.trust.unwatch(replica_id)
            self.warmup.left(replica_id)
            await self.feeds.unfollow(replica_id)

    async def stop(self) -> None:
        """Readiness off, then no new connections; running answers finish within the grace time, everything closed."""
        self.draining = self.server.leaving = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.shutdown.delay_s):
                await self._hurry.wait()
        clean = await self.server.drain(0.0 if self._hurry.is_set() else self.config.shutdown.grace_s)
        if not clean:
            log.warning("cut requests that were still running after %g s", self.config.shutdown.grace_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.membership.close()
        await self.prober.close()
        await self.warmup.close()
        await self.trust.close()
        await self.asked.close()
        await self.catalog.close()
        await self.feeds.close()
        if self.feeds.shared is not None:
            await self.feeds.shared.close()
        if self.siblings is not None:
            await self.siblings.close()
        self.pool.close()
        self.prompts.close()
        await self.admin.close()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)

    def hurry(self) -> None:
        """Don't wait any longer: what still runs while this router stops is cut."""
        self._hurry.set()
        if self.draining:
            self.server.cut()

    async def rejoin(self, models: Collection[str]) -> None:
        """What is known of these models has changed: follow their replicas anew, as if they had just joined."""
        for replica in list(self.fleet):
            if replica.info is not None and replica.info.models[0] in models:
                await self._joined(replica)

    async def reconnect(self) -> None:
        """The way to replicas has changed (`credentials`): new connections and questions take the new one."""
        for replica in self.fleet:
            self.origins[replica.id] = origin(replica.url, self.credentials.replica_tls)
        await self.prober.close()
        await self.trust.close()
        await self.asked.close()
        for replica in self.fleet:
            self.prober.watch(replica)
            if replica.info is not None:
                self.trust.watch(replica)

    def warm_prefixes(self, config: Config) -> int:
        """How many prefixes a replica that joins is warmed with; one of several workers does it."""
        return config.routing.warm_prefixes if self.place is None or self.place.number == 0 else 0

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """What /ready answers."""
        troubles = [*self.membership.problems(), *self.trust.alerts(), *self.reloads.troubles()]
        if self.feeds.shared is not None:
            troubles += self.feeds.shared.degraded()
        return status.ready(self.fleet, self.catalog.approximate, troubles, self.draining)

    async def _ready_page(self) -> tuple[bool, dict[str, Any]]:
        return self.ready()

    async def _metrics_page(self) -> bytes:
        return self.metrics.page()

    async def _replicas_page(self) -> dict[str, Any]:
        return {"replicas": self._replicas(), "removed": self.membership.removed()}

    def _meet(self, place: Place) -> Siblings:
        shared = self.feeds.shared
        return Siblings(
            Board(place.board, place.count),
            place.number,
            self.fleet,
            self.feeds,
            self.gate,
            lambda: self.forwarder.poison,
            routers=(lambda replica_id: NONE) if shared is None else shared.share.others,
            pump=self.admission.pump,
        )

    def _replicas(self) -> list[dict[str, Any]]:
        self.placement.refresh(self.fleet)
        return status.replicas(self.fleet, self.feeds.status(), self.membership.sources)

    async def _view(self) -> list[dict[str, Any]]:
        return self._replicas()

    def _shared(self, config: Config) -> SharedIndex:
        settings = config.redis
        store = connect(
            settings.url,
            username=settings.username,
            password_file=settings.password_file,
            password_env=settings.password_env,
            ca_file=settings.ca_file,
            cert_file=settings.cert_file,
            key_file=settings.key_file,
            cluster=settings.cluster,
            timeout_s=settings.timeout_s,
            connect_timeout_s=settings.timeout_s,
        )
        return SharedIndex(
            store,
            settings.pool,
            self.index,
            self.fleet,
            router_id=self.router_id,
            direct=config.index.lookup == "redis",
            direct_timeout_s=settings.lookup_timeout_s,
            joined=(lambda found: self.membership.report("leases", found)) if settings.discover else None,
            siblings=lambda replica_id: NONE if self.siblings is None else self.siblings.work(replica_id),
        )

    async def _joined(self, replica: Replica) -> None:
        assert replica.info is not None
        if self.membership.learned(replica):
            return
        self.outliers.joined(replica)
        self.room.tick()
        model, block_size, changed = await self.catalog.learn(replica.info)
        if changed:
            log.warning("model %s: its blocks now have %d tokens; the index starts again", model, block_size)
        # With another block size every replica of the model has to be followed anew.
        for other in list(self.fleet) if changed else [replica]:
            if other.info is not None and other.info.models[0] == model:
                await self.feeds.follow(other, model, block_size)
        self.trust.watch(replica)
        self.warmup.joined(replica)

    def _standing(self, entry: str) -> Standing:
        """How a replica's cache, known by its entry in the index, is now."""
        replica = self.fleet.get(entry.partition("\0")[0])
        if replica is None:
            return GONE
        tokens = (replica.info.kv_tokens or 0) if replica.info is not None else 0
        gone = replica.health is not Health.UP
        return Standing(gone, bool(replica.distrust), *self.feeds.history(entry), tokens, self.feeds.heard_at(entry))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_PAUSE_S)
            self.index.sweep()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.outliers.tick()
            self.room.tick()
            self.admission.pump()


def _tracing() -> Tracing:
    try:
        from router.observe.tracing import Tracing
    except ImportError as error:
        raise ConfigError(f"observe.traces: {error}: run `pip install 'prefix-router[otel]'`") from None
    return Tracing()
