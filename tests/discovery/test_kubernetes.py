"""Discovery from EndpointSlices, against a scripted API server that allows what the chart's Role allows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from support.kubernetes_api import granted
from support.waiting import PATIENCE_S

from router.fleet.discovery import EventPorts, KubernetesSource
from router.fleet.discovery.cluster import Cluster
from router.fleet.discovery.slices import Shape


def pod(name: str, address: str, **conditions: bool) -> dict[str, Any]:
    return {
        "addresses": [address],
        "conditions": conditions or {"ready": True, "serving": True, "terminating": False},
        "targetRef": {"kind": "Pod", "name": name, "uid": f"uid-{name}"},
        "nodeName": "node-1",
        "zone": "zone-a",
    }


def slice_of(name: str, *pods: dict[str, Any], family: str = "IPv4", service: str = "vllm") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": family,
        "ports": [{"name": "http", "port": 8000}, {"name": "kv-events", "port": 5557}],
        "endpoints": list(pods),
    }


@pytest.fixture
def source(cluster: Callable[[], Cluster]) -> KubernetesSource:
    return KubernetesSource(
        service="vllm",
        shape=Shape(port="http", events=EventPorts(5557, 5657)),
        cluster=cluster,
        watch_s=5,
        timeout_s=1,
        first_pause_s=0.01,
        longest_pause_s=0.05,
    )


async def test_pods_come_and_go(api: Any, source: KubernetesSource, reports: Any) -> None:
    api.put(slice_of("a", pod("vllm-0", "10.0.0.1")))
    reports.start(source)
    found = await reports.names("vllm-0")
    assert found["vllm-0"].url == "http://10.0.0.1:8000"
    assert found["vllm-0"].ready and not found["vllm-0"].terminating
    assert found["vllm-0"].labels == {"service": "vllm", "node": "node-1", "zone": "zone-a"}
    assert found["vllm-0"].events is not None
    assert found["vllm-0"].events.endpoint == "tcp://10.0.0.1:5557"
    assert found["vllm-0"].events.replay_endpoint == "tcp://10.0.0.1:5657"
    api.put(slice_of("b", pod("vllm-1", "10.0.0.2")))
    await reports.names("vllm-0", "vllm-1")
    api.put(slice_of("a"))
    await reports.names("vllm-1")
    api.delete("b")
    await reports.names()
    assert source.problem == ""
    assert api.asked == granted(api.rules), "the Role grants what is asked, and nothing else"
    assert all(query["labelSelector"] == "kubernetes.io/service-name=vllm" for _, query, _ in api.calls)


async def test_conditions_are_honoured(api: Any, source: KubernetesSource, reports: Any) -> None:
    api.put(
        slice_of(
            "a",
            pod("starting", "10.0.0.1", ready=False, serving=False, terminating=False),
            pod("leaving", "10.0.0.2", ready=False, serving=True, terminating=True),
            pod("published", "10.0.0.3", ready=True, serving=False, terminating=True),
            {"addresses": ["10.0.0.4"], "targetRef": {"kind": "Pod", "name": "silent"}},
        )
    )
    reports.start(source)
    found = await reports.names("starting", "leaving", "published", "silent")
    assert [(e.ready, e.terminating) for e in found.values()] == [
        (False, True),
        (False, True),
        (True, False),
        (False, False),
    ], list(found)


async def test_a_pod_in_several_slices_is_one_endpoint(api: Any, source: KubernetesSource, reports: Any) -> None:
    api.put(slice_of("a6", pod("both", "fd00::1"), pod("six", "fd00::2"), family="IPv6"))
    api.put(slice_of("a4", pod("both", "10.0.0.1")))
    api.put(slice_of("b4", pod("both", "10.0.0.1", ready=False, serving=True, terminating=True)))
    api.put(slice_of("name", pod("dns", "elsewhere.example"), family="FQDN"))
    reports.start(source)
    found = await reports.names("both", "six")
    assert found["both"].url == "http://10.0.0.1:8000"
    assert found["both"].terminating and not found["both"].ready
    assert found["six"].url == "http://[fd00::2]:8000"


async def test_pages_are_put_together(api: Any, source: KubernetesSource, reports: Any) -> None:
    api.page = 2
    for number in range(5):
        api.put(slice_of(f"s{number}", pod(f"p{number}", f"10.0.0.{number}")))
    reports.start(source)
    await reports.names("p0", "p1", "p2", "p3", "p4")
    assert len(reports.all) == 1, "a half-read list must not be reported"


async def test_history_gone_means_a_new_list(api: Any, source: KubernetesSource, reports: Any, scripted: Any) -> None:
    api.put(slice_of("a", pod("p0", "10.0.0.1")))

    async def compacted(request: web.Request) -> web.StreamResponse:
        api.slices["a"] = slice_of("a", pod("p1", "10.0.0.2"))
        api.forget()
        return scripted.failure(410, "too old resource version")

    async def compacted_in_stream(request: web.Request) -> web.StreamResponse:
        api.slices["a"] = slice_of("a", pod("p2", "10.0.0.3"))
        response = await scripted.opened(request)
        await response.write(json.dumps({"type": "ERROR", "object": {"kind": "Status", "code": 410}}).encode() + b"\n")
        return response

    api.watches += [compacted, compacted_in_stream]
    reports.start(source)
    await reports.names("p2")
    assert [{e.id for e in report} for report in reports.all] == [{"p0"}, {"p1"}, {"p2"}]
    assert [verb for verb, _, _ in api.calls].count("list") == 3


async def test_a_list_whose_pages_expire_starts_again(
    api: Any, source: KubernetesSource, reports: Any, scripted: Any
) -> None:
    api.page = 1
    api.put(slice_of("a", pod("p0", "10.0.0.1")))
    api.put(slice_of("b", pod("p1", "10.0.0.2")))

    async def first_page(request: web.Request) -> web.StreamResponse:
        return web.json_response({"metadata": {"continue": "gone"}, "items": [slice_of("old", pod("px", "10.9.9.9"))]})

    async def expired(request: web.Request) -> web.StreamResponse:
        return scripted.failure(410, "The provided continue parameter is too old")

    api.lists += [first_page, expired]
    reports.start(source)
    await reports.names("p0", "p1")
    assert len(reports.all) == 1


async def test_a_server_that_is_behind_is_waited_for(
    api: Any, source: KubernetesSource, reports: Any, scripted: Any
) -> None:
    api.put(slice_of("a", pod("p0", "10.0.0.1")))
    seen: list[str] = []

    async def behind(request: web.Request) -> web.StreamResponse:
        seen.append(source.problem)
        return scripted.failure(504, "Timeout: Too large resource version: 999, current: 101", retryAfterSeconds=1)

    api.watches += [behind, behind]
    reports.start(source)
    await reports.names("p0")
    api.put(slice_of("b", pod("p1", "10.0.0.2")))
    await reports.names("p0", "p1")
    assert "Too large resource version" in seen[1]
    assert [verb for verb, _, _ in api.calls].count("list") == 1, "the watch goes on from where it was"
    assert source.problem == ""


async def test_streams_that_break_go_on_where_they_were(
    api: Any, source: KubernetesSource, reports: Any, scripted: Any
) -> None:
    api.put(slice_of("a", pod("p0", "10.0.0.1")))
    event = {"type": "ADDED", "object": slice_of("b", pod("p1", "10.0.0.2"))}
    event["object"]["metadata"]["resourceVersion"] = "4000"

    async def cut_mid_event(request: web.Request) -> web.StreamResponse:
        response = await scripted.opened(request)
        line = json.dumps(event).encode() + b"\n"
        await response.write(line + line[: len(line) // 2])
        assert request.transport is not None
        request.transport.abort()
        return response

    async def hang_up(request: web.Request) -> web.StreamResponse:
        return await scripted.opened(request)

    async def nonsense(request: web.Request) -> web.StreamResponse:
        response = await scripted.opened(request)
        await response.write(b"\n<html>proxy error</html>\n")
        return response

    asked: list[str] = []

    async def note(request: web.Request) -> web.StreamResponse:
        asked.append(request.query["resourceVersion"])
        api.version = 4000
        return await api._watch(request)

    api.watches += [cut_mid_event, hang_up, nonsense, note]
    reports.start(source)
    await reports.names("p0", "p1")
    async with asyncio.timeout(PATIENCE_S):
        while not asked:
            await asyncio.sleep(0.01)
    assert asked == ["4000"]
    api.put(slice_of("a"))
    await reports.names("p1")
    assert [verb for verb, _, _ in api.calls].count("list") == 1


async def test_bookmarks_move_the_version(api: Any, source: KubernetesSource, reports: Any, scripted: Any) -> None:
    api.put(slice_of("a", pod("p0", "10.0.0.1")))

    async def bookmark_then_end(request: web.Request) -> web.StreamResponse:
        response = await scripted.opened(request)
        mark = {"type": "BOOKMARK", "object": {"kind": "EndpointSlice", "metadata": {"resourceVersion": "555"}}}
        await response.write(json.dumps(mark).encode() + b"\n")
        return response

    api.watches.append(bookmark_then_end)
    reports.start(source)
    await reports.names("p0")
    async with asyncio.timeout(PATIENCE_S):
        while sum(verb == "watch" for verb, _, _ in api.calls) < 2:
            await asyncio.sleep(0.01)
    assert [query["resourceVersion"] for verb, query, _ in api.calls if verb == "watch"][1] == "555"
    assert all(query["allowWatchBookmarks"] == "1" or query["allowWatchBookmarks"] == "true"
               for verb, query, _ in api.calls if verb == "watch")  # fmt: skip


async def test_a_slow_and_very_long_event(api: Any, source: KubernetesSource, reports: Any, scripted: Any) -> None:
    api.put(slice_of("a", pod("p0", "10.0.0.1")))
    many = slice_of("b", *(pod(f"n{number}", f"10.1.{number // 250}.{number % 250}") for number in range(1000)))
    many["metadata"]["resourceVersion"] = "300"

    async def dribble(request: web.Request) -> web.StreamResponse:
        response = await scripted.opened(request)
        line = json.dumps({"type": "ADDED", "object": many}).encode() + b"\n"
        assert len(line) > 200_000
        for start in range(0, len(line), 50_000):
            await response.write(line[start : start + 50_000])
            await asyncio.sleep(0.01)
        await asyncio.sleep(30)
        return response

    api.watches.append(dribble)
    reports.start(source)
    await reports.until(lambda now: len(now) == 1001)


async def test_a_hanging_server_is_given_up_on(
    api: Any, cluster: Callable[[], Cluster], reports: Any, scripted: Any
) -> None:
    async def hang(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    async def hang_in_stream(request: web.Request) -> web.StreamResponse:
        response = await scripted.opened(request)
        await asyncio.sleep(30)
        return response

    api.put(slice_of("a", pod("p0", "10.0.0.1")))
    api.lists.append(hang)
    api.watches.append(hang_in_stream)
    source = KubernetesSource(
        service="vllm", shape=Shape("http"), cluster=cluster,
        watch_s=0.2, timeout_s=0.2, first_pause_s=0.01, longest_pause_s=0.05,
    )  # fmt: skip
    reports.start(source)
    await reports.names("p0")
    api.put(slice_of("b", pod("p1", "10.0.0.2")))
    await reports.names("p0", "p1")


async def test_an_outage_keeps_the_fleet_and_says_so(
    api: Any, source: KubernetesSource, reports: Any, scripted: Any
) -> None:
    api.put(slice_of("a", pod("p0", "10.0.0.1")))

    async def storm(request: web.Request) -> web.StreamResponse:
        return scripted.failure(500, "etcdserver: leader changed")

    api.watches += [storm] * 9
    api.lists += [api._list, storm, storm]
    reports.start(source)
    await reports.names("p0")
    async with asyncio.timeout(PATIENCE_S):
        while "leader changed" not in source.problem:
            await asyncio.sleep(0.005)
        while api.watches:
            await asyncio.sleep(0.005)
    api.put(slice_of("a", pod("p0", "10.0.0.1"), pod("p1", "10.0.0.2")))
    await reports.names("p0", "p1")
    assert [len(report) for report in reports.all] == [1, 2]


async def test_the_token_is_read_again(api: Any, source: KubernetesSource, reports: Any, tmp_path: Path) -> None:
    api.put(slice_of("a", pod("p0", "10.0.0.1")))
    api.token = "second"
    reports.start(source)
    async with asyncio.timeout(PATIENCE_S):
        while "401" not in source.problem:
            await asyncio.sleep(0.005)
    (tmp_path / "token").write_text("second")
    await reports.names("p0")


async def test_a_missing_role_is_named(api: Any, source: KubernetesSource, reports: Any) -> None:
    api.rules = []
    reports.start(source)
    async with asyncio.timeout(PATIENCE_S):
        while "403" not in source.problem:
            await asyncio.sleep(0.005)
    assert "list and watch on endpointslices (discovery.k8s.io)" in source.problem
    assert not reports.all


@pytest.mark.parametrize("verb", ["list", "watch"])
async def test_each_right_of_the_role_is_needed(api: Any, source: KubernetesSource, reports: Any, verb: str) -> None:
    api.put(slice_of("a", pod("p0", "10.0.0.1")))
    for rule in api.rules:
        rule["verbs"].remove(verb)
    reports.start(source)
    async with asyncio.timeout(PATIENCE_S):
        while f"cannot {verb} endpointslices" not in source.problem:
            await asyncio.sleep(0.005)


async def test_a_role_in_another_namespace_is_not_enough(api: Any, source: KubernetesSource, reports: Any) -> None:
    api.namespace = "elsewhere"
    reports.start(source)
    async with asyncio.timeout(PATIENCE_S):
        while "403" not in source.problem:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("port", "ports", "wanted"),
    [
        ("http", [{"name": "http", "port": 9000}], 9000),
        (8123, [{"name": "http", "port": 9000}], 8123),
        (8123, None, 8123),
        (None, [{"name": "", "port": 7000}], 7000),
    ],
)
async def test_ports(
    api: Any, cluster: Callable[[], Cluster], reports: Any, port: Any, ports: Any, wanted: int
) -> None:
    item = slice_of("a", pod("p0", "10.0.0.1"))
    item["ports"] = ports
    api.put(item)
    reports.start(KubernetesSource(service="vllm", shape=Shape(port), cluster=cluster))
    assert (await reports.names("p0"))["p0"].url == f"http://10.0.0.1:{wanted}"


async def test_an_unclear_port_is_a_problem_of_that_slice_only(
    api: Any, cluster: Callable[[], Cluster], reports: Any
) -> None:
    api.put(slice_of("a", pod("p0", "10.0.0.1")))
    other = slice_of("b", pod("p1", "10.0.0.2"))
    other["ports"] = [{"name": "grpc", "port": 1}]
    api.put(other)
    api.put({"metadata": {"name": "c"}, "addressType": "IPv4", "endpoints": ["what"], "ports": [{"port": 1}]})
    source = KubernetesSource(selector="app=vllm", shape=Shape("http"), cluster=cluster)
    reports.start(source)
    await reports.names("p0")
    assert "no port named `http` (its ports: grpc 1)" in source.problem
    assert api.calls[0][1]["labelSelector"] == "app=vllm"


async def test_the_pod_itself_tells_where_the_cluster_is(tmp_path: Path) -> None:
    for name, text in {"token": "t", "namespace": "models\n", "ca.crt": "x"}.items():
        (tmp_path / name).write_text(text)
    env = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
    found = Cluster.from_pod(env, tmp_path)
    assert (found.url, found.namespace, found.ca_file) == ("https://[fd00::1]:6443", "models", tmp_path / "ca.crt")
    assert found.headers()["authorization"] == "Bearer t"
    with pytest.raises(ValueError, match="give `api_url`"):
        Cluster.from_pod({}, tmp_path)
    with pytest.raises(ValueError, match="automountServiceAccountToken"):
        Cluster.from_pod(env, tmp_path / "none")
    with pytest.raises(ValueError, match="`service`, `selector`"):
        KubernetesSource()


async def test_outside_a_cluster_is_a_problem_not_a_crash(reports: Any) -> None:
    def nowhere() -> Cluster:
        raise ValueError("not in a Kubernetes pod")

    source = KubernetesSource(service="vllm", cluster=nowhere, first_pause_s=0.01, longest_pause_s=0.01)
    reports.start(source)
    async with asyncio.timeout(PATIENCE_S):
        while source.problem != "not in a Kubernetes pod":
            await asyncio.sleep(0.005)
