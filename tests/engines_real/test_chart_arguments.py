"""What the chart renders for vLLM, read by vLLM's own parser."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.engines

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".cache" / "vllm" / "bin" / "python"
HELM = ROOT / ".cache" / "tools" / "helm4"
PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
args = make_arg_parser(FlexibleArgumentParser()).parse_args(json.load(sys.stdin))
validate_parsed_serve_args(args)
events = args.kv_events_config
print(json.dumps({"model": args.model_tag, "names": args.served_model_name, "ranks": args.data_parallel_size,
                  "events": events.endpoint, "replay": events.replay_endpoint, "on": events.enable_kv_cache_events,
                  "topic": events.topic, "details": args.enable_prompt_tokens_details, "block": args.block_size}))
"""
ENGINE: dict[str, Any] = {
    "name": "m", "kind": "vllm", "model": {"id": "org/m", "revision": "main", "servedName": "m"}, "gpus": 8,
    "tensorParallel": 2, "dataParallel": 4, "blockSize": 32, "maxModelLen": 65536,
}  # fmt: skip


def test_vllm_takes_the_charts_arguments() -> None:
    if not HELM.exists():
        pytest.skip("helm4 is not there: run python tests/helm/fetch_tools.py")
    chart = str(ROOT / "helm" / "prefix-router")
    rendered = subprocess.run(
        [str(HELM), "template", "r", chart, "--values", "-"],
        input=json.dumps({"engines": [ENGINE]}), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    (container,) = [
        container
        for found in yaml.safe_load_all(rendered.stdout)
        if found and found["kind"] == "Deployment"
        for container in found["spec"]["template"]["spec"]["containers"]
        if container["name"] == "engine"
    ]
    done = subprocess.run(
        [str(PYTHON), "-c", PARSE],
        input=json.dumps(container["args"]), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "model": "org/m", "names": ["m"], "ranks": 4, "events": "tcp://*:5557", "replay": "tcp://*:5657", "on": True,
        "topic": "kv-events", "details": True, "block": 32,
    }  # fmt: skip
