"""Breaks a fleet of replica processes, one replica at a time for most of what it does, and mends it again."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
from support.process import ReplicaProcess, RouterProcess
from support.redis_server import Server
from support.waiting import PATIENCE_S

PRELOAD = """
import signal, time
_shift = [0.0]
_real = time.time
time.time = lambda: _real() + _shift[0]
signal.signal(signal.SIGUSR1, lambda *_: _shift.__setitem__(0, _shift[0] + 86400.0))
signal.signal(signal.SIGUSR2, lambda *_: _shift.__setitem__(0, _shift[0] - 172800.0))
import router.fleet.discovery.dns as _dns
async def _resolve(host, port):
    with open({hosts!r}) as file:
        return sorted(file.read().split())
_dns.DnsSource.__init__.__kwdefaults__["resolve"] = _resolve
"""
"""The clock jumps a day ahead with SIGUSR1 and two days back with SIGUSR2; names resolve to what a file lists."""


class Chaos:
    """`actions` by name. Each breaks something, waits, and mends it; `done` counts them."""

    def __init__(
        self, router: RouterProcess, replicas: list[ReplicaProcess], hosts: Path, redis: Server | None, seed: int
    ) -> None:
        self.done: Counter[str] = Counter()
        self._router, self._replicas, self._hosts, self._redis = router, replicas, hosts, redis
        self._rng = random.Random(seed)
        self._broken: set[int] = set()
        self._one_on_redis = asyncio.Lock()
        self.actions: dict[str, Callable[[], Awaitable[None]]] = {
            "kill -9": self.kill,
            "hang": self.hang,
            "reset before the head": lambda: self._switch(close_before_head=self._rng.randint(1, 8)),
            "reset within the head": lambda: self._switch(half_head=self._rng.randint(1, 8)),
            "reset within a stream": lambda: self._switch(
                reset_after_events=self._rng.randint(1, 3), stream_fault_times=self._rng.randint(1, 5)
            ),
            "error event within a stream": lambda: self._switch(error_after_events=2, stream_fault_times=4),
            "error event before a stream": lambda: self._switch(error_after_events=0, stream_fault_times=6),
            "500 storm": lambda: self._switch(status=500),
            "502 storm": lambda: self._switch(status=502),
            "503 storm": lambda: self._switch(status=503),
            "500 now and then": lambda: self._switch(status=500, status_probability=0.3),
            "slow": lambda: self._switch(slow=20.0),
            "stall": lambda: self._switch(paused=True),
            "dns change": self.dns,
            "clock ahead": lambda: self._clock(signal.SIGUSR1),
            "clock back": lambda: self._clock(signal.SIGUSR2),
        }
        if redis is not None:
            self.actions["redis killed"] = self.redis_killed
            self.actions["redis hangs"] = self.redis_hangs

    async def run(self, seconds: float, pause_s: float = 0.3) -> None:
        """Two actions at a time, every one of them at least once if there is time; then everything is mended."""
        end = asyncio.get_running_loop().time() + seconds
        names: list[str] = []

        async def worker() -> None:
            while asyncio.get_running_loop().time() < end:
                if not names:
                    names.extend(self.actions)
                    self._rng.shuffle(names)
                name = names.pop()
                await self.actions[name]()
                self.done[name] += 1
                await asyncio.sleep(pause_s)

        await asyncio.gather(worker(), worker())

    def _take(self) -> int:
        """A replica that is not broken now."""
        index = self._rng.choice([n for n in range(len(self._replicas)) if n not in self._broken])
        self._broken.add(index)
        return index

    async def _mended(self, index: int) -> None:
        """Once the router uses it again: until then another one that is broken would be one too many."""
        name = self._replicas[index].url.removeprefix("http://")
        up = f'prefix_router_replica_up{{replica="{name}"}} 1.0'
        async with asyncio.timeout(PATIENCE_S), aiohttp.ClientSession() as session:
            while True:
                async with session.get(self._router.admin_url + "/metrics") as answer:
                    if up in await answer.text():
                        break
                await asyncio.sleep(0.1)
        self._broken.discard(index)

    async def _fault(self, index: int, **values: object) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.post(self._replicas[index].url + "/sim/faults", json=values) as answer,
        ):
            assert answer.status == 200, await answer.text()

    async def _switch(self, **values: object) -> None:
        index = self._take()
        await self._fault(index, **values)
        await asyncio.sleep(self._rng.uniform(0.5, 1.5))
        await self._fault(index, clear=True)
        await self._mended(index)

    async def kill(self) -> None:
        index = self._take()
        replica = self._replicas[index]
        await replica.stop(signal.SIGKILL)
        await asyncio.sleep(self._rng.uniform(0.2, 1.5))
        await replica.start()
        await self._mended(index)

    async def hang(self) -> None:
        """As a machine that stands still: connections are taken by its kernel, nothing is answered."""
        index = self._take()
        self._replicas[index].send(signal.SIGSTOP)
        await asyncio.sleep(self._rng.uniform(0.5, 2))
        self._replicas[index].send(signal.SIGCONT)
        await self._mended(index)

    async def dns(self) -> None:
        """An address leaves the name, and comes back."""
        index = self._take()
        everyone = self._hosts.read_text().split()
        gone = self._replicas[index].url.split("://")[1].split(":")[0]
        self._write([address for address in everyone if address != gone])
        await asyncio.sleep(self._rng.uniform(0.5, 1.5))
        self._write([*self._hosts.read_text().split(), gone])
        await self._mended(index)

    def _write(self, addresses: list[str]) -> None:
        new = self._hosts.with_suffix(".new")
        new.write_text("\n".join(sorted(set(addresses))))
        new.replace(self._hosts)

    async def _clock(self, number: signal.Signals) -> None:
        self._router.send(number)
        await asyncio.sleep(0.5)

    async def redis_killed(self) -> None:
        assert self._redis is not None
        async with self._one_on_redis:
            await asyncio.to_thread(self._redis.stop)
            await asyncio.sleep(self._rng.uniform(0.5, 1.5))
            await asyncio.to_thread(self._redis.start)

    async def redis_hangs(self) -> None:
        assert self._redis is not None
        async with self._one_on_redis:
            self._redis.pause()
            await asyncio.sleep(self._rng.uniform(0.5, 1.5))
            self._redis.resume()
