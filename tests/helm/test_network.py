"""Who may reach what through the chart's NetworkPolicies, worked out as Kubernetes works it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

Objects = list[dict[str, Any]]
Render = Callable[..., Objects]
Labels = dict[str, str]

HERE = "inference"
VALUES: dict[str, Any] = {
    "engines": [
        {"name": "a", "kind": "vllm", "model": {"id": "org/m"}},
        {"name": "b", "kind": "sglang", "model": {"id": "org/m"}, "gpus": 2, "dataParallel": 2},
    ],
    "existing": [{"service": "theirs", "namespace": "team-b", "podLabels": {"app": "theirs"}}],
    "redis": {"bundled": {"enabled": True}},
    "networkPolicy": {
        "clients": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "agents"}}}],
        "monitoring": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "agents": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "team-b"}}}],
        "egress": {"enabled": True},
    },
}


class Pod:
    """A pod of the release, or another one, as policies see it."""

    def __init__(self, labels: Labels, namespace: str = HERE, ports: dict[str, int] | None = None) -> None:
        self.labels, self.namespace, self.ports = labels, namespace, ports or {}


class Network:
    """The pods and policies of rendered objects."""

    def __init__(self, objects: Objects) -> None:
        self.policies = [found["spec"] for found in objects if found["kind"] == "NetworkPolicy"]
        self.pods = {pod.labels["app.kubernetes.io/component"]: pod for pod in self._pods(objects)}

    def _pods(self, objects: Objects) -> Iterator[Pod]:
        for found in objects:
            template = found["spec"]["template"] if found["kind"] == "Deployment" else found
            if found["kind"] in ("Deployment", "Pod"):
                listed = [port for each in template["spec"]["containers"] for port in each.get("ports", [])]
                ports = {port["name"]: port["containerPort"] for port in listed}
                yield Pod(template["metadata"]["labels"], ports=ports)

    def open(self, source: Pod, target: Pod, port: int) -> bool:
        """Whether a connection is allowed on both sides."""
        return self._allowed(source, target, target, port, "ingress") and self._allowed(
            target, source, target, port, "egress"
        )

    def _allowed(self, peer: Pod, pod: Pod, target: Pod, port: int, way: str) -> bool:
        kind = way.capitalize()
        mine = [
            policy
            for policy in self.policies
            if kind in policy["policyTypes"] and pod.namespace == HERE and matches(policy["podSelector"], pod.labels)
        ]
        return not mine or any(
            self._rule(rule, peer, target, port, "from" if way == "ingress" else "to")
            for policy in mine
            for rule in policy.get(way, [])
        )

    def _rule(self, rule: dict[str, Any], peer: Pod, target: Pod, port: int, side: str) -> bool:
        ports = [entry for entry in rule.get("ports", []) if entry.get("protocol", "TCP") == "TCP"]
        numbers = {target.ports.get(entry["port"], entry["port"]) for entry in ports}
        if rule.get("ports") and port not in numbers:
            return False
        return side not in rule or any(self._peer(each, peer) for each in rule[side])

    def _peer(self, wanted: dict[str, Any], pod: Pod) -> bool:
        spaces = wanted.get("namespaceSelector")
        if spaces is None and pod.namespace != HERE:
            return False
        if spaces is not None and not matches(spaces, {"kubernetes.io/metadata.name": pod.namespace}):
            return False
        return matches(wanted.get("podSelector", {}), pod.labels)


def matches(selector: dict[str, Any], labels: Labels) -> bool:
    assert set(selector) <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


@pytest.fixture
def network(render: Render) -> Network:
    return Network(render(VALUES))


CLIENT = Pod({"app": "agent"}, "agents")
PROMETHEUS = Pod({"app": "prometheus"}, "monitoring")
STRANGER = Pod({"app": "stranger"}, HERE)
THEIRS = Pod({"app": "theirs"}, "team-b", {"http": 8000, "kv-events": 5557})


def test_clients_reach_the_endpoint_and_nothing_else(network: Network) -> None:
    router = network.pods["router"]
    assert network.open(CLIENT, router, 8000)
    assert not network.open(CLIENT, router, 9000)
    assert not network.open(STRANGER, router, 8000)
    assert network.open(network.pods["test"], router, 8000), "helm test is no client of the list"
    for target in ("engine-a", "engine-b", "valkey"):
        for port in network.pods[target].ports.values():
            assert not network.open(CLIENT, network.pods[target], port)


def test_the_admin_port_is_for_monitoring_alone(network: Network) -> None:
    router = network.pods["router"]
    assert network.open(PROMETHEUS, router, 9000)
    assert not network.open(PROMETHEUS, router, 8000)
    assert not network.open(STRANGER, router, 9000)


@pytest.mark.parametrize("engine", ["engine-a", "engine-b"])
def test_routers_reach_every_port_of_engines_and_others_none(network: Network, engine: str) -> None:
    """API, events and replay of every rank; control endpoints and events carry no authentication."""
    target = network.pods[engine]
    assert len(target.ports) == (3 if engine == "engine-a" else 5)
    for name, port in target.ports.items():
        assert network.open(network.pods["router"], target, port), name
        assert not network.open(STRANGER, target, port), name
        assert network.open(PROMETHEUS, target, port) is (name == "http"), name


def test_valkey_is_for_routers_and_agents(network: Network) -> None:
    valkey = network.pods["valkey"]
    for name in ("router", "engine-a", "engine-b"):
        assert network.open(network.pods[name], valkey, 6379)
    assert network.open(THEIRS, valkey, 6379), "agents of engines that others run"
    assert not network.open(STRANGER, valkey, 6379)
    assert not network.open(CLIENT, valkey, 6379)


def test_the_router_gets_no_further_than_it_must(network: Network) -> None:
    router = network.pods["router"]
    elsewhere = Pod({"app": "anything"}, "kube-system")
    for port in THEIRS.ports.values():
        assert network.open(router, THEIRS, port)
    assert network.open(router, elsewhere, 53)
    assert network.open(router, elsewhere, 6443), "the API server"
    assert not network.open(router, elsewhere, 8080)
    assert not network.open(router, Pod({"app": "other"}, "team-b"), 8000)


@pytest.mark.parametrize("example", ["existing-fleet.yaml", "ha-external-valkey.yaml"])
def test_prometheus_reads_what_an_example_has_it_scrape(render: Render, example: str) -> None:
    objects = render(example)
    assert {"ServiceMonitor", "PodMonitor"} & {found["kind"] for found in objects}
    network = Network(objects)
    assert network.open(PROMETHEUS, network.pods["router"], 9000)
    for name, pod in network.pods.items():
        assert not name.startswith("engine") or network.open(PROMETHEUS, pod, pod.ports["http"])


def test_an_external_redis_is_reached_on_its_port(render: Render) -> None:
    values = {"redis": {"external": {"url": "rediss://cache:6380/0", "port": 6380}}}
    network = Network(render(values | {"networkPolicy": {"egress": {"enabled": True}}}))
    cache = Pod({}, "caches")
    assert network.open(network.pods["router"], cache, 6380)
    assert not network.open(network.pods["router"], cache, 6379)


def test_everyone_is_a_client_by_default(render: Render) -> None:
    network = Network(render({"replicas": [{"url": "http://10.0.0.7:8000"}]}))
    assert network.open(STRANGER, network.pods["router"], 8000)
    assert network.open(CLIENT, network.pods["router"], 8000)
    assert not network.open(CLIENT, network.pods["router"], 9000)
