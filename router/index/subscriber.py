"""Follows one engine rank's KV event socket: ZMQ -> sequencer -> ledger -> sink. Nothing an engine sends ends it.

The SUB socket's monitor tells of new connections, and is read after each message and before acting on it: libzmq
reports a connection before it delivers the first message over it, so no message of a restarted engine is taken for
one of the old engine. A replay uses a DEALER socket of its own per request, closed when it ends, so that answers to
an abandoned request cannot be mixed up with later ones.

Work is done in slices of about 2 ms with the loop free in between; the unit is one batch (one engine step; a step of
8192 tokens takes about 2 ms).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable

import zmq
from zmq.utils.monitor import parse_monitor_message

from router.index.intake import FeedStatus, Intake, State
from router.index.ledger import CacheLedger
from router.index.sequence import Action, Apply, Clear, RequestReplay, Sequencer
from router.index.types import BlockSink, Cleared
from router.index.wire import WireError, parse_live, parse_replay, replay_request

log = logging.getLogger(__name__)

SLICE_S = 0.002
IDLE_S = 1.0
_RECEIVE_LIMIT = 20_002
"""Messages queued per socket: an engine's default replay buffer, twice."""


class EventSubscriber:
    """One rank. `endpoint` is connected to, or bound with `bind=True` (for an engine that connects).

    `replay_endpoint` None: a gap or a reconnect clears the replica's blocks. A replay without an answer for
    `replay_timeout_s` is given up, with the same effect. `on_change` is called after the state changed and after a
    clear, on the loop; it must not block.
    """

    def __init__(
        self,
        replica_id: str,
        endpoint: str,
        replay_endpoint: str | None,
        topic: str,
        ledger: CacheLedger,
        sink: BlockSink,
        *,
        bind: bool = False,
        replay_timeout_s: float = 3.0,
        on_change: Callable[[FeedStatus], None] | None = None,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        self.replica_id = replica_id
        self.endpoint = endpoint
        self.replay_endpoint = replay_endpoint
        self.topic = topic
        self.ledger = ledger
        self.status = FeedStatus()
        self._intake = Intake(replica_id, ledger, sink, self.status, self._changed)
        self._bind = bind
        self._timeout = replay_timeout_s
        self._on_change = on_change
        self._context = context or zmq.Context.instance()
        self._sequencer = Sequencer(can_replay=replay_endpoint is not None)
        self._dealer: zmq.Socket[bytes] | None = None
        self._deadline = 0.0
        self._connected = False
        self._readiness = _Readiness()
        self._pending: deque[Action] = deque()

    async def run(self) -> None:
        """Follow the engine until cancelled. Raises zmq.ZMQError if the endpoint cannot be bound or is no address."""
        sub: zmq.Socket[bytes] = self._context.socket(zmq.SUB)
        monitor: zmq.Socket[bytes] | None = None
        try:
            sub.set(zmq.LINGER, 0)
            sub.set(zmq.RCVHWM, _RECEIVE_LIMIT)
            sub.set(zmq.RECONNECT_IVL, 50)
            sub.set(zmq.RECONNECT_IVL_MAX, 2000)
            sub.set(zmq.IPV6, 1)
            sub.set(zmq.TCP_KEEPALIVE, 1)
            sub.set(zmq.SUBSCRIBE, self.topic.encode())
            monitor = sub.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
            (sub.bind if self._bind else sub.connect)(self.endpoint)
            for socket in (sub, monitor):
                self._readiness.add(socket)
            while True:
                await self._readiness.wait(self._wait_s())
                self._slice(sub, monitor)
                await asyncio.sleep(0)
        finally:
            self._end_replay()
            for known in (sub, monitor):
                if known is not None:
                    self._readiness.remove(known)
            if monitor is not None:
                sub.disable_monitor()
                monitor.close(0)
            sub.close(0)

    def _wait_s(self) -> float:
        if self._pending:
            return 0.0
        if self._dealer is None:
            return IDLE_S
        return max(0.0, min(IDLE_S, self._deadline - time.monotonic()))

    def _slice(self, sub: zmq.Socket[bytes], monitor: zmq.Socket[bytes]) -> None:
        end = time.monotonic() + SLICE_S
        busy = True
        while busy and time.monotonic() < end:
            if self._pending:
                self._act(self._pending.popleft())
                continue
            message = _receive(sub)
            self._watch(monitor)
            if message is not None:
                self._live(message)
            answer = None
            if self._dealer is not None and not self._pending:
                answer = _receive(self._dealer)
                if answer is not None:
                    self._replayed(answer)
            busy = message is not None or answer is not None or bool(self._pending)
        if self._dealer is not None and not busy and time.monotonic() >= self._deadline:
            self._end_replay()
            self.status.replay_timeouts += 1
            self._pending += self._sequencer.on_replay_failed()
        self._settle()

    def _watch(self, monitor: zmq.Socket[bytes]) -> None:
        while (event := _receive(monitor)) is not None:
            self._connected = parse_monitor_message(event)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if self._connected:
                self._pending += self._sequencer.on_connect()

    def _live(self, frames: list[bytes]) -> None:
        if not self._connected:  # a transport without connection events (inproc)
            self._connected = True
            self._pending += self._sequencer.on_connect()
        try:
            seq, payload = parse_live(frames)
        except WireError:
            self.status.malformed += 1
            return
        self._pending += self._sequencer.on_live(seq, payload)

    def _replayed(self, frames: list[bytes]) -> None:
        self._deadline = time.monotonic() + self._timeout
        try:
            batch = parse_replay(frames)
        except WireError:
            self.status.malformed += 1
            return
        if batch is None:
            self._end_replay()
            self._pending += self._sequencer.on_replay_end()
        else:
            self._pending += self._sequencer.on_replay(*batch)

    def _act(self, action: Action) -> None:
        if isinstance(action, Apply):
            self._intake.apply(action.payload, live=not self._sequencer.replaying)
            self.status.last_seq = action.seq
        elif isinstance(action, RequestReplay):
            self._request_replay(action.start)
        elif isinstance(action, Clear):
            self.status.last_seq = -1
            self._intake.clear(Cleared.RESTARTED if action.restarted else Cleared.LOST, action.reason)

    def _request_replay(self, start: int) -> None:
        self._end_replay()
        assert self.replay_endpoint is not None
        dealer: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        dealer.set(zmq.LINGER, 0)
        dealer.set(zmq.RCVHWM, _RECEIVE_LIMIT)
        dealer.set(zmq.IPV6, 1)
        dealer.connect(self.replay_endpoint)
        dealer.send_multipart(replay_request(start), zmq.DONTWAIT)
        self._readiness.add(dealer)
        self._dealer = dealer
        self._deadline = time.monotonic() + self._timeout
        self.status.replays += 1

    def _end_replay(self) -> None:
        if self._dealer is not None:
            self._readiness.remove(self._dealer)
            self._dealer.close(0)
            self._dealer = None

    def _settle(self) -> None:
        """Bring the status up to date; tell of a changed state."""
        status, sequencer = self.status, self._sequencer
        status.gaps = sequencer.gaps
        if status.state == "unsupported" or self._pending:
            return
        state: State = "replaying" if sequencer.replaying else "live" if self._connected else "connecting"
        if state != status.state:
            status.state = state
            self._changed()

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change(self.status)


class _Readiness:
    """Wakes one coroutine when a ZMQ socket may have a message: the sockets' descriptors, watched by the event loop.

    A descriptor becomes readable when something may have changed and stays so until the socket is asked; whether there
    is a message is asked of the socket itself. (zmq.asyncio's poller makes a shadow of every socket for every wait: a
    tenth of the router's CPU in a profile of short requests.)
    """

    def __init__(self) -> None:
        self._sockets: dict[zmq.Socket[bytes], int] = {}
        self._event = asyncio.Event()

    def add(self, socket: zmq.Socket[bytes]) -> None:
        self._sockets[socket] = descriptor = int(socket.get(zmq.FD))
        asyncio.get_running_loop().add_reader(descriptor, self._event.set)

    def remove(self, socket: zmq.Socket[bytes]) -> None:
        descriptor = self._sockets.pop(socket, None)
        if descriptor is not None:
            asyncio.get_running_loop().remove_reader(descriptor)

    async def wait(self, seconds: float) -> None:
        """Until a socket may have a message, or the time is over."""
        self._event.clear()
        if seconds <= 0 or any(int(socket.get(zmq.EVENTS)) & zmq.POLLIN for socket in self._sockets):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()


def _receive(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    try:
        return socket.recv_multipart(zmq.DONTWAIT)
    except zmq.Again:
        return None
