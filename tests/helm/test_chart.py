"""The chart as helm 3 and helm 4 see it: lint, every example, refused values, and Kubernetes' own schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from support import custom_resources

from router.config.schema import merged

HELMS = ("helm3", "helm4")
EXAMPLES = ("minimal.yaml", "vllm-gpu.yaml", "sglang.yaml", "existing-fleet.yaml", "ha-external-valkey.yaml")
KUBERNETES = ("1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36")
# Kinds of other projects: Kubernetes has no schema of them.
FOREIGN = {"ServiceMonitor", "PodMonitor", "PrometheusRule", "HTTPRoute", "ScaledObject"}

_VALID: set[str] = set()

STATIC: dict[str, Any] = {"replicas": [{"url": "http://10.0.0.7:8000"}]}
BUNDLED: dict[str, Any] = {"redis": {"bundled": {"enabled": True}}}


def engine(**more: Any) -> dict[str, Any]:
    return {"engines": [{"name": "m", "kind": "vllm", "model": {"id": "org/model"}, **more}]}


MATRIX: dict[str, dict[str, Any]] = {
    "every route": STATIC
    | {
        "ingress": {"enabled": True, "className": "nginx", "tls": [{"secretName": "cert", "hosts": ["a.example"]}]},
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}], "hostnames": ["a.example"]},
    },
    "all monitoring": engine()
    | {
        "monitoring": {
            name: {"enabled": True} for name in ("serviceMonitor", "podMonitor", "prometheusRule", "dashboard")
        }
    },
    "hpa": STATIC | BUNDLED | {"router": {"autoscaling": {"kind": "hpa", "inFlightMetric": "in_flight"}}},
    "egress": engine()
    | BUNDLED
    | {
        "existing": [{"service": "other", "namespace": "team-b", "podLabels": {"app": "x"}}],
        "networkPolicy": {"egress": {"enabled": True, "extra": [{"ports": [{"port": 443}]}]}},
    },
    "nothing extra": STATIC
    | {"networkPolicy": {"enabled": False}, "serviceAccount": {"create": False}, "rbac": {"create": False}},
    "agents only": BUNDLED | {"router": {"replicaCount": 2}},
    "external url and secrets": STATIC
    | {
        "redis": {
            "lookup": "redis",
            "external": {
                "url": "rediss://cache:6380/0",
                "passwordSecret": {"name": "pw"},
                "caSecret": {"name": "ca"},
                "username": "u",
            },
        }
    },
    "engine with everything": BUNDLED
    | engine(
        replicaCount=3,
        gpus=8,
        dataParallel=4,
        maxModelLen=65536,
        blockSize=32,
        cache={"kind": "pvc", "storageClassName": "fast"},
        autoscaling={"enabled": True, "prometheusAddress": "http://p:9090"},
        env=[{"name": "A", "value": "b"}],
        envFrom=[{"secretRef": {"name": "s"}}],
        hubToken={"secretName": "t"},
        runtimeClassName="nvidia",
        priorityClassName="high",
        nodeSelector={"gpu": "h100"},
        tolerations=[{"operator": "Exists"}],
        podLabels={"team": "a"},
        podAnnotations={"x": "y"},
    ),
    "every secret": BUNDLED
    | {
        "engines": [
            *engine(labels={"pool": "light"})["engines"],
            {"name": "s", "kind": "sglang", "model": {"id": "org/model"}, "gpus": 8, "dataParallel": 8},
        ],
        "router": {
            "keys": {"secretName": "keys", "isolation": "salt"},
            "tls": {"secretName": "public", "clientCaKey": "ca.crt"},
            "adminTls": {"secretName": "admin"},
            "adminToken": {"secretName": "token"},
        },
        "engineApiKey": {"secretName": "engine"},
        "engineTls": {"caSecret": {"name": "ca"}, "clientSecretName": "client", "serverName": "engines.internal"},
        "monitoring": {"serviceMonitor": {"enabled": True, "tlsConfig": {"serverName": "router"}}},
        "networkPolicy": {"agents": [{"namespaceSelector": {"matchLabels": {"team": "b"}}}]},
        "test": {"apiKey": {"secretName": "mine"}, "clientSecretName": "mine-tls"},
    },
    "sentinels": STATIC
    | {
        "redis": {
            "external": {"url": "rediss+sentinel://s1:26379,s2:26379/main", "port": 26379, "caSecret": {"name": "ca"}}
        }
    },
    "names that YAML takes for numbers": engine(
        hubToken={"secretName": "007"}, cache={"kind": "existingClaim", "claimName": "1"}, priorityClassName="1"
    )
    | {
        "engineApiKey": {"secretName": "12"},
        "router": {"keys": {"secretName": "1e3"}, "adminToken": {"secretName": "5"}, "priorityClassName": "1"},
        "redis": {"external": {"urlSecret": {"name": "9"}, "passwordSecret": {"name": "8"}}},
        "test": {"apiKey": {"secretName": "7"}, "clientSecretName": "6"},
        "serviceAccount": {"create": False, "name": "4"},
    },
    "a model in the engine's volume": {
        "router": {"models": [{"name": "a", "files": "org/a"}]},
        "engines": [
            {"name": name, "kind": "vllm", "model": {"id": f"/models/{name}", "servedName": name} | files}
            for name, files in {"a": {}, "b": {"routerFiles": "none"}, "c": {"routerFiles": "org/c"}}.items()
        ],
    },
    "no events, no gpu": engine(gpus=0, events={"enabled": False}, agent={"enabled": False}),
    "placed router": STATIC
    | {
        "commonLabels": {"team": "a"},
        "imagePullSecrets": [{"name": "pull"}],
        "router": {
            "extraVolumes": [{"name": "m", "emptyDir": {}}],
            "extraVolumeMounts": [{"name": "m", "mountPath": "/m"}],
            "env": [{"name": "PREFIX_ROUTER_LOG__LEVEL", "value": "debug"}],
            "tolerations": [{"operator": "Exists"}],
            "nodeSelector": {"a": "b"},
            "priorityClassName": "high",
            "podAnnotations": {"x": "y"},
        },
        "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"a": "b"}},
    },
}


@pytest.mark.parametrize("version", HELMS)
@pytest.mark.parametrize("example", EXAMPLES)
def test_lint_finds_nothing(helm: Callable[..., Any], chart: Path, version: str, example: str) -> None:
    done = helm(version, "lint", "--strict", str(chart), "--values", str(chart / "examples" / example))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout + done.stderr


@pytest.mark.parametrize("example", EXAMPLES)
def test_both_helms_render_the_same(render: Callable[..., Any], example: str) -> None:
    def by_name(objects: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
        return {(o["kind"], o["metadata"]["name"], o["metadata"].get("namespace", "")): o for o in objects}

    assert by_name(render(example, "helm3")) == by_name(render(example, "helm4"))


def test_every_example_is_tested(chart: Path) -> None:
    assert {path.name for path in (chart / "examples").iterdir()} == set(EXAMPLES)


def as_autoscaler(scaled: dict[str, Any]) -> dict[str, Any]:
    """What KEDA makes of a ScaledObject, as far as Kubernetes checks it."""
    spec = scaled["spec"]
    target = {"apiVersion": "apps/v1", "kind": "Deployment", **spec["scaleTargetRef"]}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": scaled["metadata"],
        "spec": {
            "scaleTargetRef": target,
            "minReplicas": spec["minReplicaCount"],
            "maxReplicas": spec["maxReplicaCount"],
            "behavior": spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
        },
    }


@pytest.mark.parametrize("values", [*EXAMPLES, *MATRIX.values()], ids=[*EXAMPLES, *MATRIX])
def test_objects_are_what_kubernetes_takes(render: Callable[..., Any], values: Any) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    names = []
    for found in render(values):
        names.append((found["kind"], found["metadata"].get("namespace"), found["metadata"]["name"]))
        assert len(found["metadata"]["name"]) <= 63
        if found["kind"] in FOREIGN:
            jsonschema.validate(found["spec"], custom_resources.schema_of(found))
            if found["kind"] == "ScaledObject":
                found = as_autoscaler(found)
            else:
                continue
        text = json.dumps(found, sort_keys=True)
        if text in _VALID:
            continue
        _VALID.add(text)
        # No schema for a kind is an error too: then it is missing in that version, or misspelt.
        for version in KUBERNETES:
            kubernetes_validate.validate(found, version, strict=True)
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (STATIC | {"replicaCount": 2}, "replicaCount"),
        (STATIC | {"router": {"replicas": 2}}, "replicas"),
        (STATIC | {"router": {"replicaCount": "two"}}, "replicaCount"),
        (STATIC | {"redis": {"lookup": "sometimes"}}, "lookup"),
        (STATIC | {"service": {"port": 70000}}, "port"),
        (STATIC | {"router": {"autoscaling": {"kind": "vpa"}}}, "kind"),
        ({"replicas": [{"uri": "http://10.0.0.7:8000"}]}, "uri"),
        ({"existing": [{"service": "a", "ports": 1}]}, "ports"),
        (engine(tensorParalel=2), "tensorParalel"),
        (engine(kind="tgi"), "kind"),
        (engine(autoscaling={"minReplicas": 0}), "minReplicas"),
        ({"engines": [{"kind": "vllm", "model": {"id": "a"}}]}, "name"),
        (engine(name="Not_A_Name"), "name"),
        (STATIC | {"redis": {"external": {"password": "plain"}}}, "password"),
        (STATIC | {"engineApiKey": "sk-plain"}, "engineApiKey"),
        (STATIC | {"router": {"adminToken": {"value": "plain"}}}, "value"),
        (STATIC | {"httpRoute": {"requestTimeout": "forever"}}, "requestTimeout"),
        (STATIC | {"router": {"configChange": "sometimes"}}, "configChange"),
        (STATIC | {"router": {"config": {"routing": {"polcy": "session"}}}}, "polcy"),
        (STATIC | {"router": {"config": {"routing": {"policy": "fastest"}}}}, "policy"),
        (STATIC | {"router": {"config": {"admission": {"max_queue": "many"}}}}, "max_queue"),
        (STATIC | {"router": {"config": {"log": {"access": 1}}}}, "access"),
        (STATIC | {"router": {"models": [{"name": "a", "file": "b"}]}}, "file"),
    ],
)
def test_schema_refuses(helm: Callable[..., Any], chart: Path, values: dict[str, Any], names: str) -> None:
    for version in HELMS:
        done = helm(version, "template", "r", str(chart), values=values)
        assert done.returncode != 0
        assert names in done.stderr


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "no engines: give engines"),
        (STATIC | {"router": {"replicaCount": 2}}, "no shared index"),
        (STATIC | {"router": {"autoscaling": {"kind": "hpa"}}}, "needs a shared index"),
        (STATIC | BUNDLED | {"router": {"autoscaling": {"kind": "keda"}}}, "prometheusAddress"),
        (STATIC | {"redis": {"bundled": {"enabled": True}, "external": {"url": "redis://a:1"}}}, "choose one"),
        (STATIC | {"redis": {"external": {"url": "redis://a:1", "urlSecret": {"name": "a"}}}}, "choose one"),
        (STATIC | {"httpRoute": {"enabled": True}}, "parentRefs"),
        ({"engines": [*engine()["engines"], *engine()["engines"]]}, "given twice"),
        (BUNDLED | engine(name="valkey"), "r-prefix-router-valkey is the name of something else"),
        (engine(name="admin"), "r-prefix-router-admin is the name of something else"),
        (
            {"fullnameOverride": "f" * 40, "engines": [engine(name="a" * 29 + b)["engines"][0] for b in "bc"]},
            "cut to 57 characters",
        ),
        *(
            (STATIC | {"router": {"config": {section: {key: value}}}}, f"router.config.{section}.{key}: use {instead}")
            for section, key, value, instead in (
                ("listen", "port", 8080, "router.port"),
                ("admin", "port", 9100, "router.adminPort"),
                ("shutdown", "delay_s", 30, "router.unreadySeconds"),
                ("shutdown", "grace_s", 600, "router.drainSeconds"),
                ("index", "backend", "redis", "redis"),
                ("redis", "url", "redis://a:1", "redis.external"),
            )
        ),
        (STATIC | {"router": {"config": {"models": [{"name": "a"}]}}}, "router.config.models: use router.models"),
        (
            STATIC | {"router": {"config": {"replicas": [{"url": "http://a:1"}]}}},
            "router.config.replicas: use replicas",
        ),
        (
            STATIC | BUNDLED | {"router": {"autoscaling": {"kind": "hpa", "minReplicas": 9, "maxReplicas": 8}}},
            "router.autoscaling: minReplicas (9) is above maxReplicas (8)",
        ),
        (
            engine(autoscaling={"enabled": True, "prometheusAddress": "http://p", "minReplicas": 5}),
            "m: autoscaling: minReplicas (5) is above maxReplicas (4)",
        ),
        (engine(model={"id": "/models/a", "servedName": "a"}), "the router does not have the engine's volume"),
        (engine(model={"servedName": "a"}), "model.id is required"),
        (engine(gpus=8, dataParallel=8, events={"port": 5557, "replayPort": 5558}), "at least dataParallel (8)"),
        (engine(gpus=8, tensorParallel=3), "must be the pod's gpus (8)"),
        (engine(replicaCount=2, cache={"kind": "pvc", "accessMode": "ReadWriteOnce"}), "ReadWriteMany"),
        (engine(cache={"kind": "existingClaim"}), "claimName"),
        (engine(autoscaling={"enabled": True}), "prometheusAddress"),
        (STATIC | {"router": {"tls": {"clientCaKey": "ca.crt"}}}, "needs router.tls.secretName"),
        (
            STATIC | {"router": {name: {"secretName": "a", "clientCaKey": "b"} for name in ("tls", "adminTls")}},
            "kubelet has no client certificate",
        ),
        (
            STATIC | {"router": {"adminTls": {"secretName": "a"}}, "monitoring": {"serviceMonitor": {"enabled": True}}},
            "tlsConfig",
        ),
    ],
)
def test_broken_installations_are_refused(
    helm: Callable[..., Any], chart: Path, values: dict[str, Any], says: str
) -> None:
    for version in HELMS:
        done = helm(version, "template", "r", str(chart), values=values)
        assert done.returncode != 0
        assert says in done.stderr


def test_the_schema_of_the_configuration_is_the_routers(chart: Path) -> None:
    """`make format` writes it. What the chart's own keys pass on has the same keys as the router's."""
    schema = json.loads((chart / "values.schema.json").read_text(encoding="utf-8"))
    assert schema == merged(schema), "run make format"
    kinds = schema["$defs"]
    assert set(kinds["replica"]["properties"]) == set(kinds["config.Replica"]["properties"])
    assert set(kinds["existing"]["properties"]) - {"podLabels"} == set(
        kinds["config.KubernetesDiscovery"]["properties"]
    )
    assert len(kinds["config.Config"]["properties"]) > 10


# Objects whose keys are the user's, or Kubernetes' own and checked there.
FREE = {"commonLabels", "annotations", "labels", "podAnnotations", "podLabels", "nodeSelector", "affinity", "requests",
        "limits", "securityContext", "tlsConfig", "config"}  # fmt: skip


def test_values_are_all_in_the_schema_and_explained(chart: Path) -> None:
    text = (chart / "values.yaml").read_text(encoding="utf-8")
    schema = json.loads((chart / "values.schema.json").read_text(encoding="utf-8"))

    def check(values: dict[str, Any], kind: dict[str, Any], at: str) -> None:
        kind = schema["$defs"][kind["$ref"].rpartition("/")[2]] if "$ref" in kind else kind
        assert kind["additionalProperties"] is False, at
        for key, value in values.items():
            assert key in kind["properties"], f"{at}.{key}"
            if isinstance(value, dict) and key not in FREE:
                check(value, kind["properties"][key], f"{at}.{key}")

    check(yaml.safe_load(text), schema, "values")
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if re.match(r" {0,4}\w+:", line):
            # A comment above it, above the block it opens, or one above a group of keys without a blank line.
            group = number
            while group and lines[group - 1].strip() and not lines[group].lstrip().startswith("#"):
                group -= 1
            assert lines[group].lstrip().startswith("#") or line.endswith(":"), f"line {number + 1}: {line}"
