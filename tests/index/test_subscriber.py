"""EventSubscriber over real ZMQ sockets: restart, gap, roll-over, no replay, engines that connect."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from router.blocks import chain, pack, root
from router.index.ledger import CacheLedger
from router.index.memory import MemoryIndex
from router.index.subscriber import EventSubscriber

SIZE = 4
ROOT = root("m", block_size=SIZE)


def stored(first: int, blocks: int = 1) -> bytes:
    """A batch that stores `blocks` blocks at the start of a prompt; their hashes are first, first + 1, ..."""
    tokens = [first] * SIZE * blocks
    event = ["BlockStored", list(range(first, first + blocks)), None, tokens, SIZE, None, "GPU", None]
    return msgspec.msgpack.encode([time.time(), [event], 0])


def removed(block: int) -> bytes:
    return msgspec.msgpack.encode([time.time(), [["BlockRemoved", [block], "GPU"]], 0])


def held(index: MemoryIndex, *firsts: int) -> list[int]:
    return [first for first in firsts if index.match(chain(ROOT, pack([first] * SIZE), SIZE))]


async def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"timed out waiting for: {what}"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def following(endpoint: str, replay: str | None, **kwargs: Any) -> AsyncIterator[tuple[EventSubscriber, Any]]:
    index = MemoryIndex(10_000)
    index.add_replica("r")
    subscriber = EventSubscriber("r", endpoint, replay, "kv", CacheLedger("m", SIZE), index, **kwargs)
    task = asyncio.create_task(subscriber.run())
    try:
        yield subscriber, index
        assert not task.done(), "the subscriber ended"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def live(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/live"


@pytest.fixture
def replay(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/replay"


Make = Callable[..., Any]


def test_a_batch_is_told_as_the_last_once_it_is_applied() -> None:
    """Not when it is read: where a slice of time ends in between, who waits for it would look at an older index."""
    index = MemoryIndex(10_000)
    index.add_replica("r")
    subscriber = EventSubscriber("r", "ipc://nowhere", None, "kv", CacheLedger("m", SIZE), index)
    subscriber._live([b"kv", (0).to_bytes(8, "big"), stored(1)])
    subscriber._settle()
    assert (subscriber.status.last_seq, held(index, 1)) == (-1, [])
    subscriber._act(subscriber._pending.popleft())
    subscriber._settle()
    assert (subscriber.status.last_seq, held(index, 1)) == (0, [1])


@pytest.mark.parametrize("topic_frame", [True, False])
async def test_starts_from_the_replay_and_goes_on_live(
    publishers: Make, live: str, replay: str, topic_frame: bool
) -> None:
    publisher = publishers(live, replay, topic_frame=topic_frame)
    publisher.publish(stored(1))
    publisher.publish(stored(2))
    async with following(live, replay) as (subscriber, index):
        await until(lambda: subscriber.status.state == "live" and held(index, 1, 2) == [1, 2], "replayed blocks")
        await publisher.subscribed()
        publisher.publish(stored(3))
        publisher.publish(removed(1))
        await until(lambda: held(index, 1, 2, 3) == [2, 3], "live events")
        status = subscriber.status
        assert (status.last_seq, status.gaps, status.clears, status.malformed) == (3, 0, 0, 0)
        assert 0 <= status.lag_s < 5
        assert status.last_event_age is not None


async def test_a_gap_is_filled_by_a_replay(publishers: Make, live: str, replay: str) -> None:
    publisher = publishers(live, replay)
    async with following(live, replay) as (subscriber, index):
        await until(lambda: subscriber.status.state == "live", "live")
        await publisher.subscribed()
        publisher.publish(stored(1))
        publisher.publish(stored(2), lost=True)
        publisher.publish(removed(1), lost=True)
        publisher.publish(stored(3))
        await until(lambda: held(index, 1, 2, 3) == [2, 3], "the lost batches")
        assert subscriber.status.gaps == 1
        assert subscriber.status.clears == 0


async def test_a_gap_beyond_the_replay_buffer_clears(publishers: Make, live: str, replay: str) -> None:
    publisher = publishers(live, replay)
    publisher.buffer_steps = 2
    async with following(live, replay) as (subscriber, index):
        await until(lambda: subscriber.status.state == "live", "live")
        await publisher.subscribed()
        publisher.publish(stored(1))
        await until(lambda: held(index, 1), "the first block")
        for block in (2, 3, 4):
            publisher.publish(stored(block), lost=True)
        publisher.publish(stored(5))
        await until(lambda: held(index, 1, 2, 3, 4, 5) == [4, 5], "only what the buffer still has")
        assert subscriber.status.clears == 1


@pytest.mark.parametrize("new_batches", [0, 1, 2, 3, 6], ids=lambda n: f"restarted-and-published-{n}")
async def test_a_restart_leaves_nothing_of_the_old_engine(
    publishers: Make, live: str, replay: str, new_batches: int
) -> None:
    old = publishers(live, replay)
    async with following(live, replay) as (subscriber, index):
        await old.subscribed()
        for block in (1, 2, 3):
            old.publish(stored(block))
        await until(lambda: held(index, 1, 2, 3) == [1, 2, 3], "the old blocks")
        old.close()
        await until(lambda: subscriber.status.state != "live", "the lost connection")
        new = publishers(live, replay)
        new.publish(stored(10))
        for block in range(11, 10 + new_batches):
            new.publish(stored(block))
        await new.subscribed()
        await until(lambda: held(index, 1, 2, 3, 10) == [10], "only the new blocks")
        new.publish(stored(99))
        await until(lambda: held(index, 1, 2, 3, 10, 99) == [10, 99], "live again")
        assert subscriber.status.clears >= 1


async def test_without_replay_a_gap_clears(publishers: Make, live: str) -> None:
    publisher = publishers(live, None)
    async with following(live, None) as (subscriber, index):
        await publisher.subscribed()
        publisher.publish(stored(1))
        await until(lambda: held(index, 1), "the first block")
        publisher.publish(stored(2), lost=True)
        publisher.publish(stored(3))
        await until(lambda: held(index, 1, 2, 3) == [3], "a clear")
        assert subscriber.status.clears == 1


async def test_a_silent_replay_endpoint_is_given_up(publishers: Make, live: str, replay: str) -> None:
    publisher = publishers(live, replay)
    publisher.mute = True
    async with following(live, replay, replay_timeout_s=0.1) as (subscriber, index):
        await until(lambda: subscriber.status.replay_timeouts == 1, "the time-out")
        await publisher.subscribed()
        publisher.publish(stored(1))
        await until(lambda: held(index, 1), "live events")


async def test_an_engine_that_connects(publishers: Make, live: str) -> None:
    async with following(live, None, bind=True) as (_subscriber, index):
        publisher = publishers(live, None, connect=True)
        await publisher.subscribed()
        publisher.publish(stored(1))
        await until(lambda: held(index, 1), "live events")


async def test_bad_input_changes_nothing_or_clears_but_never_ends_it(publishers: Make, live: str, replay: str) -> None:
    publisher = publishers(live, replay)
    async with following(live, replay) as (subscriber, index):
        await until(lambda: subscriber.status.state == "live", "live")
        await publisher.subscribed()
        publisher.publish(stored(1))
        for frames in ([b"kv"], [b"kv", b"short", b"x"], [b"kv", b"", b"", b""]):
            publisher.send_raw(frames)
        await until(lambda: subscriber.status.malformed == 3, "counted")
        assert held(index, 1) == [1]
        publisher.publish(b"\xc1not msgpack")
        publisher.publish(stored(2))
        await until(lambda: held(index, 1, 2) == [2], "a lost batch clears")


async def test_eagle_pairs_are_refused_with_a_reason(publishers: Make, live: str, replay: str) -> None:
    changes: list[str] = []
    publisher = publishers(live, replay)
    async with following(live, replay, on_change=lambda status: changes.append(status.state)) as (subscriber, index):
        await until(lambda: subscriber.status.state == "live", "live")
        await publisher.subscribed()
        publisher.publish(stored(1))
        pairs = [[1, 2], [2, 3], [3, 4], [4, 5]]
        publisher.publish(msgspec.msgpack.encode([1.0, [["BlockStored", [7], None, pairs, SIZE]], 0]))
        await until(lambda: subscriber.status.state == "unsupported", "unsupported")
        assert "EAGLE" in subscriber.status.reason
        assert held(index, 1) == []
        assert changes[-1] == "unsupported"


async def test_a_large_replay_leaves_the_loop_free(publishers: Make, live: str, replay: str) -> None:
    publisher = publishers(live, replay)
    publisher.buffer = [(seq, stored(1000 * seq, 20)) for seq in range(3000)]
    publisher.seq = 3000

    async def ticks() -> int:
        count = 0
        while True:
            await asyncio.sleep(0)
            count += 1
            if subscriber.status.last_seq == 2999:
                return count

    async with following(live, replay) as (subscriber, _index):
        waiting: Awaitable[int] = ticks()
        count = await asyncio.wait_for(waiting, 20)
    assert count > 20, "3000 batches take several slices, with the loop free in between"


def test_under_uvloop(publishers: Make, live: str, replay: str) -> None:
    import uvloop

    async def scenario() -> None:
        await test_a_gap_is_filled_by_a_replay(publishers, live, replay)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())
