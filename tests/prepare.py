"""Fetches what the tests use beyond Python packages, into .cache/ and from the system's package manager.

Nothing here is required: what can't be had is named, and the tests that need it skip by name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
FETCHERS = [
    HERE / "prompt" / "fetch_tokenizers.py",
    HERE / "prompt" / "fetch_templates.py",
    HERE / "helm" / "fetch_tools.py",
    HERE / "loadtest" / "fetch_peers.py",
]
SYSTEM = {"redis-server": "redis-server", "promtool": "prometheus", "nginx": "nginx-light", "chromium": "chromium"}


def main() -> None:
    missing = {program: package for program, package in SYSTEM.items() if shutil.which(program) is None}
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        # Packages start their services on install; the tests use servers of their own only.
        policy = Path("/usr/sbin/policy-rc.d")
        ours = not policy.exists()
        if ours:
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
        try:
            for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-qq", "-y", *missing.values()]):
                subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False, timeout=600)
        finally:
            if ours:
                policy.unlink()
    for program, package in SYSTEM.items():
        if shutil.which(program) is None:
            print(f"prepare: no {program} (package {package}): its tests will be skipped", file=sys.stderr)
    for fetcher in FETCHERS:
        done = subprocess.run([sys.executable, str(fetcher)], check=False, timeout=600)
        if done.returncode:
            print(f"prepare: {fetcher.name} failed: the tests that need it will be skipped", file=sys.stderr)


if __name__ == "__main__":
    main()
