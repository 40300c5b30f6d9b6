"""Breaks injected into real sessions are found where they are; what is no break is not called one."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from typing import Any

import pytest
from observe.mutations import MUTATIONS, Body, anthropic, body, sessions

from router.observe.breaks import Break, BreakClass, Comparison, Relation, compare
from router.observe.digest import Digester
from router.prompt.requests import ApiRequest, parse_request

SESSIONS = sessions()
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"


def parsed(path: str, content: Body) -> ApiRequest:
    return parse_request(path, json.dumps(content).encode())


def related(path: str, before: Body, after: Body, **options: Any) -> Comparison:
    digester = Digester(**options)
    one, other = parsed(path, before), parsed(path, after)
    return compare(digester.digest(one), digester.digest(other), other)


@pytest.mark.parametrize("name", MUTATIONS)
def test_injected_breaks_are_found(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """At the right message and field, with the right class, in at least 99 %; the offset to the character mostly."""
    rng = random.Random(name)
    tally: Counter[str] = Counter()
    wrong: list[Any] = []
    while tally["injected"] < 400:
        session = rng.choice(SESSIONS)
        step = rng.randrange(len(session["steps"]) - 1)
        before, after = body(session, step), body(session, step + 1)
        expected = MUTATIONS[name](rng, before, after)
        tally["tried"] += 1
        assert tally["tried"] < 40_000, "the sessions don't allow this mutation"
        if expected is None:
            continue
        tally["injected"] += 1
        found = related(CHAT, before, after).broken
        right = (
            found is not None
            and (found.kind, found.message) == (expected.kind, expected.message)
            and found.field.startswith(expected.field)
        )
        tally["found"] += right
        if not right:
            wrong.append((session["session_id"], step, expected, found))
        elif expected.offset is not None and found is not None and found.offset is not None:
            tally["placed"] += 1
            tally["to the character"] += found.offset == expected.offset
            tally["in reach"] += found.offset - 2 <= expected.offset <= found.offset + found.within
    with capsys.disabled():
        print(f"\n{name}: {dict(tally)}")
    assert tally["found"] >= 0.99 * tally["injected"], wrong[:3]
    if tally["placed"]:
        assert tally["in reach"] >= 0.99 * tally["placed"]


@pytest.mark.parametrize("name", [name for name in MUTATIONS if name not in ("re-ordered keys", "template arguments")])
def test_injected_breaks_are_found_in_anthropic_messages(name: str) -> None:
    """System text stands outside the messages there, and tool results are user messages' blocks."""
    rng = random.Random(name)
    tally: Counter[bool] = Counter()
    while tally.total() < 100:
        session = rng.choice(SESSIONS)
        step = rng.randrange(len(session["steps"]) - 1)
        before, after = body(session, step), body(session, step + 1)
        expected = MUTATIONS[name](rng, before, after)
        if expected is None:
            continue
        system = before["messages"][0]["role"] == "system"
        place = None if expected.message is None or (system and not expected.message) else expected.message - system
        found = related(MESSAGES, anthropic(before), anthropic(after)).broken
        tally[found is not None and (found.kind, found.message) == (expected.kind, place)] += 1
    assert tally[True] >= 99


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_no_false_breaks(path: str) -> None:
    """Steps, retries, going back, new answers, branches: in no session is any of them a break."""
    write = anthropic if path == MESSAGES else copy.deepcopy
    seen: Counter[Relation] = Counter()
    for session in SESSIONS:
        for step in range(1, len(session["steps"])):
            before, after = body(session, step - 1), body(session, step)
            again = body(session, step)
            end = session["steps"][step - 1]
            anew = copy.deepcopy(after)
            anew["messages"][end:] = [
                {"role": "assistant", "content": "Another answer."},
                {"role": "user", "content": "Another reply."},
            ]
            asked_otherwise = copy.deepcopy(after)
            asked_otherwise["messages"][-1]["content"] = "Something else now."
            for one, other, expected in (
                (before, after, Relation.EXTENDS),
                (after, again, Relation.REPEATS),
                (after, before, Relation.REWINDS),
                (after, anew, Relation.FORKS),
                (after, asked_otherwise, Relation.FORKS),
            ):
                found = related(path, write(one), write(other))
                assert (found.relation, found.broken) == (expected, None), (session["session_id"], step)
                seen[found.relation] += 1
    assert all(seen[relation] > 50 for relation in list(Relation)[1:5])


def test_the_header_is_one_short_line_whatever_clients_call_things() -> None:
    evil = "a\r\nx-evil: 1\u2028\x00\x7f" + "\u00e9" * 5000
    told = Break(BreakClass.TOOLS, 3, evil, f"tools[1] {evil}", 7).header()
    assert told.isascii() and told.isprintable() and len(told) < 300
    assert told.startswith("changed_tools; message=3; role=a??x-evil:.1") and "; offset=7; lost=0" in told
    assert Break(BreakClass.TOOLS, None, "tools", "tools[0] read_file.a", 0).header().count("read_file.a;") == 1


def test_other_sessions_are_unrelated() -> None:
    """Whatever two sessions share, they are not versions of one another."""
    rng = random.Random(5)
    for _ in range(300):
        one, other = rng.sample(SESSIONS, 2)
        before = body(one, rng.randrange(len(one["steps"])))
        after = body(other, 0)
        assert related(CHAT, before, after).relation is Relation.UNRELATED


def test_many_messages_are_looked_at_some_at_a_time() -> None:
    content = {"model": "m", "messages": [{"role": "user", "content": f"{i} "} for i in range(1000)]}
    digester = Digester()
    request = parsed(CHAT, content)
    assert sum(1 for _ in digester.warm(request)) == 1000 // 128
    assert all(message.print is not None for message in request.body["messages"])
    assert sum(1 for _ in digester.warm(parsed(CHAT, content))) == 0, "they are known"
    assert digester.digest(request) == Digester().digest(parsed(CHAT, content))
