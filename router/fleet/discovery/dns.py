"""Endpoints behind one DNS name: a headless service, or any name with one address per replica."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping

from router.engines import EngineKind
from router.fleet.discovery.backoff import Backoff
from router.fleet.discovery.endpoint import Endpoint, EventPorts, Scheme, Update, bracketed

log = logging.getLogger(__name__)

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""(host, port) -> addresses. Raises OSError (socket.gaierror) when it can't tell."""

_NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


async def system_resolve(host: str, port: int) -> list[str]:
    """The name's addresses by the system's resolver, in a thread. IPv6 ones only where there is no IPv4 address:
    a dual-stack replica must not be counted twice."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    four = {str(address[0]) for family, _, _, _, address in found if family == socket.AF_INET}
    six = {str(address[0]) for family, _, _, _, address in found if family == socket.AF_INET6}
    return sorted(four or six)


class DnsSource:
    """Resolves `host` again every `interval_s` seconds (the system's resolver hides the records' TTL, so that is the
    shortest time a record counts). Endpoint ids are address:port.

    A resolver that fails changes nothing. A name that is gone `gone_after` times in a row means no endpoints: a
    headless service without a ready pod has no records, but neither has one during a hiccup of the DNS server.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        scheme: Scheme = "http",
        interval_s: float = 5.0,
        timeout_s: float = 5.0,
        gone_after: int = 3,
        kind: EngineKind | None = None,
        events: EventPorts | None = None,
        labels: Mapping[str, str] | None = None,
        resolve: Resolve = system_resolve,
    ) -> None:
        self.name = f"dns {host}:{port}"
        self.problem = "not resolved yet"
        self._host, self._port, self._scheme = host, port, scheme
        self._interval, self._timeout, self._gone_after = interval_s, timeout_s, gone_after
        self._kind, self._events, self._labels = kind, events, dict(labels or {})
        self._resolve = resolve

    async def run(self, update: Update) -> None:
        """See Source.run."""
        backoff = Backoff(min(0.5, self._interval), max(30.0, self._interval))
        known: list[Endpoint] | None = None
        gone = 0
        while True:
            pause = self._interval
            try:
                async with asyncio.timeout(self._timeout):
                    addresses = await self._resolve(self._host, self._port)
                gone, problem = 0, ""
                backoff.reset()
            except socket.gaierror as error:
                problem = f"can't be resolved: {error.strerror}"
                gone = gone + 1 if error.errno in _NO_SUCH_NAME else 0
                addresses = []
            except OSError as error:
                # Includes the timeout.
                problem = f"can't be resolved: {error.strerror or 'the resolver does not answer'}"
                addresses, gone = [], 0
            if gone and gone >= self._gone_after:
                problem = ""
            elif problem:
                pause = backoff.pause()
            if not problem:
                found = [self._endpoint(address) for address in sorted(set(addresses))]
                if found != known:
                    known = found
                    update(found)
            if problem != self.problem:
                log.log(logging.WARNING if problem else logging.INFO, "%s: %s", self.name, problem or "resolved")
                self.problem = problem
            await asyncio.sleep(pause)

    def _endpoint(self, address: str) -> Endpoint:
        host = bracketed(address)
        return Endpoint(
            id=f"{host}:{self._port}",
            url=f"{self._scheme}://{host}:{self._port}",
            kind=self._kind,
            events=self._events.at(host) if self._events else None,
            labels=self._labels,
        )
