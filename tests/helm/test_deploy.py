"""deploy/: the image's rules, the compose file's parts, the units' commands, Prometheus' own check of its files."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from replica import agent
from replica.simulator import command as simulator
from router import serve
from router.config import load_config

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMMANDS = {"serve": serve.add_arguments, "agent": agent.add_arguments, "simulate": simulator.add_arguments}


def parses(command: str, flags: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    COMMANDS[command](parser)
    return parser.parse_args(flags)


def test_image_is_small_pinned_and_not_root() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n", " ", text).splitlines()
    base = next(line for line in lines if line.startswith("ARG PYTHON="))
    assert re.search(r":3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}$", base)
    assert [line for line in lines if line.startswith("FROM")] == ["FROM ${PYTHON} AS build", "FROM ${PYTHON}"]
    assert "USER 10001:10001" in lines
    assert 'ENTRYPOINT ["prefix-router"]' in lines
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for line in lines:
        if line.startswith("COPY") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in ignored


def test_image_is_linted(tool: Callable[[str], str]) -> None:
    done = subprocess.run(
        [tool("hadolint"), "--failure-threshold=style", str(DEPLOY / "Dockerfile")],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_every_dependency_is_pinned() -> None:
    pins: dict[str, str] = dict(
        line.split("==")
        for line in (DEPLOY / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in map(Requirement, project["dependencies"]):
        assert requirement.specifier.contains(pins[requirement.name]), requirement


def test_compose_runs_what_there_is() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert set(services) >= {"router", "simulator", "agent-1", "agent-2", "valkey", "prometheus", "grafana"}
    for service in services.values():
        assert not service["image"].endswith("latest")
        assert ":" in service["image"]
        assert set(service.get("depends_on", [])) <= set(services)
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source == "prometheus" or (DEPLOY / source).resolve().is_file(), source
    for name in ("router", "simulator", "agent-1", "agent-2"):
        command, *flags = services[name]["command"]
        parses(command, flags)
    engines = parses("simulate", services["simulator"]["command"][1:])
    asked = {parses("agent", services[name]["command"][1:]).engine_url for name in ("agent-1", "agent-2")}
    assert asked == {f"http://127.0.0.1:{engines.port + number}" for number in range(engines.replicas)}


def test_router_file_can_be_used() -> None:
    config = load_config(DEPLOY / "router.yaml", {})
    assert config.index.backend == "redis"
    assert config.listen.port == 8000
    _, _, inside = (config.models[0].files or "").partition("site-packages/")
    assert (ROOT / inside / "tokenizer.json").is_file()


@pytest.mark.parametrize("name", ["prefix-router", "prefix-router-agent"])
def test_units(name: str, tmp_path: Path) -> None:
    text = (DEPLOY / "systemd" / f"{name}.service").read_text(encoding="utf-8")
    start = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    # With the variables as the unit's own comment gives them.
    given = dict(re.findall(r"^#   (\w+)=(.*)$", text, re.MULTILINE))
    start = re.sub(r"\$\{?(\w+)\}?", lambda name: given[name[1]], start)
    _, command, *flags = shlex.split(start.removeprefix("ExecStart="))
    parses(command, flags)
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not there: units are checked for their commands only")
    unit = tmp_path / f"{name}.service"
    unit.write_text(text.replace("/opt/prefix-router/bin/prefix-router", "/bin/true"), encoding="utf-8")
    done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, timeout=240, check=False)
    assert unit.name not in done.stderr, done.stderr


def test_prometheus_takes_configuration_and_rules(tool: Callable[[str], str], chart: Path, tmp_path: Path) -> None:
    shutil.copy(chart / "files" / "rules.yaml", tmp_path)
    shutil.copy(DEPLOY / "prometheus.yml", tmp_path)
    done = subprocess.run(
        [tool("promtool"), "check", "config", "--lint=all", str(tmp_path / "prometheus.yml")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
