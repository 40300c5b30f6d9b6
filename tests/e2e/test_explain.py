"""POST /explain and the command: what would be decided, from a real body, with nothing sent and nothing remembered."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from e2e.conftest import Build, Stack, receipt

from router.cli import main

SYSTEM = {"role": "system", "content": "You are a careful agent. " * 100}


def body(question: str) -> dict[str, Any]:
    return {"model": "sim", "messages": [SYSTEM, {"role": "user", "content": question}], "max_tokens": 4}


async def explain(system: Stack, content: Any, status: int = 200, **headers: str) -> Any:
    async with system.client.post(system.admin_url + "/explain", json=content, headers=headers) as answer:
        told = await answer.json()
        assert answer.status == status, told
        return told


@pytest.mark.parametrize("policy", ["prefix", "round_robin"])
async def test_the_explanation_is_what_then_happens(build: Build, policy: str) -> None:
    system = await build(replicas=3, settings={"routing.policy": policy, "observe.prompts": "always"})
    await system.chat(body("first")["messages"])
    await system.settled()
    for number in range(4):
        content = body(f"number {number}")
        told = await explain(system, content)
        again = await explain(system, content)
        assert (again["decision"], again["chain"]) == (told["decision"], told["chain"])
        headers, _ = await system.chat(content["messages"])
        assert told["decision"]["replica"] == receipt(headers, "replica")
        assert told["decision"]["reason"] == receipt(headers, "reason")
        assert str(told["tokens"]["prompt"]) == receipt(headers, "prompt-tokens")
        assert told["tokens"]["exact"]
        first = told["candidates"][0]
        assert str(first["matched_tokens"]) == receipt(headers, "matched-tokens")
        if policy == "prefix":
            parts = [first["cost_s"][name] for name in ("base", "queue", "crowd", "prefill", "later")]
            assert first["cost_s"]["total"] == pytest.approx(sum(parts) - first["cost_s"]["affinity"])
            assert len(told["candidates"]) == 3
        await system.settled()


async def test_a_question_leaves_nothing_behind(build: Build) -> None:
    system = await build(replicas=2)
    for number in range(5):
        told = await explain(system, body(f"{number}"), **{"x-session-id": "mine"})
        assert told["session"] == told["session"] | {"found_by": "new", "id": None, "steps": None}
    assert len(system.app.placement.lineage) == 0
    assert [(r.load.running, r.load.pending_prefill, r.load.turn) for r in system.app.fleet] == [(0, 0, 0)] * 2
    assert all(simulated.in_flight == 0 for simulated in system.fleet)
    async with system.client.get(system.admin_url + "/requests") as answer:
        assert (await answer.json())["requests"] == []


async def test_a_session_is_named_with_its_home(build: Build) -> None:
    system = await build(replicas=2)
    headers, answer = await system.chat(body("hello")["messages"])
    follow = body("hello")
    follow["messages"] += [answer["choices"][0]["message"], {"role": "user", "content": "and then? " * 30}]
    told = await explain(system, follow)
    assert told["session"]["found_by"] == "end"
    assert told["session"]["home"] == receipt(headers, "replica")


async def test_bad_questions_get_clear_answers(build: Build) -> None:
    system = await build(replicas=1)
    told = await explain(system, {"model": "nope", "messages": []}, 404)
    assert "nope" in told["error"]["message"]
    told = await explain(system, {"model": "sim", "messages": "x"}, 400)
    assert told["error"]["field"] == "messages"
    async with system.client.post(system.admin_url + "/explain?path=/v1/models", json={}) as answer:
        assert (answer.status, (await answer.json())["error"]["field"]) == (400, "path")


async def test_the_command_prints_a_table(build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    system = await build(replicas=2)
    headers, _ = await system.chat(body("hello")["messages"])
    await system.settled()
    file = tmp_path / "request.json"
    file.write_text(json.dumps(body("hello")))
    assert await asyncio.to_thread(main, ["explain", str(file), "--url", system.admin_url]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"to {receipt(headers, 'replica')} because prefix (policy prefix)")
    assert "prefill" in printed
    assert await asyncio.to_thread(main, ["explain", str(tmp_path / "none"), "--url", system.admin_url]) == 2
    assert "No such file" in capsys.readouterr().err
    file.write_text('{"model": "nope", "messages": []}')
    assert await asyncio.to_thread(main, ["explain", str(file), "--url", system.admin_url]) == 2
    assert "nope" in capsys.readouterr().err
