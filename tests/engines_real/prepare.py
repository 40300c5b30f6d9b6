"""Installs vLLM for the CPU into .cache/vllm, makes the tiny model it serves in .cache/tiny-model, and fetches SGLang's
wheel into .cache/sglang, not to be run but read (once)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache"
PYTHON = CACHE / "vllm" / "bin" / "python"
MODEL = CACHE / "tiny-model"
SGLANG = "sglang==0.5.23"


def main() -> int:
    installed = PYTHON.exists() and not subprocess.run([str(PYTHON), "-c", "import vllm"], check=False).returncode
    if not installed:
        print("installing vLLM for the CPU into .cache/vllm (614 MB to download) ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(CACHE / "vllm")], check=True)
        requirements = str(HERE / "vllm-requirements.txt")
        # torch without its CUDA packages: pip must find a CPU build of that version (PIP_FIND_LINKS, or its own index).
        if subprocess.run(
            [str(PYTHON), "-m", "pip", "install", "-q", "--no-deps", "-r", requirements], check=False
        ).returncode:
            print("vLLM could not be installed: see pip's message above", file=sys.stderr)
            return 1
    plugin = "import replica.vllm_publisher"
    if subprocess.run([str(PYTHON), "-c", plugin], check=False, capture_output=True, cwd=CACHE).returncode:
        print("installing prefix-router beside vLLM, for its plugin ...", flush=True)
        pip = [str(PYTHON), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, "redis>=5.2,<9", "hiredis>=3.1,<4", "xxhash>=3.5,<5"], check=True)
        subprocess.run([*pip, "--no-deps", "--editable", str(HERE.parents[1])], check=True)
    if not (MODEL / "model.safetensors").exists():
        print("making the tiny model in .cache/tiny-model ...", flush=True)
        subprocess.run([str(PYTHON), str(HERE / "make_tiny_model.py"), str(MODEL)], check=True)
    if not list((CACHE / "sglang").glob("*.whl")):
        print("fetching SGLang's wheel into .cache/sglang (39 MB to download) ...", flush=True)
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*download, "--dest", str(CACHE / "sglang"), SGLANG], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
