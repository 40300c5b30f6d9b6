"""Workloads: deterministic, of the promised shape; importers and what they say about bad files; arrivals in time."""

from __future__ import annotations

import asyncio
import gzip
import json
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from loadtest.arrivals import arrival_times
from loadtest.run import Schedule
from loadtest.types import CHAT, Workload, WorkloadError
from loadtest.workloads import (
    Session,
    Step,
    agents,
    flash_crowd,
    load_hash_trace,
    load_multi_turn,
    load_sessions,
    load_sharegpt,
    mixed,
    prefix_light,
    shared_prefix,
    shipped_prefix_light,
    shipped_sessions,
)


def bodies(workload: Workload) -> list[Any]:
    return [step.prompt.body() for session in workload.sessions for step in session.steps]


@pytest.mark.parametrize("make", [agents, flash_crowd, mixed, prefix_light, shared_prefix, shipped_sessions])
def test_seeded(make: Any) -> None:
    assert bodies(make(seed=1)) == bodies(make(seed=1))
    assert bodies(make(seed=1)) != bodies(make(seed=2))


def test_agents_grow_as_promised() -> None:
    workload = agents(sessions=4, groups=2, system_tokens=50, think_s=1.0)
    sizes = [sum(len(m["content"].split()) for m in s.prompt.body()["messages"]) for s in workload.sessions[0].steps]
    assert sizes == [250, 550, 850, 1150, 1450]
    systems = [session.steps[0].prompt.body()["messages"][0]["content"] for session in workload.sessions]
    assert systems[0] == systems[2] != systems[1] == systems[3]
    assert workload.sessions[0].steps[0].think_s == 0 < workload.sessions[0].steps[1].think_s
    assert {len(s.steps) for s in agents(long_share=1.0, long_steps=9).sessions} == {9}


def test_flash_crowd_share() -> None:
    workload = flash_crowd(requests=600, rate=10, crowd_start_s=20)
    late = [session for session in workload.sessions if (session.start_s or 0) >= 20]
    crowd = [session for session in late if session.id.startswith("crowd")]
    assert 0.6 < len(crowd) / len(late) < 0.8
    assert not any(s.id.startswith("crowd") for s in workload.sessions if (s.start_s or 0) < 20)
    assert workload.timed


def test_shipped_sets() -> None:
    heavy, light = shipped_sessions(), shipped_prefix_light()
    assert (len(heavy.sessions), heavy.requests) == (29, 279)
    assert (len(light.sessions), light.requests) == (140, 285)
    assert len(shipped_sessions(limit=5).sessions) == 5
    for session in heavy.sessions:
        for before, after in pairwise(session.steps):
            messages = before.prompt.body()["messages"]
            assert after.prompt.body()["messages"][: len(messages)] == messages


def write(path: Path, *rows: Any) -> Path:
    path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))
    return path


def test_mooncake_rows(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 1000, "input_length": 1100, "output_length": 7, "hash_ids": [1, 2, 3]},
        {"timestamp": 3000, "input_length": 1024, "output_length": 0, "hash_ids": [1, 2]},
    ]
    workload = load_hash_trace(write(tmp_path / "t.jsonl.gz", *rows), tokens_per_block=16, vocabulary=5000)
    assert [session.start_s for session in workload.sessions] == [0.0, 2.0]
    first, second = bodies(workload)
    assert (len(first["prompt"]), len(second["prompt"])) == (32 + 3, 32)
    assert first["prompt"][:32] == second["prompt"]
    assert [session.steps[0].max_tokens for session in workload.sessions] == [7, 1]
    assert [session.start_s for session in workload.faster(4).sessions] == [0.0, 0.5]


def test_bailian_rows_become_sessions(tmp_path: Path) -> None:
    def row(chat: int, parent: int, time: float, ids: list[int]) -> dict[str, Any]:
        length = 16 * len(ids)
        return {
            "chat_id": chat,
            "parent_chat_id": parent,
            "timestamp": time,
            "input_length": length,
            "output_length": 3,
            "hash_ids": ids,
        }

    rows = [row(0, -1, 5.0, [1]), row(1, -1, 6.0, [9]), row(2, 0, 7.5, [1, 2]), row(3, 77, 8.0, [4])]
    workload = load_hash_trace(write(tmp_path / "b.jsonl.gz", *rows), endpoint=CHAT)
    assert [(session.start_s, [s.offset_s for s in session.steps]) for session in workload.sessions] == [
        (0.0, [0.0, 2.5]),
        (1.0, [0.0]),
        (3.0, [0.0]),
    ]


def test_sharegpt_and_multi_turn(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b" * 40}, {"from": "human", "value": "c"}]
    turns.append({"from": "gpt", "value": "d"})
    path = tmp_path / "s.json"
    path.write_text(json.dumps([{"id": "x", "conversations": turns}, {"id": "y", "conversations": turns[:1]}]))
    workload = load_sharegpt(path)
    assert [(session.id, [s.max_tokens for s in session.steps]) for session in workload.sessions] == [("x", [10, 1])]
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path.write_text(json.dumps([{"id": "z", "messages": messages}]))
    assert bodies(load_multi_turn(path)) == [{"messages": messages[:1]}]


MESSAGES = [{"role": "user", "content": "a"}]
ROW = {"session_id": "s", "messages": MESSAGES, "steps": [1]}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**ROW, "steps": [2]}, r"line 1: field `steps` must hold indices from 1 to 1"),
        ({**ROW, "steps": []}, r"line 1: field `steps` is empty"),
        ({**ROW, "messages": "x"}, r"line 1: field `messages` must be a list, found a string \(x\)"),
        ({**ROW, "messages": [{"role": "robot"}]}, r"messages\[0\].role` must be one of .*found 'robot'"),
        ({"messages": MESSAGES}, r"field `session_id` is missing; found messages"),
        ([1], r"line 1: expected a JSON object, found a list"),
    ],
)
def test_bad_session_rows(tmp_path: Path, row: Any, says: str) -> None:
    with pytest.raises(WorkloadError, match=says):
        load_sessions(write(tmp_path / "bad.jsonl.gz", row))


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"no such file; check --dataset-path"):
        load_sessions(tmp_path / "none")
    for data, says in ((b"", "is empty"), (b"{oops", "line 1: not JSON"), (b"\x1f\x8bxx", "cannot be read")):
        (tmp_path / "f").write_bytes(data)
        with pytest.raises(WorkloadError, match=says):
            load_sessions(tmp_path / "f")
    trace = {"timestamp": 0, "input_length": 1100, "output_length": 7, "hash_ids": [1]}
    with pytest.raises(WorkloadError, match="set --block-size"):
        load_hash_trace(write(tmp_path / "t", trace))
    with pytest.raises(WorkloadError, match="field `hash_ids` must hold integers"):
        load_hash_trace(write(tmp_path / "t", {**trace, "hash_ids": ["a", "b", "c"]}))
    with pytest.raises(WorkloadError, match=r"field `from` must be one of .*found 'alien'"):
        load_sharegpt(write(tmp_path / "t", {"conversations": [{"from": "alien", "value": "x"}]}))


def test_arrival_gaps_have_the_rate_and_the_burstiness() -> None:
    spread = {}
    for burstiness in (0.25, 1.0, 4.0):
        times = list(islice(arrival_times(5.0, burstiness, seed=1), 20_000))
        assert times == list(islice(arrival_times(5.0, burstiness, seed=1), 20_000))
        gaps = [b - a for a, b in pairwise(times)]
        mean = sum(gaps) / len(gaps)
        assert mean == pytest.approx(0.2, rel=0.05)
        spread[burstiness] = sum((gap - mean) ** 2 for gap in gaps) / len(gaps) / mean**2
    assert [spread[b] for b in (0.25, 1.0, 4.0)] == pytest.approx([4.0, 1.0, 0.25], rel=0.15)
    with pytest.raises(ValueError, match="request rate must be above 0"):
        next(arrival_times(0, 1, 0))


class VirtualTime:
    """A clock that jumps to the earliest sleeper once nothing else is ready to run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self.count = 0

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self.count += 1
        self.waiting.append((self.now + seconds, self.count, future))
        await future

    async def drive(self, task: asyncio.Task[None]) -> None:
        while not task.done():
            for _ in range(20):
                await asyncio.sleep(0)
            if self.waiting:
                self.waiting.sort()
                self.now, _, future = self.waiting.pop(0)
                future.set_result(None)
        await task


async def sent_at(
    sessions: list[Session], starts: list[float] | None, concurrency: int | None, takes: float
) -> list[tuple[str, int, float, float]]:
    time = VirtualTime()
    sent = []

    async def send(session: Session, step: Step, record: Any) -> None:
        sent.append((session.id, record.step, round(record.start_s, 6), round(record.late_s, 6)))
        await time.sleep(takes)

    schedule = Schedule(send, concurrency, clock=lambda: time.now, sleep=time.sleep)
    await time.drive(asyncio.create_task(schedule.run(sessions, iter(starts) if starts else None)))
    return sent


def steps(*pauses: tuple[float, float]) -> list[Step]:
    prompt = agents(sessions=1, steps=1).sessions[0].steps[0].prompt
    return [Step(prompt, 1, think_s=think, offset_s=offset) for think, offset in pauses]


async def test_open_loop_does_not_wait_for_answers() -> None:
    sessions = [Session(name, steps((0, 0))) for name in "abc"]
    assert await sent_at(sessions, [1.0, 1.5, 2.0], None, takes=10) == [
        ("a", 1, 1.0, 0.0),
        ("b", 1, 1.5, 0.0),
        ("c", 1, 2.0, 0.0),
    ]


async def test_bounded_open_loop_counts_lateness() -> None:
    sessions = [Session(name, steps((0, 0))) for name in "ab"]
    assert await sent_at(sessions, [1.0, 2.0], 1, takes=10) == [("a", 1, 1.0, 0.0), ("b", 1, 11.0, 9.0)]


async def test_closed_loop_starts_the_next_when_one_ends() -> None:
    sessions = [Session(name, steps((0, 0), (0, 0))) for name in "abc"]
    sent = await sent_at(sessions, None, 2, takes=3)
    assert [(name, step, at) for name, step, at, _ in sent] == [
        ("a", 1, 0.0),
        ("b", 1, 0.0),
        ("a", 2, 3.0),
        ("b", 2, 3.0),
        ("c", 1, 6.0),
        ("c", 2, 9.0),
    ]


async def test_think_times_and_recorded_offsets() -> None:
    sessions = [Session("a", steps((0, 0), (2, 0), (0, 30), (0, 31)))]
    sent = await sent_at(sessions, [5.0], None, takes=4)
    assert [at for _, _, at, _ in sent] == [5.0, 11.0, 35.0, 39.0]
