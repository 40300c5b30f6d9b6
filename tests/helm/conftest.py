"""Runs helm on the chart. Tools come from tests/helm/fetch_tools.py; what is missing is skipped by its name."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".cache" / "tools"

Objects = list[dict[str, Any]]
Render = Callable[..., Objects]


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """A fetched tool's path, or a skip that names it."""

    def find(name: str) -> str:
        fetched = TOOLS / name
        # helm and kubectl of the PATH may be of any version; Prometheus' tools are the distribution's either way.
        path = str(fetched) if fetched.exists() else shutil.which(name) if name in ("promtool", "prometheus") else None
        if path is None:
            pytest.skip(f"{name} is not there: run python tests/helm/fetch_tools.py")
        return path

    return find


@pytest.fixture(scope="session")
def helm(tool: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Runs one helm version: helm("helm3", "lint", ..., values={...}) gives the finished process."""
    home = tmp_path_factory.mktemp("helm")

    def run(version: str, *args: str, values: object = None) -> subprocess.CompletedProcess[str]:
        command = [tool(version), *args]
        if values is not None:
            command += ["--values", "-"]
        return subprocess.run(
            command,
            input=None if values is None else json.dumps(values),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
        )

    return run


@pytest.fixture(scope="session")
def chart() -> Path:
    return ROOT / "helm" / "prefix-router"


@pytest.fixture(scope="session")
def render(helm: Callable[..., Any], chart: Path) -> Render:
    """The objects of a release `r` in namespace `inference`, for values or an example's name; remembered."""
    known: dict[str, Objects] = {}

    def run(values: dict[str, Any] | str, version: str = "helm4") -> Objects:
        key = f"{version} {values}"
        if key not in known:
            if isinstance(values, str):
                values = yaml.safe_load((chart / "examples" / values).read_text(encoding="utf-8"))
            done = helm(version, "template", "r", str(chart), "--namespace", "inference", values=values)
            assert done.returncode == 0, done.stderr
            known[key] = [found for found in yaml.safe_load_all(done.stdout) if found]
        return known[key]

    return run
