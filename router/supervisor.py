"""A router of several workers (workers: N): one process that owns the configuration and the admin port, N that serve.

The workers listen on one port (SO_REUSEPORT: the kernel spreads connections), and see each other's work through shared
memory (router.siblings). One that ends is started again, with growing pauses; only its own answers break. One that
hangs gets connections all the same, so it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from router.api.admin import Admin, StatusPages
from router.api.admin_replicas import ReplicaAdmin
from router.api.gathered import Gathered, merged_ready
from router.api.keys import Gate
from router.api.status import Reloads
from router.app import tell_addresses
from router.board import Board, make_board
from router.config import Config, ConfigError
from router.credentials import Credentials
from router.fleet.discovery.backoff import Backoff
from router.fleet.membership import Wishes
from router.observe.merged import Merged
from router.observe.metrics import ReadWhenScraped, as_data
from router.observe.scraped import Sample
from router.reload import differences, in_force, is_fixed, set_log_levels
from router.workers import Setup, WorkerFailed, WorkerProcess

log = logging.getLogger(__name__)

STEADY_S = 60.0
"""A worker that was up for so long is started again at once when it ends."""
SLACK_S = 5.0
HUNG_S = 10.0
"""A worker whose event loop answers nothing for so long hangs: the kernel goes on giving it connections."""
WATCH_S = 2.0
RELOAD_S = 300.0
"""Changed models' tokenizer files may have to be fetched."""


class Supervisor:
    """`start`, then `stop`; the same seam as App's for serve and reload."""

    def __init__(self, config: Config, *, model_files: str | None = None) -> None:
        """Raises ConfigError for files the configuration refers to."""
        self.config = self.started_with = config
        self.credentials = Credentials.read(config)
        self.reloads = Reloads()
        self.draining = False
        self._model_files = model_files
        self._gate = Gate(self.credentials.keys)
        self._wishes = Wishes()
        self._generation = 0  # of configuration and wishes
        self._changing = asyncio.Lock()
        self._router_id = uuid.uuid4().hex
        self._folder = Path(tempfile.mkdtemp(prefix="prefix-router-"))
        self._board_file = make_board(config.workers)
        self._board = Board(self._board_file, config.workers)
        self._reserved: list[socket.socket] = []
        self._workers = [WorkerProcess(number, self._folder / f"{number}") for number in range(config.workers)]
        self._troubles: dict[int, str] = {}
        self._restarts = 0
        self._merged = Merged()
        self._keepers: list[asyncio.Task[None]] = []
        self._gathered = Gathered(self._up)
        pages = StatusPages(metrics=self._metrics, ready=self._ready, replicas=self._gathered.replicas)
        self.admin = Admin(
            [
                *pages.routes(),
                *ReplicaAdmin(self._wishes, self._view, self._carry_out).routes(),
                *self._gathered.routes(),
            ],
            token=lambda: self.credentials.admin_token,
            tenant_of=lambda key: self._gate.tenant(key),
        )

    async def start(self) -> None:
        """Start the workers and listen. Raises OSError when an address can't be bound, ConfigError when a worker says
        why it can't serve."""
        listen, admin = self.config.listen, self.config.admin
        self._reserved = reserve(listen.host, listen.port)
        port = self._reserved[0].getsockname()[1]
        moved = msgspec.structs.replace(listen, port=port)
        self.started_with = self.config = msgspec.structs.replace(self.config, listen=moved)
        admin_port = 0
        if admin.enabled:
            admin_port = await self.admin.start(admin.host, admin.port, ssl=self.credentials.admin_tls)
        try:
            await asyncio.gather(*(worker.start(self._setup(worker, again=False)) for worker in self._workers))
        except WorkerFailed as error:
            raise ConfigError(str(error)) from None
        self._keepers = [
            asyncio.create_task(task(worker), name=f"worker {worker.number}")
            for worker in self._workers
            for task in (self._keep, self._watch)
        ]
        tell_addresses(self.config, port, admin_port)

    async def apply(self, new: Config, credentials: Credentials) -> tuple[str, ...]:
        """Have every worker take `new` up; returns the changed settings that need a restart. Raises ConfigError: when
        the first worker refuses it, before anything changed."""
        if new.listen.port == 0:  # what the file still says of a port that was found at the start
            new = msgspec.structs.replace(
                new, listen=msgspec.structs.replace(new.listen, port=self.started_with.listen.port)
            )
        async with self._changing:
            body = msgspec.json.encode(new)
            for worker in self._up():
                try:
                    status, answer = await worker.ask("PUT", "/config", body, seconds=RELOAD_S)
                except OSError:  # it has just ended, or has to: it starts again with what is in force then
                    await worker.kill()
                    continue
                if status != 200:
                    raise ConfigError(answer["error"])
            if credentials.marks["admin"] != self.credentials.marks["admin"]:
                await self.admin.renew(credentials.admin_tls)
            self.config, self.credentials = new, credentials
            self._gate.configure(credentials.keys, salted=False)
            self._generation += 1
        set_log_levels(new)
        return tuple(key for key in differences(self.started_with, new) if is_fixed(key))

    async def stop(self) -> None:
        """Every worker drains as a router alone would; what is left then is killed."""
        self.draining = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for worker in self._workers:
            worker.tell("drain")
        shutdown = self.config.shutdown
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(shutdown.delay_s + shutdown.grace_s + SLACK_S):
                await asyncio.gather(*(worker.ended() for worker in self._workers if worker.up))
        for worker in self._workers:
            await worker.kill()
        await self.admin.close()
        for held in self._reserved:
            held.close()
        os.close(self._board_file)
        shutil.rmtree(self._folder, ignore_errors=True)

    def hurry(self) -> None:
        """Don't wait any longer: what still runs is cut."""
        for worker in self._workers:
            worker.tell("hurry")

    def _up(self) -> list[WorkerProcess]:
        return [worker for worker in self._workers if worker.up]

    def _setup(self, worker: WorkerProcess, *, again: bool) -> Setup:
        return Setup(
            config=in_force(self.started_with, self.config),
            model_files=self._model_files,
            number=worker.number,
            count=len(self._workers),
            socket=str(worker.socket),
            board=self._board_file,
            router_id=self._router_id,
            wishes=self._wishes,
            again=again,
        )

    async def _keep(self, worker: WorkerProcess) -> None:
        """Start a worker again whenever it ends."""
        pauses, loop = Backoff(0.2, 30.0), asyncio.get_running_loop()
        while True:
            began = loop.time()
            status = await worker.ended()
            self._board.rows[worker.number].clear()
            self._merged.retire(worker.families)
            worker.families = []
            self._restarts += 1
            how = f"signal {-status}" if status < 0 else f"status {status}"
            log.error("worker %d ended with %s; it is started again", worker.number, how)
            if loop.time() - began > STEADY_S:
                pauses.reset()
            self._troubles[worker.number] = f"worker {worker.number} ended with {how}: it is being started again"
            while not worker.up:
                await asyncio.sleep(pauses.pause())
                await self._start_again(worker)
            del self._troubles[worker.number]
            log.info("worker %d serves again", worker.number)

    async def _watch(self, worker: WorkerProcess) -> None:
        """Kill a worker that hangs; `_keep` starts it again."""
        while True:
            await asyncio.sleep(WATCH_S)
            if not worker.up:
                continue
            process = worker.pid
            try:
                await worker.ask("GET", "/health", seconds=HUNG_S)
            except OSError as error:
                if worker.up and worker.pid == process:
                    log.error("worker %d does not answer, it is killed: %s", worker.number, error)
                    await worker.kill()

    async def _start_again(self, worker: WorkerProcess) -> None:
        generation = self._generation
        try:
            await worker.start(self._setup(worker, again=True))
            async with self._changing:
                if generation != self._generation:
                    await worker.ask("PUT", "/config", msgspec.json.encode(in_force(self.started_with, self.config)))
                    await worker.ask("PUT", "/wishes", msgspec.json.encode(self._wishes))
        except (WorkerFailed, OSError) as error:
            self._troubles[worker.number] = f"worker {worker.number} can't be started: {error}"
            log.error("%s", self._troubles[worker.number])

    async def _view(self) -> list[dict[str, Any]]:
        return list((await self._gathered.replicas())["replicas"])

    async def _carry_out(self, wishes: Wishes) -> None:
        async with self._changing:
            self._generation += 1
            body = msgspec.json.encode(wishes)
            await asyncio.gather(*(worker.ask("PUT", "/wishes", body) for worker in self._up()), return_exceptions=True)

    async def _ready(self) -> tuple[bool, dict[str, Any]]:
        answers = await self._gathered.everyone("/ready")
        merged = merged_ready([page for _, page in answers])
        troubles = [*self._troubles.values(), *self.reloads.troubles(), *merged["degraded"]]
        able = not self.draining and any(status == 200 for status, _ in answers)
        state = "draining" if self.draining else "unavailable" if not able else "degraded" if troubles else "ready"
        counts = {"workers": len(self._workers), "workers_up": len(self._up())}
        return able, {"status": state, **counts, **merged, "degraded": troubles}

    async def _metrics(self) -> bytes:
        read = await asyncio.gather(*(worker.measure() for worker in self._up()))
        return self._merged.page([*read, as_data(ReadWhenScraped(self._samples).collect())])

    def _samples(self) -> Iterator[Sample]:
        """What the supervisor counts; a worker's own counts of the same names are 0."""
        yield "config_reloads", ("taken",), self.reloads.taken
        yield "config_reloads", ("refused",), self.reloads.refused
        yield "config_refused", (), float(bool(self.reloads.problem))
        yield "worker_restarts", (), self._restarts
        for worker in self._workers:
            yield "worker_up", (str(worker.number),), float(worker.up)


def reserve(host: str, port: int) -> list[socket.socket]:
    """Hold the address for workers to listen on; 0 takes a free port. Raises OSError when somebody else listens there.

    A socket that only holds an address gets no connections. Whoever listens there without sharing it, or for another
    router with workers, is found by a try without SO_REUSEPORT.
    """
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    held: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        if held and not port:
            address = (address[0], held[0].getsockname()[1], *address[2:])
        for share in (False, True):
            made = socket.socket(family, kind, protocol)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if share else socket.SO_REUSEADDR, 1)
            try:
                made.bind(address)
            except OSError:
                made.close()
                for each in held:
                    each.close()
                raise
            if share:
                held.append(made)
            else:
                address = made.getsockname()
                made.close()
    return held
