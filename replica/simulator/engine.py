"""One simulated engine on the event loop: drives the scheduler with timers, publishes events, hands out tokens."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence as List
from typing import Any

from router.blocks import unpack

from .config import ReplicaConfig
from .events import EventPublisher
from .records import Prefix
from .scheduler import Scheduler
from .sequence import Sequence
from .tokens import load_tokenizer

TIMER_S = 0.001
"""uvloop's timers count in milliseconds and may fire early: such a step counts as done, instead of spinning."""


class Engine:
    """One engine process' life is `start` to `stop`; after a new `start` the cache is empty and seq begins at 0."""

    def __init__(self, config: ReplicaConfig) -> None:
        self.config = config
        self.tokenizer = load_tokenizer(config.model_dir, config.kind)
        self.publisher: EventPublisher | None = None
        if config.publishes:
            self.publisher = EventPublisher(
                config.endpoint,
                config.replay_endpoint,
                dialect=config.wire_dialect,
                topic=config.topic,
                bytes_hashes=config.bytes_hashes,
                replay_frames=config.replay_frames,
                buffer_steps=config.buffer_steps,
            )
        self.paused = False
        self.stalled = False
        self._timer: asyncio.Handle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.scheduler = self._new_scheduler()

    def _new_scheduler(self) -> Scheduler:
        config = self.config
        return Scheduler(
            config.new_cache(),
            config.timing,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_num_seqs=config.max_num_seqs,
            max_queued=config.max_queued,
        )

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.scheduler = self._new_scheduler()
        self.paused = False
        self.stalled = False
        if self.publisher is not None:
            await self.publisher.start()
        self._publish()

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop = None
        if self.publisher is not None:
            await self.publisher.stop()

    def submit(self, sequences: List[Sequence]) -> None:
        """Queue sequences. Raises QueueFull or ValueError; then none of them is queued."""
        assert self._loop is not None
        now = self._loop.time()
        for position, seq in enumerate(sequences):
            try:
                self.scheduler.submit(seq, now)
            except Exception:
                for queued in sequences[:position]:
                    self.scheduler.abort(queued)
                raise
        self._arm()

    def abort(self, sequences: List[Sequence]) -> None:
        for seq in sequences:
            self.scheduler.abort(seq)

    def pause(self, paused: bool) -> None:
        """As told by /pause: /is_paused says so."""
        self.paused = paused
        self._arm()

    def stall(self, stalled: bool) -> None:
        """Stand still unnoticed."""
        self.stalled = stalled
        self._arm()

    def reset_cache(self) -> bool:
        """Forget the prefix cache unless requests run. vLLM announces it with its next step, SGLang at once."""
        done = not self.in_flight and self.scheduler.cache.reset()
        if done and self.config.kind == "sglang":
            self._publish()
        return done

    @property
    def in_flight(self) -> int:
        return len(self.scheduler.running) + len(self.scheduler.waiting)

    @property
    def usage(self) -> float:
        """Share of the KV cache held by running sequences."""
        cache = self.scheduler.cache
        return cache.used / cache.blocks

    def _arm(self) -> None:
        if self._timer is not None or self.paused or self.stalled or self._loop is None:
            return
        at = self.scheduler.next_at
        if not math.isinf(at):
            self._timer = self._loop.call_at(at, self._tick)
        elif self.in_flight:
            self._timer = self._loop.call_soon(self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self.paused or self.stalled or self._loop is None:
            return
        now = self._loop.time()
        if now < self.scheduler.next_at < now + TIMER_S:
            now = self.scheduler.next_at
        step = self.scheduler.advance(now)
        if step is not None:
            if step.events and self.publisher is not None:
                self.publisher.publish(step.events, time.time())
            for seq in step.emitted:
                if seq.on_token is not None:
                    seq.on_token(seq)
        self._arm()

    def _publish(self) -> None:
        events = self.scheduler.cache.take_events()
        if self.publisher is not None:
            self.publisher.publish(events, time.time())

    def truth(self) -> dict[str, Any]:
        """What GET /sim/truth shows: every live block, its tokens, its parent, and the counters (see DESIGN)."""
        counters = self.scheduler.counters
        cache = self.scheduler.cache
        blocks: dict[str, dict[str, Any]] = {}
        for prefix, copies in cache.live():
            blocks[_name(prefix.key)] = _describe(prefix, copies)
            parent = prefix.parent
            while parent is not None and _name(parent.key) not in blocks:
                blocks[_name(parent.key)] = _describe(parent, 0)
                parent = parent.parent
        return {
            "kind": self.config.kind,
            "model": self.config.model,
            "block_size": cache.block_size,
            "capacity_blocks": cache.blocks,
            "used_blocks": cache.used,
            "in_flight": self.in_flight,
            "next_seq": self.publisher.seq if self.publisher else 0,
            "prompt_tokens": counters.queried,
            "cached_tokens": counters.hit,
            "prefill_tokens": counters.prefilled,
            "generated_tokens": counters.generated,
            "finished": counters.finished_requests,
            "aborted": counters.aborted_requests,
            "preemptions": counters.preemptions,
            "steps": counters.steps,
            "blocks": list(blocks.values()),
        }


def _name(key: bytes | int) -> str:
    return key.hex() if isinstance(key, bytes) else str(key)


def _describe(prefix: Prefix, copies: int) -> dict[str, Any]:
    """`copies` 0: not cached any more, listed because a cached block follows it."""
    return {
        "hash": _name(prefix.key),
        "parent": None if prefix.parent is None else _name(prefix.parent.key),
        "tokens": unpack(prefix.tokens),
        "copies": copies,
        "lora": prefix.lora,
        "salt": prefix.salt,
    }
