"""Sessions, prefix breaks and records, through the router: real requests, real answers, the admin port's reports."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import logging
from typing import Any

import pytest
from e2e.conftest import receipt
from observe.mutations import body, sessions
from openai import AsyncOpenAI

from router.cli import main

SESSION = next(s for s in sessions() if s["source"].startswith("sierra") and len(s["steps"]) > 4)


async def admin(system, path: str, status: int = 200) -> Any:
    async with system.client.get(system.admin_url + path) as answer:
        assert answer.status == status, await answer.text()
        return await answer.json()


async def send(system, content: dict[str, Any], **headers: str) -> dict[str, str]:
    request = {**content, "model": "sim", "max_tokens": 4}
    status, told, answer = await system.post("/v1/chat/completions", request, **headers)
    assert status == 200, answer
    await system.settled()
    return told


@pytest.mark.parametrize("named", [True, False])
async def test_a_session_is_told_step_by_step(build, named: bool) -> None:
    """Named by the client or not: one session, its steps, what was resent, reused and recomputed."""
    system = await build()
    headers = {"x-session-id": "agent-1"} if named else {}
    for step in range(4):
        told = await send(system, body(SESSION, step), **headers)
        assert receipt(told, "session").endswith(f"step={step + 1}")
        assert "x-prefix-router-break" not in told
    listed = (await admin(system, "/sessions"))["sessions"]
    assert len(listed) == 1
    one = await admin(system, f"/sessions/{listed[0]['id']}")
    assert one["named_by_client"] is named
    table = one["table"]
    assert [row["relation"] for row in table] == ["first", "extends", "extends", "extends"]
    assert [row["resent_tokens"] <= row["prompt_tokens"] for row in table] == [True] * 4
    for before, row in itertools.pairwise(table):
        assert row["resent_tokens"] == before["prompt_tokens"] // 16 * 16
        assert row["reused_tokens"] >= row["resent_tokens"]
        assert row["recomputed_tokens"] == 0
        assert row["cause"] == "new"
    assert table[-1]["sum_without_reuse"] == sum(row["prompt_tokens"] for row in table) == one["prompt_tokens"]
    assert table[-1]["sum_prefilled"] == one["prefilled_tokens"] < one["prompt_tokens"] / 2
    if named:
        assert (await admin(system, "/sessions/agent-1"))["id"] == one["id"]


@pytest.mark.parametrize("named", [True, False])
async def test_a_clock_in_the_system_prompt_is_pointed_at(build, named: bool) -> None:
    system = await build()
    headers = {"x-session-id": "agent-1"} if named else {}
    for step in range(3):
        content = body(SESSION, step)
        text = content["messages"][0]["content"]
        content["messages"][0]["content"] = f"Rules first.\nNow: 2026-03-01 10:00:0{step}\n{text}"
        told = await send(system, content, **headers)
        if not step:
            assert "x-prefix-router-break" not in told
            continue
        broken = dict(part.split("=") for part in receipt(told, "break").split("; ")[1:])
        assert receipt(told, "break").startswith("timestamp_or_counter; ")
        assert broken["offset"] == str(len("Rules first.\nNow: 2026-03-01 10:00:0"))
        assert broken["role"] == "system"
        assert int(broken["lost"]) > 1000
        assert receipt(told, "session").endswith(f"step={step + 1}")
    record = await admin(system, "/requests/" + receipt(told, "request"))
    assert record["break"]["before"] == record["break"]["after"] != ""
    assert "0000-00-00 00:00:00" in record["break"]["after"]
    assert record["cause"] == "mutated"
    assert record["computed_tokens"]["mutated"] > 1000
    page = await (await system.client.get(system.admin_url + "/metrics")).text()
    assert 'prefix_router_prefix_breaks_total{class="timestamp_or_counter"} 2.0' in page
    one = (await admin(system, "/sessions?broken=1"))["sessions"][0]
    assert one["breaks"] == {"timestamp_or_counter": 2}
    assert one["lost_to_breaks_tokens"] > 2000


async def test_text_is_shown_only_where_it_is_allowed(build) -> None:
    for allowed in (False, True):
        system = await build(settings={"observe.break_text": allowed})
        for word in ("hello", "Howdy"):
            content = body(SESSION, 1)
            content["messages"][0]["content"] = f"Say {word}, {allowed}. " + content["messages"][0]["content"]
            told = await send(system, content, **{"x-session-id": "s"})
        found = (await admin(system, "/requests/" + receipt(told, "request")))["break"]
        assert ("Howdy" in found["after"]) is allowed
        assert ("hello" in found["before"]) is allowed
        everything = json.dumps([await admin(system, "/requests"), await admin(system, "/sessions")])
        assert ("Howdy" in everything) is allowed


EVIL = "a\r\nx-evil: 1\r\n\r\n" + "b" * 5000


@pytest.mark.parametrize("change", ["changed", "removed"])
async def test_what_a_client_named_adds_no_line_to_the_answers_head_or_the_log(build, caplog, change: str) -> None:
    caplog.set_level(logging.INFO)
    system = await build(replicas=1)
    history = [{"role": "user", "content": "hello " * 50}, {"role": "assistant", "content": "ok " * 50}]
    for tools in ([1], [2] if change == "changed" else []):
        made = [{"type": "function", "function": {"name": EVIL, "parameters": {"a": n}}} for n in tools]
        told = await send(system, {"messages": history, "tools": made}, **{"x-session-id": "s"})
        assert "x-evil" not in told
    assert "field=tools[0].a" in told["x-prefix-router-break"]
    assert len(told["x-prefix-router-break"]) < 300
    logged = [line for line in caplog.messages if "prefix break in session" in line]
    assert len(logged) == 1 and "tools[0].a??x-evil" in logged[0] and "\n" not in logged[0] and len(logged[0]) < 400


async def test_branches_and_retries_are_no_breaks(build) -> None:
    system = await build()
    headers = {"x-session-id": "agent-1"}
    for step in (0, 1, 1, 2, 1, 3):
        assert "x-prefix-router-break" not in await send(system, body(SESSION, step), **headers)
    side = copy.deepcopy(body(SESSION, 1))
    side["messages"][0]["content"] = "You are a sub-agent that summarizes."
    side["messages"][1:] = [{"role": "user", "content": "Summarize what the other agent has done so far, please."}]
    assert "x-prefix-router-break" not in await send(system, side, **headers)
    assert "x-prefix-router-break" not in await send(system, body(SESSION, 4), **headers)
    told = await admin(system, "/sessions/agent-1")
    relations = [row["relation"] for row in told["table"]]
    assert relations == ["first", "extends", "repeats", "extends", "rewinds", "extends", "unrelated", "extends"]


async def test_bad_questions_get_clear_answers(build) -> None:
    system = await build()
    await send(system, body(SESSION, 0), **{"x-session-id": "one"})
    for path, status, field in (
        ("/sessions?limit=0", 400, "limit"),
        ("/sessions?limit=501", 400, "limit"),
        ("/sessions?limit=9999999999999999999999", 400, "limit"),
        ("/sessions?start=-1", 400, "start"),
        ("/sessions?limit=ten", 400, "limit"),
        ("/sessions/nobody", 404, "id"),
        ("/sessions/%00%ff", 404, "id"),
        ("/requests/nothing", 404, "id"),
        ("/requests/" + "n" * 5000, 404, "id"),
        ("/sessions/" + "n" * 5000, 404, "id"),
        ("/requests?since=x", 400, "since"),
    ):
        told = await admin(system, path, status)
        assert told["error"]["field"] == field
        assert told["error"]["message"]
    assert (await admin(system, "/sessions?limit=1&start=5"))["sessions"] == []


async def test_pages(build) -> None:
    system = await build()
    for number in range(5):
        await send(system, body(SESSION, 0), **{"x-session-id": f"s{number}"})
    first = await admin(system, "/sessions?limit=2")
    second = await admin(system, f"/sessions?limit=2&start={first['next']}")
    last = await admin(system, f"/sessions?limit=2&start={second['next']}")
    names = [one["name"] for page in (first, second, last) for one in page["sessions"]]
    assert names == ["s4", "s3", "s2", "s1", "s0"]
    assert last["next"] is None
    newest = (await admin(system, "/requests?limit=2"))["requests"]
    assert [one["session"] for one in newest] == [one["id"] for one in first["sessions"]]
    savings = (await admin(system, "/savings"))["savings"]
    assert [(one["tenant"], one["model"], one["steps"]) for one in savings] == [("", "sim", 5)]


async def test_the_command_prints_sessions(build, capsys: pytest.CaptureFixture[str]) -> None:
    """The list, one session by its client's name with its steps and breaks, and what it says where there is none."""
    system = await build()

    async def run(*arguments: str) -> tuple[int, str, str]:
        status = await asyncio.to_thread(main, ["sessions", *arguments, "--url", system.admin_url])
        return status, *capsys.readouterr()

    assert await run() == (0, "no sessions are remembered\n", "")
    await send(system, body(SESSION, 0), **{"x-session-id": "calm"})
    assert await run("--broken") == (0, "no session with prefix breaks is remembered\n", "")
    for step in range(3):
        content = body(SESSION, step)
        content["messages"][0]["content"] = f"Now: 2026-03-01 10:00:0{step}\n" + content["messages"][0]["content"]
        await send(system, content, **{"x-session-id": "agent 1/x"})
    one = (await admin(system, "/sessions"))["sessions"][0]
    _, shown, _ = await run()
    assert [line.split()[0] for line in shown.splitlines()[1:]] == [
        each["id"] for each in (await admin(system, "/sessions"))["sessions"]
    ]
    assert "timestamp_or_counter x2" in shown
    assert f"{one['prompt_tokens']:,}" in shown
    _, shown, _ = await run("--broken")
    assert len(shown.splitlines()) == 2
    status, shown, _ = await run("agent 1/x")
    assert status == 0
    assert f"{one['prompt_tokens']:,} sent in 3 steps, {one['prefilled_tokens']:,} computed" in shown
    assert "step 3: timestamp_or_counter in message 0, content, character 23: " in shown
    assert "0000-00-00 00:00:00" in shown
    assert json.loads((await run("agent 1/x", "--json"))[1])["id"] == one["id"]
    status, _, said = await run("nobody")
    assert status == 2
    assert "no session 'nobody'" in said


async def test_the_receipt_at_the_end_of_a_stream(build) -> None:
    """For who asks, after the last event, as a comment that the openai client skips; else nothing is added."""
    system = await build(replicas=1)
    content = {**body(SESSION, 1), "model": "sim", "max_tokens": 4, "stream": True, "temperature": 0}
    content["stream_options"] = {"include_usage": True}
    url = system.url + "/v1/chat/completions"
    async with system.client.post(url, json=content) as answer:
        plain = await answer.text()
    await system.settled()
    assert "prefix-router" not in plain
    async with system.client.post(url, json=content, headers={"x-prefix-router-receipt": "comment"}) as answer:
        told, closed = dict(answer.headers), await answer.text()
    stream, mark, comment = closed.rpartition(": prefix-router ")
    assert mark
    assert stream.endswith("data: [DONE]\n\n")
    assert stream.count("data: ") == plain.count("data: ")
    said = json.loads(comment)
    record = await admin(system, "/requests/" + told["x-prefix-router-request"])
    assert said["request"] == record["id"]
    assert said["cached_tokens"] == record["cached_tokens"] > 0
    assert (said["cause"], said["computed_tokens"]) == (record["cause"], record["computed_tokens"])
    async with AsyncOpenAI(base_url=system.url + "/v1", api_key="none") as client:
        chunks = await client.chat.completions.create(**content, extra_headers={"x-prefix-router-receipt": "comment"})
        assert [chunk async for chunk in chunks][-1].usage.prompt_tokens == record["prompt_tokens"]


async def test_refused_requests_are_in_the_access_log(build, caplog: pytest.LogCaptureFixture) -> None:
    """With their status and reason, and never their text; they push nothing out of the records."""
    system = await build(replicas=1)
    with caplog.at_level(logging.INFO, logger="router.access"):
        content = {**body(SESSION, 0), "model": "nope"}
        status, _, _ = await system.post("/v1/chat/completions", content, **{"x-request-id": "refused-1"})
        assert status == 404
        status, _, _ = await system.post("/v1/chat/completions", {"model": "sim", "messages": "secret text"})
        assert status == 400
    first, second = (json.loads(r.getMessage()) for r in caplog.records if r.name == "router.access")
    assert (first["id"], first["status"], first["error"]) == ("refused-1", 404, "model_not_found")
    assert (second["path"], second["status"], second["param"]) == ("/v1/chat/completions", 400, "messages")
    assert "secret" not in json.dumps(second)
    assert (await admin(system, "/requests"))["requests"] == []
