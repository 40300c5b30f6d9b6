"""Event dialects on the wire, live and replayed, decoded here from the documented layouts."""

import asyncio
from array import array
from pathlib import Path

import msgspec
import pytest
import zmq
import zmq.asyncio

from replica.simulator.config import ReplicaConfig
from replica.simulator.events import DIALECTS, encode_batch
from replica.simulator.fleet import SimulatedReplica
from replica.simulator.records import Cleared, Removed, Stored
from replica.simulator.timing import time_model

KEYS = [bytes(range(i, i + 32)) for i in (0, 100)]
TOKENS = array("I", range(8)).tobytes()
EVENTS = [Removed([KEYS[1]]), Stored(KEYS, None, TOKENS, 4, "lo", "sa", first=True), Cleared()]
STORED_LENGTHS = {
    "array-0.9": 6, "array-0.10": 7, "array-0.14": 8, "array-0.18": 9, "array-0.20": 10, "array-0.22": 12,
    "sglang-array": 8,
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
def test_layout_of_every_dialect(dialect):
    batch = msgspec.msgpack.decode(encode_batch(EVENTS, dialect=dialect, timestamp=1.5, rank=3))
    ts, events, rank = batch.values() if dialect == "allmap" else batch
    assert (ts, rank) == (1.5, 3)
    removed, stored, cleared = events
    signed = dialect.startswith("sglang")
    expected = [int.from_bytes(k[:8] if signed else k[-8:], "big", signed=signed) for k in KEYS]
    if "array" in dialect:
        assert len(stored) == STORED_LENGTHS[dialect]
        assert stored[:5] == ["BlockStored", expected, None, list(range(8)), 4]
        assert removed[:2] == ["BlockRemoved", [expected[1]]]
        assert cleared == ["AllBlocksCleared"]
        if len(stored) > 8:
            assert stored[8] == [["lo", "sa"], ["lo"]]
        return
    assert (stored["type"], removed["type"], cleared) == ("BlockStored", "BlockRemoved", {"type": "AllBlocksCleared"})
    assert stored["block_hashes"] == expected
    assert stored["parent_block_hash"] is None
    assert stored["token_ids"] == list(range(8))
    assert stored.get("cache_salt", stored.get("extra_keys")) in ("sa", [["lo", "sa"], ["lo"]])


def test_bytes_hashes():
    batch = msgspec.msgpack.decode(encode_batch(EVENTS, dialect="map", timestamp=0.0, bytes_hashes=True))
    assert batch[1][1]["block_hashes"] == KEYS


class Subscriber:
    def __init__(self, replica):
        context = zmq.asyncio.Context.instance()
        self.sub = context.socket(zmq.SUB)
        self.sub.setsockopt(zmq.LINGER, 0)
        self.sub.subscribe(b"")
        self.sub.connect(replica.events_endpoint)
        self.dealer = context.socket(zmq.DEALER)
        self.dealer.setsockopt(zmq.LINGER, 0)
        self.dealer.connect(replica.replay_endpoint)

    async def replay(self, first=0):
        await self.dealer.send_multipart([b"", first.to_bytes(8, "big")])
        found = []
        async with asyncio.timeout(60):
            while True:
                frames = await self.dealer.recv_multipart()
                if frames[-2] == b"\xff" * 8:
                    return found, frames
                found.append(frames)

    def close(self):
        self.sub.close()
        self.dealer.close()


async def complete(http, replica, prompt, tokens=2):
    body = {"model": "sim", "prompt": prompt, "max_tokens": tokens}
    async with http.post(replica.url + "/v1/completions", json=body) as answer:
        assert answer.status == 200
        return (await answer.json())["usage"]


@pytest.mark.parametrize(("kind", "frames"), [("vllm", 4), ("vllm", 3), ("sglang", 4)])
async def test_replay_gives_the_truth(http, kind, frames):
    config = ReplicaConfig(kind=kind, kv_blocks=12, timing=time_model("instant"), replay_frames=frames)
    async with SimulatedReplica(config) as replica:
        for start in (0, 50, 0, 100, 0):
            await complete(http, replica, list(range(start, start + 70)), 20)
        client = Subscriber(replica)
        batches, end = await client.replay()
        assert len(end) == frames
        assert [int.from_bytes(item[-2], "big") for item in batches] == list(range(replica.next_seq))
        assert all(len(item) == frames for item in batches)
        held = {}
        for item in batches:
            for event in msgspec.msgpack.decode(item[-1])[1]:
                change = {"BlockStored": 1, "BlockRemoved": -1}.get(event["type"], 0)
                for key in event.get("block_hashes", ()):
                    held[key] = held.get(key, 0) + change
        assert sorted(count for count in held.values() if count) == sorted(item.copies for item in replica.live())
        assert sum(replica.own_hashes().values()) == sum(item.copies for item in replica.live())
        client.close()


async def test_live_events_drops_and_restart(http):
    async with SimulatedReplica(ReplicaConfig(timing=time_model("instant"))) as replica:
        client = Subscriber(replica)

        async def receive():
            async with asyncio.timeout(60):
                topic, seq, payload = await client.sub.recv_multipart()
            assert topic == b"kv-events"
            return int.from_bytes(seq, "big"), msgspec.msgpack.decode(payload)

        first = 0  # a fresh subscription is silent until ZMQ has connected it: warm it up with events of its own
        while True:
            await complete(http, replica, [first] * 20)
            first += 1
            if await client.sub.poll(100):
                break
        last = (await receive())[0]
        while last < replica.next_seq - 1:
            last = (await receive())[0]
        replica.fault(drop_events=1)
        await complete(http, replica, [1000] * 40, 1)
        await complete(http, replica, [2000] * 40, 1)
        seq, batch = await receive()
        assert seq == last + 2
        assert batch[1][0]["token_ids"] == [2000] * 32
        found, _ = await client.replay(last + 1)
        assert [int.from_bytes(item[-2], "big") for item in found] == [last + 2]
        endpoint = replica.events_endpoint
        await replica.restart()
        assert (replica.events_endpoint, replica.next_seq) == (endpoint, 0)
        await complete(http, replica, [1] * 40, 1)
        client.close()  # what it sent now could still go into the connection that the restart broke
        client = Subscriber(replica)
        found, _ = await client.replay()
        assert [int.from_bytes(item[-2], "big") for item in found] == [0]
        client.close()


def test_map_fields_are_those_recorded_from_vllm():
    frames = Path(__file__).parents[1] / "fixtures/captures/vllm-0.32.0/frames-int-hash/00000.bin"
    # 4 bytes of length before each ZMQ frame; the third is the payload.
    data, parts = frames.read_bytes(), []
    while data:
        size = int.from_bytes(data[:4], "big")
        parts.append(data[4 : 4 + size])
        data = data[4 + size :]
    recorded = msgspec.msgpack.decode(parts[2])[1][0]
    made = msgspec.msgpack.decode(encode_batch(EVENTS, dialect="map", timestamp=0.0))[1][1]
    assert list(made) == list(recorded)
