"""The rendered objects fit each other and the code: selectors, ports, rights, configuration, agent flags."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import engine_flags

from replica import agent
from router import reload, serve
from router.config import Config, load_config

Objects = list[dict[str, Any]]
Render = Callable[..., Objects]

EXAMPLES = ("minimal.yaml", "vllm-gpu.yaml", "sglang.yaml", "existing-fleet.yaml", "ha-external-valkey.yaml")
STATIC: dict[str, Any] = {"replicas": [{"url": "http://10.0.0.7:8000"}]}
VALKEY = {"redis": {"bundled": {"enabled": True}}}
NAMESPACE = "inference"


def named(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    (found,) = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    return found


def templates(objects: Objects) -> Iterator[dict[str, Any]]:
    """The pods that will exist: of Deployments, and bare ones."""
    for found in objects:
        if found["kind"] == "Deployment":
            yield found["spec"]["template"]
        elif found["kind"] == "Pod":
            yield found


def selected(objects: Objects, selector: dict[str, Any]) -> Objects:
    wanted = selector.get("matchLabels", selector if "matchExpressions" not in selector else {})
    exist = [e["key"] for e in selector.get("matchExpressions", [])]
    return [
        pod
        for pod in templates(objects)
        if wanted.items() <= pod["metadata"]["labels"].items() and all(k in pod["metadata"]["labels"] for k in exist)
    ]


def ports(pod: dict[str, Any]) -> dict[str, int]:
    return {
        port["name"]: port["containerPort"]
        for container in pod["spec"]["containers"]
        for port in container.get("ports", [])
    }


def config_of(objects: Objects, tmp_path: Path, env: dict[str, str] | None = None) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(named(objects, "ConfigMap", "r-prefix-router")["data"]["config.yaml"], encoding="utf-8")
    return load_config(path, env or {})


@pytest.fixture(params=EXAMPLES)
def objects(request: pytest.FixtureRequest, render: Render) -> Objects:
    return render(request.param)


def test_every_selector_finds_its_own_pods(objects: Objects) -> None:
    for found in objects:
        match found["kind"]:
            case "Deployment":
                selector = found["spec"]["selector"]
                assert selected(objects, selector) == [found["spec"]["template"]]
                for spread in found["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
                    assert selected(objects, spread["labelSelector"]) == [found["spec"]["template"]]
            case "Service" | "PodDisruptionBudget":
                selector = found["spec"]["selector"]
                assert len(selected(objects, selector)) == 1, found["metadata"]["name"]
            case "NetworkPolicy":
                assert len(selected(objects, found["spec"]["podSelector"])) == 1
            case "PodMonitor":
                assert all(
                    "engine" in pod["spec"]["containers"][0]["name"]
                    for pod in selected(objects, found["spec"]["selector"])
                )
                assert selected(objects, found["spec"]["selector"])
            case "ServiceMonitor":
                wanted = found["spec"]["selector"]["matchLabels"].items()
                services = [o for o in objects if o["kind"] == "Service" and wanted <= o["metadata"]["labels"].items()]
                assert [s["metadata"]["name"] for s in services] == ["r-prefix-router-admin"]
                assert found["spec"]["endpoints"][0]["port"] == services[0]["spec"]["ports"][0]["name"]


def test_ports_line_up(objects: Objects) -> None:
    for found in objects:
        if found["kind"] == "Service":
            (pod,) = selected(objects, found["spec"]["selector"])
            for port in found["spec"]["ports"]:
                assert port["targetPort"] in ports(pod)
        elif found["kind"] == "NetworkPolicy":
            (pod,) = selected(objects, found["spec"]["podSelector"])
            for rule in found["spec"].get("ingress", []):
                assert all(port["port"] in ports(pod) for port in rule.get("ports", []))
    for pod in templates(objects):
        named_ports = ports(pod)
        assert len(set(named_ports.values())) == len(named_ports)
        assert all(len(name) <= 15 for name in named_ports)
        for container in pod["spec"]["containers"]:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if "httpGet" in container.get(probe, {}):
                    assert container[probe]["httpGet"]["port"] in named_ports


def test_router_listens_where_the_service_sends(objects: Objects, tmp_path: Path) -> None:
    config = config_of(objects, tmp_path)
    container = named(objects, "Deployment", "r-prefix-router")["spec"]["template"]["spec"]["containers"][0]
    assert {p["name"]: p["containerPort"] for p in container["ports"]} == {
        "http": config.listen.port,
        "admin": config.admin.port,
    }
    assert config.listen.host == config.admin.host == ""  # every address, of both families


def test_router_accepts_its_command_line(objects: Objects, tmp_path: Path) -> None:
    config_of(objects, tmp_path)
    container = named(objects, "Deployment", "r-prefix-router")["spec"]["template"]["spec"]["containers"][0]
    command, *flags = container["args"]
    parser = argparse.ArgumentParser(exit_on_error=False)
    serve.add_arguments(parser)
    args = parser.parse_args(flags)
    assert command == "serve"
    assert args.config == Path("/etc/prefix-router/config.yaml")
    args.config = tmp_path / "config.yaml"
    serve.configuration(args)


def test_pods_outlive_their_drain(objects: Objects, tmp_path: Path) -> None:
    spec = named(objects, "Deployment", "r-prefix-router")["spec"]["template"]["spec"]
    shutdown = config_of(objects, tmp_path).shutdown
    (held_back,) = re.findall(r"sleep\((\d+)\)", spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert shutdown.delay_s > 0
    assert spec["terminationGracePeriodSeconds"] == int(held_back) + shutdown.delay_s + shutdown.grace_s + 10
    for pod in templates(objects):
        for container in pod["spec"]["containers"]:
            if container["name"] == "engine":
                seconds = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
                assert pod["spec"]["terminationGracePeriodSeconds"] > seconds


def test_mounts_and_secrets_exist(objects: Objects) -> None:
    configs = {o["metadata"]["name"] for o in objects if o["kind"] == "ConfigMap"}
    claims = {o["metadata"]["name"] for o in objects if o["kind"] == "PersistentVolumeClaim"} | {"model-files"}
    for pod in templates(objects):
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        for container in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= set(volumes)
            assert not container["image"].endswith(("latest", ":"))
        for volume in volumes.values():
            assert volume.get("configMap", {}).get("name", next(iter(configs))) in configs
            assert volume.get("persistentVolumeClaim", {}).get("claimName", "model-files") in claims
    # Secrets are the user's; the chart writes none.
    assert not [o for o in objects if o["kind"] == "Secret"]


def test_own_containers_have_no_rights(objects: Objects) -> None:
    for pod in templates(objects):
        for container in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            if container["name"] != "engine":
                assert security["readOnlyRootFilesystem"] is True
                assert {**pod["spec"]["securityContext"], **security}["runAsNonRoot"] is True
        watches = pod["metadata"]["labels"]["app.kubernetes.io/component"] == "router"
        assert watches or pod["spec"]["automountServiceAccountToken"] is False


def test_roles_are_what_discovery_asks(objects: Objects, chart: Path, tmp_path: Path) -> None:
    rules = yaml.safe_load((chart / "files" / "role-rules.yaml").read_text(encoding="utf-8"))
    config = config_of(objects, tmp_path)
    roles = {o["metadata"]["namespace"]: o for o in objects if o["kind"] == "Role"}
    assert all(role["rules"] == rules for role in roles.values())
    assert {source.namespace or NAMESPACE for source in config.discovery.kubernetes} <= set(roles)
    assert not [o for o in objects if o["kind"] == "ClusterRole"]
    pod = named(objects, "Deployment", "r-prefix-router")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is bool(config.discovery.kubernetes)
    for found in objects:
        if found["kind"] == "RoleBinding":
            assert found["roleRef"]["name"] == roles[found["metadata"]["namespace"]]["metadata"]["name"]
            assert found["subjects"][0] | {"apiGroup": ""} == {
                "apiGroup": "",
                "kind": "ServiceAccount",
                "name": pod["serviceAccountName"],
                "namespace": NAMESPACE,
            }


def test_router_finds_the_charts_engines(objects: Objects, tmp_path: Path) -> None:
    for source in config_of(objects, tmp_path).discovery.kubernetes:
        if source.service and source.service.startswith("r-prefix-router"):
            service = named(objects, "Service", source.service)
            assert source.port in [port["name"] for port in service["spec"]["ports"]]


def test_agents_flags_are_the_agents(objects: Objects, tmp_path: Path) -> None:
    config = config_of(objects, tmp_path)
    parser = argparse.ArgumentParser(exit_on_error=False)
    agent.add_arguments(parser)
    for pod in templates(objects):
        for container in pod["spec"].get("initContainers", []):
            assert container["restartPolicy"] == "Always"
            command, *flags = container["args"]
            args = parser.parse_args(flags)
            assert command == "agent"
            assert args.pool == config.redis.pool
            assert args.engine_url.endswith(f":{ports(pod)['http']}")
            given = {variable["name"] for variable in container["env"]}
            assert set(re.findall(r"\$\((\w+)\)", " ".join(flags))) <= given
            assert config.index.backend == "redis"


def test_agents_use_the_routers_redis(render: Render, tmp_path: Path) -> None:
    """Also where the values give it in the router's own words."""
    values = {
        "engines": [{"name": "m", "kind": "vllm", "model": {"id": "a/b"}}],
        "redis": {"external": {"url": "redis+sentinel://s1:26379,s2:26379/main"}},
        "router": {"config": {"redis": {"pool": "other", "username": "agents", "cluster": True}}},
    }
    objects = render(values)
    config = config_of(objects, tmp_path)
    parser = argparse.ArgumentParser(exit_on_error=False)
    agent.add_arguments(parser)
    (container,) = named(objects, "Deployment", "r-prefix-router-m")["spec"]["template"]["spec"]["initContainers"]
    args = parser.parse_args(container["args"][1:])
    told = (args.pool, args.redis_username, args.redis_cluster)
    assert told == (config.redis.pool, config.redis.username, config.redis.cluster) == ("other", "agents", True)
    (url,) = [variable["value"] for variable in container["env"] if variable["name"] == "REDIS_URL"]
    assert url == config.redis.url == "redis+sentinel://s1:26379,s2:26379/main"


def test_the_router_has_as_long_as_its_engines_to_become_ready(render: Render) -> None:
    """It is ready when one of them is; until then its Deployment must not count as failed."""
    values = {"engines": [{"name": "m", "kind": "vllm", "model": {"id": "a/b"}, "startupSeconds": 3600}]}
    objects = render(values)
    deadlines = [o["spec"]["progressDeadlineSeconds"] for o in objects if o["kind"] == "Deployment"]
    assert len(deadlines) == 2
    assert min(deadlines) > 3600


@pytest.mark.parametrize("length", [3, 5, 6, 15, 16])
def test_scaling_reads_the_metrics_of_its_own_pods(helm: Callable[..., Any], chart: Path, length: int) -> None:
    """Kubernetes names pods by the first 58 characters of `DEPLOYMENT-HASH-`, and five more."""
    scaled = {"enabled": True, "prometheusAddress": "http://p:9090"}
    base = {"kind": "vllm", "model": {"id": "a/b"}, "autoscaling": scaled}
    values = {"engines": [base | {"name": "m" * length}, base | {"name": "m" * (length - 2) + "-x"}]}
    done = helm("helm4", "template", "fleet-" + "f" * 25, str(chart), values=values)
    assert done.returncode == 0, done.stderr
    scalers = [o for o in yaml.safe_load_all(done.stdout) if o and o["kind"] == "ScaledObject"]
    pods = [f"{o['metadata']['name']}-5d4f8bc9d7-"[:58] + "x7k2p" for o in scalers]
    for scaler, pod in zip(scalers, pods, strict=True):
        for trigger in scaler["spec"]["triggers"]:
            (pattern,) = re.findall(r'pod=~"([^"]+)"', trigger["metadata"]["query"])
            assert [one for one in pods if re.fullmatch(pattern, one)] == [pod]


def test_a_new_chart_alone_replaces_no_pod(helm: Callable[..., Any], chart: Path, tmp_path: Path) -> None:
    """Caches and the index live in pods: a version in their labels would cost them at each upgrade."""
    values = VALKEY | {
        "image": {"tag": "7"},
        "engines": [{"name": "m", "kind": "vllm", "model": {"id": "a/b"}}],
    }
    newer = tmp_path / "prefix-router"
    shutil.copytree(chart, newer)
    about = (newer / "Chart.yaml").read_text(encoding="utf-8")
    (newer / "Chart.yaml").write_text(re.sub(r"(?m)^(version|appVersion):.*$", r"\1: 9.9.9", about), encoding="utf-8")
    pods = []
    for folder in (chart, newer):
        done = helm("helm4", "template", "r", str(folder), values=values)
        assert done.returncode == 0, done.stderr
        found = [o for o in yaml.safe_load_all(done.stdout) if o and o["kind"] == "Deployment"]
        pods.append({o["metadata"]["name"]: o["spec"]["template"] for o in found})
    assert len(pods[0]) == 3
    assert pods[0] == pods[1]


def test_engines_take_more_volumes(render: Render) -> None:
    volume = {"name": "templates", "configMap": {"name": "templates"}}
    mount = {"name": "templates", "mountPath": "/templates"}
    engine = {"name": "m", "kind": "vllm", "model": {"id": "a/b"}, "extraVolumes": [volume]}
    objects = render({"engines": [engine | {"extraVolumeMounts": [mount]}]})
    spec = named(objects, "Deployment", "r-prefix-router-m")["spec"]["template"]["spec"]
    assert volume in spec["volumes"]
    assert mount in spec["containers"][0]["volumeMounts"]


def test_openshift_chooses_users(helm: Callable[..., Any], chart: Path) -> None:
    """Its default constraints refuse pods that ask for users or groups out of the namespace's range."""
    values = VALKEY | {"engines": [{"name": "m", "kind": "vllm", "model": {"id": "a/b"}}]}
    flags = ("--api-versions", "security.openshift.io/v1")
    done = helm("helm4", "template", "r", str(chart), *flags, values=values)
    assert done.returncode == 0, done.stderr
    for user in ("runAsUser", "runAsGroup", "fsGroup:"):
        assert user not in done.stdout
    assert done.stdout.count("runAsNonRoot: true") >= 4


@pytest.mark.parametrize("example", ["vllm-gpu.yaml", "sglang.yaml", "ha-external-valkey.yaml"])
def test_engine_arguments(render: Render, example: str) -> None:
    """Flags and event settings as docs/kv-events.md has them, and open ports for every rank."""
    seen = 0
    for pod in templates(render(example)):
        (container,) = pod["spec"]["containers"]
        if container["name"] != "engine":
            continue
        seen += 1
        flags = {
            arg.removeprefix("--").partition("=")[0]: arg.partition("=")[2]
            for arg in container["args"]
            if arg.startswith("--")
        }
        events = json.loads(flags["kv-events-config"])
        sglang = "sglang" in container["image"]
        assert events.pop("enable_kv_cache_events", None) is (None if sglang else True)
        assert set(events) == {"publisher", "endpoint", "replay_endpoint", "buffer_steps", "topic"}
        assert events["publisher"] == "zmq"
        if sglang:
            assert {"enable-cache-report", "enable-metrics"} <= set(flags)
            assert int(flags["page-size"]) >= 16
        else:
            assert {"enable-prefix-caching", "enable-prompt-tokens-details"} <= set(flags)
        ranks = int(flags.get("dp-size", flags.get("data-parallel-size", "1")))
        used: list[int] = []
        for key in ("endpoint", "replay_endpoint"):
            first = int(re.fullmatch(r"tcp://\*:(\d+)", events[key])[1])  # type: ignore[index]
            used += range(first, first + ranks)
        assert len(set(used)) == 2 * ranks
        assert set(used) | {int(flags["port"])} == set(ports(pod).values())
        gpus = int(container["resources"]["limits"]["nvidia.com/gpu"])
        tensor = int(flags.get("tp-size", flags.get("tensor-parallel-size", "1")))
        assert tensor * ranks == gpus
    assert seen == 1


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
@pytest.mark.parametrize("keyed", [False, True])
def test_engines_document_what_they_are_given(render: Render, kind: str, keyed: bool) -> None:
    engine: dict[str, Any] = {
        "name": "m", "kind": kind, "model": {"id": "org/m", "revision": "main", "servedName": "m"}, "gpus": 8,
        "tensorParallel": 2, "dataParallel": 4, "blockSize": 32, "maxModelLen": 65536,
    }  # fmt: skip
    values: dict[str, Any] = {"engines": [engine, {"name": "n", "kind": kind, "model": {"id": "org/n"}}]}
    if keyed:
        values["engineApiKey"] = {"secretName": "engines"}
    for pod in templates(render(values)):
        container = pod["spec"]["containers"][0]
        if container["name"] != "engine":
            continue
        found = engine_flags.parse(kind, container["args"])
        allowed = engine_flags.VLLM_EVENTS if kind == "vllm" else engine_flags.SGLANG_EVENTS
        assert set(found["kv-events-config"]) <= allowed
        given = {variable["name"]: variable for variable in container["env"]}
        assert ("VLLM_API_KEY" in given) is (keyed and kind == "vllm")
        assert ("api-key" in found) is (keyed and kind == "sglang")
        if "api-key" in found:
            assert found["api-key"] == "$(ENGINE_API_KEY)"
            assert given["ENGINE_API_KEY"]["valueFrom"]["secretKeyRef"] == {"name": "engines", "key": "api-key"}
            # Only /health is open with a key, and it must not generate.
            assert container["livenessProbe"]["httpGet"]["path"] == "/health"
            assert given["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"]["value"] == "0"


def test_watched_pods_are_not_listed_twice(render: Render, tmp_path: Path) -> None:
    """EndpointSlices say when a pod leaves, leases don't: where pods are watched, only they make the fleet."""
    for example in ("sglang.yaml", "vllm-gpu.yaml"):
        config = config_of(render(example), tmp_path)
        assert len(config.discovery.kubernetes) == 1
        assert not config.redis.discover
    assert config_of(render(VALKEY), tmp_path).redis.discover


def checksum(render: Render, values: dict[str, Any]) -> str:
    pod = named(render(STATIC | values), "Deployment", "r-prefix-router")["spec"]["template"]
    return str(pod["metadata"]["annotations"]["checksum/config"])


def setting(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return {"router": {"config": value}}


def test_pods_are_replaced_for_what_the_router_cannot_reload(render: Render, chart: Path) -> None:
    fixed = yaml.safe_load((chart / "files" / "restart-settings.yaml").read_text(encoding="utf-8"))
    assert set(fixed) == reload.FIXED
    assert not [field for field in Config.__struct_fields__ if reload.is_fixed(field) and field not in fixed]
    before = checksum(render, {})
    for key, value in {
        "index": {"max_blocks": 5}, "redis": {"pool": "x"}, "observe": {"sessions_mb": 7}, "listen.host": "::",
        "admin.host": "::", "admission.max_queue": 9, "prompt.chain_cache_mb": 9, "routing.max_sessions": 9,
    }.items():  # fmt: skip
        assert checksum(render, setting(key, value)) != before, key
    for key, value in {
        "routing.policy": "session", "log.access": True, "proxy.max_attempts": 2, "admission.timeout_s": 9,
        "routing.heavy_labels": {"pool": "heavy"}, "health.failures": 9, "prompt.drift_alert": 0.5,
    }.items():  # fmt: skip
        assert checksum(render, setting(key, value)) == before, key
        rolled = setting(key, value)
        rolled["router"]["configChange"] = "roll"
        assert checksum(render, rolled) != checksum(render, {"router": {"configChange": "roll"}}), key


def test_every_section_of_the_configuration_passes_through(render: Render, tmp_path: Path) -> None:
    sections = {
        "routing": {"policy": "session", "light_labels": {"pool": "light"}, "heavy_labels": {"pool": "heavy"}},
        "admission": {"max_queue": 5, "timeout_s": 1.5},
        "observe": {"break_text": True},
        "log": {"access": True, "blocks": True},
        "reload": {"watch": False},
        "index": {"max_blocks": 20_000_000},
        "limits": {"max_body_mb": 3},
        "health": {"interval_s": 0.5},
        "prompt": {"unreproducible": "ask_engine"},
        "proxy": {"max_attempts": 2},
    }
    config = config_of(render(STATIC | {"router": {"config": sections}}), tmp_path)
    for section, settings in sections.items():
        for key, value in settings.items():
            assert getattr(getattr(config, section), key) == value


def test_engines_carry_their_pool(render: Render, tmp_path: Path) -> None:
    pools = ("light", "heavy")
    engines = [{"name": pool, "kind": "vllm", "model": {"id": "a/b"}, "labels": {"pool": pool}} for pool in pools]
    config = config_of(render({"engines": engines}), tmp_path)
    assert [source.labels for source in config.discovery.kubernetes] == [{"pool": pool} for pool in pools]


def test_overrides_are_laid_over(render: Render, tmp_path: Path) -> None:
    values = VALKEY | {"router": {"config": {"redis": {"timeout_s": 2}, "log": {"access": True}}}}
    config = config_of(render(values), tmp_path)
    assert config.redis.timeout_s == 2
    assert config.redis.url == "redis://r-prefix-router-valkey:6379/0"
    assert config.log.access
