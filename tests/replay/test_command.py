"""`loadtest replay`: traces of three kinds, tables, JSON, clear errors; and the router's own access log replayed."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest
from e2e.conftest import Build, Stack, build
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.replay.engine import Replay, Settings
from loadtest.replay.trace import load_trace
from loadtest.replay.workload import Workload, ideal
from router.cli import main
from router.routing.policies import Prefix

__all__ = ["build"]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def growing(sessions: int, steps: int, block: int = 16) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for session in range(sessions):
        ids = list(range(20))
        for step in range(steps):
            ids += [1000 * (session + 1) + 10 * step + one for one in range(6)]
            row = {"timestamp": session * 0.1 + step * 2, "hash_ids": list(ids), "input_length": len(ids) * block}
            rows.append({**row, "output_length": 40, "chat_id": len(rows)})
    return rows


def test_steps_are_linked_by_their_blocks_and_generated_blocks_are_known(tmp_path: Path) -> None:
    workload = load_trace(write(tmp_path / "t.jsonl", growing(3, 4)))
    assert (workload.block, workload.requests, len(workload.sessions)) == (16, 12, 3)
    first = workload.sessions[0].calls
    assert [call.prompt for call in first] == [26 * 16, 32 * 16, 38 * 16, 44 * 16]
    assert first[0].keys is not None
    assert first[1].keys is not None
    assert first[0].keys[26:28] == first[1].keys[26:28], "what was generated is the next prompt's"
    done = Replay(workload, Prefix(), Settings(replicas=2, kv_blocks=1000)).run()
    assert done.requests == 12
    assert done.hit_rate == pytest.approx(ideal(workload, 2000).infinite, abs=0.1)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(0, 60)), min_size=1, max_size=40))
def test_any_trace_replays_every_request_once(moves: list[tuple[int, int, int]]) -> None:
    rows, prompts = [], {agent: [1, 2, 3] for agent in range(4)}
    for number, (agent, grown, output) in enumerate(moves):
        prompts[agent] = prompts[agent] + [100 * number + 1000 + one for one in range(grown)]
        ids = prompts[agent]
        row = {"at": float(number), "block_size": 16, "blocks": ids, "prompt_tokens": len(ids) * 16 + 5}
        rows.append({**row, "completion_tokens": output or None})
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        workload = load_trace(write(Path(folder) / "log", rows))
    done = Replay(workload, Prefix(), Settings(replicas=2, kv_blocks=400)).run()
    assert done.requests == workload.requests == len(rows)


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "t.jsonl.gz"
    trace.write_bytes(gzip.compress(write(tmp_path / "t", growing(5, 5)).read_bytes()))
    report = tmp_path / "r.json"
    command = ["loadtest", "replay", "--trace", str(trace), "--replicas", "2", "4", "--json", str(report)]
    assert main([*command, "--policies", "prefix", "round_robin", "prefix,recompute=4", "--check", "0.97"]) == 0
    printed = capsys.readouterr().out
    assert "25 requests, 4 replicas" in printed
    rows = json.loads(report.read_text())
    assert [(row["replicas"], row["policy"]) for row in rows[:3]] == [
        (2, "prefix"),
        (2, "round_robin"),
        (2, "prefix,recompute=4"),
    ]
    assert rows[0]["hit_rate"] > rows[1]["hit_rate"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workload", "nope"], "one of agents"),
        (["--policies", "prefix,x=1"], "recompute"),
        (["--policies", "prefix,recompute=a"], "must be a number"),
        (["--slow", "a"], "--slow takes"),
        (["--slow", "9:2"], "replicas 0 to 7"),
        (["--trace", "missing.jsonl"], "no such file"),
        (["--speedup", "0", "--trace", "T"], "--speedup"),
    ],
)
def test_bad_input_is_named(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = write(tmp_path / "t", growing(1, 1))
    given = [str(trace) if one == "T" else one for one in arguments]
    assert main(["loadtest", "replay", "--requests", "20", *given]) == 2
    assert said in capsys.readouterr().err


def test_a_bad_row_names_line_and_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = write(tmp_path / "t", [{"timestamp": 1, "input_length": 100, "output_length": 1, "hash_ids": ["a"]}])
    assert main(["loadtest", "replay", "--trace", str(trace)]) == 2
    assert "line 1: field `hash_ids` must hold integers" in capsys.readouterr().err


async def test_the_routers_access_log_can_be_replayed(
    build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    system: Stack = await build(replicas=2, settings={"log.access": True, "log.blocks": True})
    with caplog.at_level(logging.INFO, logger="router.access"):
        messages = [{"role": "system", "content": "You answer briefly. " * 60}]
        for step in range(4):
            messages.append({"role": "user", "content": f"question {step} " * 20})
            _, answer = await system.chat(messages)
            messages.append(answer["choices"][0]["message"])
        await system.idle()
    log = tmp_path / "router.log"
    lines = [r.getMessage() for r in caplog.records if r.name == "router.access"]
    log.write_text("".join(f"2026-01-01 00:00:00 INFO    {line}\n" for line in lines) + "another line\n")
    assert "question" not in log.read_text()
    workload: Workload = load_trace(log)
    assert (workload.requests, len(workload.sessions)) == (4, 1)
    done = Replay(workload, Prefix(), Settings(replicas=2, kv_blocks=2000)).run()
    assert done.cached_tokens > 0.5 * done.prompt_tokens
