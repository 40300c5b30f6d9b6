"""Other projects' routers, each installed by pip into an environment of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

VERSIONS = {"sglang-router": "0.3.2", "smg": "1.13.0", "vllm-router": "0.1.17"}
"""What the checked-in reports were made with."""
INSTALL_S = 600


class Unavailable(RuntimeError):
    """A router cannot be had here; the message says why and what to do."""


def peer_program(name: str, folder: Path, say: Callable[[str], None]) -> Path:
    """The program of a peer under `folder`, installed now if it is not there. Raises Unavailable."""
    version = VERSIONS[name]
    home = folder / f"{name}-{version}"
    program = home / "bin" / name
    done = home / "installed"
    if done.exists():
        return program
    say(f"installing {name} {version} into {home} ...")
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True, capture_output=True, text=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"{name}=={version}"], check=True, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout or "").strip().splitlines()[-1:] or ["no output"]
        raise Unavailable(f"{name} {version} cannot be installed by pip: {last[0]}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{name} {version} cannot be installed: {error}") from None
    if not program.exists():
        raise Unavailable(f"{name} {version} was installed, but has no program bin/{name}")
    done.touch()
    return program


def nginx_program() -> Path:
    """Raises Unavailable."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Unavailable("nginx is not installed (Debian: apt-get install nginx-light)")
    return Path(found)


def nginx_version(program: Path) -> str:
    said = subprocess.run([str(program), "-v"], check=False, capture_output=True, text=True)
    return (said.stderr or said.stdout).strip().rpartition("/")[2]
