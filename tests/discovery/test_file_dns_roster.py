"""Discovery from a file and from DNS, and several sources put together."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.waiting import PATIENCE_S

from router.fleet.discovery import DnsSource, Endpoint, EventPorts, FileSource, Roster
from router.fleet.discovery.file import parse


async def problem(source: Any, text: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while text not in source.problem or (not text and source.problem):
            await asyncio.sleep(0.005)


async def test_a_file_is_read_again_when_it_changes(tmp_path: Path, reports: Any) -> None:
    path = tmp_path / "replicas.yaml"
    source = FileSource(path, interval_s=0.01)
    reports.start(source)
    await problem(source, "can't be read: No such file")
    path.write_text("- url: http://10.0.0.1:8000\n- {url: 'http://10.0.0.2:8000/', id: two, engine: sglang}\n")
    found = await reports.names("10.0.0.1:8000", "two")
    assert found["two"].url == "http://10.0.0.2:8000"
    assert found["two"].kind == "sglang"
    await problem(source, "")
    path.write_text("- url: 10.0.0.1:8000\n")
    await problem(source, "entry 1: ")
    path.write_text('{"replicas": [{"url": "http://10.0.0.1:8000", "draining": true}]}')
    found = await reports.names("10.0.0.1:8000")
    assert found["10.0.0.1:8000"].terminating and not found["10.0.0.1:8000"].ready
    assert source.problem == ""
    path.write_text("")
    await problem(source, "an empty list: `[]`")
    path.write_text("[]")
    await reports.names()
    assert [len(report) for report in reports.all] == [2, 1, 0]


async def test_a_replaced_configmap_link_is_seen(tmp_path: Path, reports: Any) -> None:
    for name, address in (("v1", 1), ("v2", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "r.yaml").write_text(f"- url: http://10.0.0.{address}:8000\n")
        os.utime(tmp_path / name / "r.yaml", (1, 1))
    (tmp_path / "data").symlink_to("v1")
    reports.start(FileSource(tmp_path / "data" / "r.yaml", interval_s=0.01))
    await reports.names("10.0.0.1:8000")
    (tmp_path / "next").symlink_to("v2")
    (tmp_path / "next").rename(tmp_path / "data")
    await reports.names("10.0.0.2:8000")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- url: http://a:1\n- url: http://a:1\n", "entry 2: id a:1 is given twice"),
        ("- url: http://a:1\n  engin: vllm\n", "entry 1: Object contains unknown field `engin`"),
        ("url: http://a:1\n", "must be a list"),
        ("- [\n", "line 2: not valid YAML"),
        ("- url: http://a:1\n  events: {endpoint: 'http://a'}\n", r"entry 1: .*\$\.events\.endpoint"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(text)


async def test_localhost_resolves(reports: Any) -> None:
    source = DnsSource("localhost", 8000, interval_s=0.05, events=EventPorts(5557))
    reports.start(source)
    found = await reports.until(lambda now: len(now) == 1)
    (endpoint,) = found.values()
    assert endpoint.url in ("http://127.0.0.1:8000", "http://[::1]:8000")
    assert endpoint.events is not None and endpoint.events.endpoint.endswith(":5557")


async def test_dns_changes_and_failures(reports: Any) -> None:
    gone = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    again = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    script: list[Any] = [
        ["10.0.0.2", "10.0.0.1"], ["10.0.0.1", "10.0.0.2"], again, gone, again, gone, gone, ["fd00::1"],
        gone, gone, gone, gone, TimeoutError(), ["10.0.0.9"],
    ]  # fmt: skip
    problems: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        problems.append(source.problem)
        step = script.pop(0) if script else ["10.0.0.9"]
        if isinstance(step, Exception):
            raise step
        assert isinstance(step, list)
        return step

    source = DnsSource("vllm.models.svc", 8000, interval_s=0.001, resolve=resolve)
    reports.start(source)
    await reports.names("10.0.0.9:8000")
    assert [[e.id for e in report] for report in reports.all] == [
        ["10.0.0.1:8000", "10.0.0.2:8000"],
        ["[fd00::1]:8000"],
        [],
        ["10.0.0.9:8000"],
    ]
    assert "Temporary failure" in problems[3]
    await problem(source, "")


async def test_a_resolver_that_hangs_is_a_problem(reports: Any) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        await asyncio.sleep(30)
        return []

    source = DnsSource("vllm", 8000, timeout_s=0.01, interval_s=0.01, resolve=resolve)
    reports.start(source)
    await problem(source, "the resolver does not answer")


def endpoint(name: str, address: int = 1, **changes: Any) -> Endpoint:
    return replace(Endpoint(name, f"http://10.0.0.{address}:8000"), **changes)


def test_what_changed() -> None:
    roster = Roster()
    assert [e.id for e in roster.report("one", [endpoint("a", 1), endpoint("b", 2)]).added] == ["a", "b"]
    changes = roster.report("one", [endpoint("a", 3), endpoint("b", 2, ready=False, terminating=True)])
    assert changes.removed == ["a"]
    assert [e.url for e in changes.added] == ["http://10.0.0.3:8000"]
    assert [e.id for e in changes.turned] == ["b"]
    assert not roster.report("one", list(roster))
    changes = roster.report("two", [endpoint("a", 9), endpoint("c", 2), endpoint("d", 4)])
    assert [e.id for e in changes.added] == ["d"]
    assert len(changes.conflicts) == 2 and "taken by a" in changes.conflicts[0] and "taken by b" in changes.conflicts[1]
    changes = roster.report("one", [])
    assert changes.removed == ["a", "b"]
    assert [e.id for e in changes.added] == ["a", "c"]


ENDPOINTS = st.lists(
    st.builds(endpoint, st.sampled_from("abcd"), st.integers(1, 5), ready=st.booleans()), max_size=5
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["one", "two", "three"]), ENDPOINTS), max_size=12))
def test_following_the_changes_gives_the_roster(reported: list[tuple[str, list[Endpoint]]]) -> None:
    roster = Roster()
    fleet: dict[str, Endpoint] = {}
    for source, endpoints in reported:
        changes = roster.report(source, endpoints)
        for name in changes.removed:
            del fleet[name]
        for added in changes.added:
            assert added.id not in fleet
            fleet[added.id] = added
        for turned in changes.turned:
            assert fleet[turned.id].url == turned.url
            fleet[turned.id] = turned
        assert fleet == {e.id: e for e in roster}
        assert len({e.url for e in fleet.values()}) == len(fleet)


def test_an_engine_named_by_two_sources_leaves_when_either_says_so() -> None:
    roster = Roster()
    pod = Endpoint("pod", "http://10.0.0.7:8000")
    assert [e.id for e in roster.report("leases", [pod]).added] == ["pod"]
    assert not roster.report("kubernetes", [replace(pod, labels={"zone": "a"})]).conflicts
    turned = roster.report("kubernetes", [replace(pod, ready=False, terminating=True)]).turned
    assert [(e.id, e.ready, e.terminating) for e in turned] == [("pod", False, True)]
    assert roster.report("kubernetes", []).turned[0].ready
