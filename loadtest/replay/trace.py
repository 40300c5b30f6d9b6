"""Recorded requests as a replay's workload: block ids and times, no text.

| format | block ids | time | lengths |
|---|---|---|---|
| Mooncake | `hash_ids`, 512 tokens each | `timestamp` (ms) | `input_length`, `output_length` |
| Bailian (rows with `chat_id`) | `hash_ids`, 16 tokens each | `timestamp` (s) | as above |
| access log with `log.blocks` | `blocks`, `block_size` each | `at` (s) | `prompt_tokens`, `completion_tokens` |

An id names its block and all before it. Whose step a row is follows from that: it continues the last row whose prompt
ended on a block of its own, and is not sent before that one is answered. The blocks between the two prompts are what
was generated, so the replayed engine holds them as the real one did.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loadtest.files import Row, read_bytes, read_lines
from loadtest.replay.workload import Call, Session, Workload
from loadtest.traces import BAILIAN_BLOCK, MOONCAKE_BLOCK
from loadtest.types import WorkloadError

UNTOLD_OUTPUT = 100
"""Tokens of an answer whose length was not recorded."""


@dataclass(slots=True)
class _Request:
    at: float
    prompt: int
    output: int
    ids: list[int]
    next: _Request | None = None


def load_trace(path: str | Path, *, block_size: int | None = None, speedup: float = 1.0) -> Workload:
    """The trace's requests, `speedup` times as fast as recorded. Raises WorkloadError naming file, line and field."""
    if speedup <= 0:
        raise WorkloadError(f"--speedup must be above 0, got {speedup}")
    rows = list(_rows(path))
    if not rows:
        raise WorkloadError(f"{path}: no request with block ids; record them with log.access and log.blocks")
    first = rows[0]
    if "blocks" in first.fields:
        block = first.count("block_size", 1)
        made = [_from_log(row, block) for row in rows]
    else:
        linked = "chat_id" in first.fields
        block = block_size or (BAILIAN_BLOCK if linked else MOONCAKE_BLOCK)
        made = [_from_trace(row, 1.0 if linked else 1000.0) for row in rows]
    made.sort(key=lambda request: request.at)
    return Workload(Path(path).name, block, list(_sessions(made, block, speedup)))


def _rows(path: str | Path) -> Iterator[Row]:
    """Rows with block ids; an access log's lines may stand behind a date and a level."""
    data = read_bytes(path)
    if b'"blocks"' not in data:
        yield from read_lines(path)
        return
    for number, line in enumerate(data.split(b"\n"), start=1):
        start = line.find(b"{")
        if b'"blocks"' not in line or start < 0:
            continue
        where = f"{path}, line {number}"
        try:
            yield Row(where, json.loads(line[start:]))
        except ValueError as error:
            raise WorkloadError(f"{where}: not JSON ({error}); expected a line of the access log") from None


def _ids(row: Row, name: str) -> list[int]:
    ids = row.get(name, list)
    if not all(type(one) is int for one in ids):
        raise row.error(name, "must hold integers")
    return list(ids)


def _from_log(row: Row, block: int) -> _Request:
    if row.count("block_size", 1) != block:
        raise row.error("block_size", f"must be {block}, as in the first line: replay one model at a time")
    output = row.get("completion_tokens", int, UNTOLD_OUTPUT)
    return _Request(float(row.get("at", (int, float))), row.count("prompt_tokens", 0), output, _ids(row, "blocks"))


def _from_trace(row: Row, ticks_per_s: float) -> _Request:
    at = float(row.get("timestamp", (int, float))) / ticks_per_s
    return _Request(at, row.count("input_length", 1), row.count("output_length", 0), _ids(row, "hash_ids"))


def _sessions(made: list[_Request], block: int, speedup: float) -> Iterator[Session]:
    """Requests linked into sessions. `made`: by time."""
    ends: dict[int, _Request] = {}
    starts: list[_Request] = []
    for request in made:
        request.prompt = max(1, request.prompt)
        request.output = max(1, request.output)
        request.ids = request.ids[: request.prompt // block]
        before = next((ends[one] for one in reversed(request.ids) if one in ends), None)
        if before is not None and before.next is None:
            before.next = request
        else:
            starts.append(request)
        if request.ids:
            ends[request.ids[-1]] = request
    fresh = -1
    origin = made[0].at
    for start in starts:
        calls: list[Call] = []
        step: _Request | None = start
        while step is not None:
            needed = (step.prompt + step.output) // block + 1
            keys = list(step.ids) if step.next is None else step.next.ids[:needed]
            missing = needed - len(keys)
            if missing > 0:
                keys.extend(range(fresh, fresh - missing, -1))
                fresh -= missing
            offset = (step.at - start.at) / speedup
            calls.append(Call(step.prompt, step.output, offset_s=offset, keys=keys))
            step = step.next
        yield Session((start.at - origin) / speedup, calls)
