"""What the chart renders for vLLM, read by vLLM's own parser; and for SGLang, held against its wheel's source.

SGLang's parser does not load without a GPU build of torch: its flags are the fields of the dataclasses under
`srt/arg_groups/fields`, with dashes, and their aliases (`add_cli_args_from_dataclass`)."""

from __future__ import annotations

import ast
import json
import subprocess
import zipfile
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


def engine_args(kind: str) -> list[str]:
    if not HELM.exists():
        pytest.skip("helm4 is not there: run python tests/helm/fetch_tools.py")
    chart = str(ROOT / "helm" / "prefix-router")
    rendered = subprocess.run(
        [str(HELM), "template", "r", chart, "--values", "-"],
        input=json.dumps({"engines": [ENGINE | {"kind": kind}], "engineApiKey": {"secretName": "keys"}}),
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    (container,) = [
        container
        for found in yaml.safe_load_all(rendered.stdout)
        if found and found["kind"] == "Deployment"
        for container in found["spec"]["template"]["spec"]["containers"]
        if container["name"] == "engine"
    ]
    return [str(arg) for arg in container["args"]]


def test_vllm_takes_the_charts_arguments() -> None:
    done = subprocess.run(
        [str(PYTHON), "-c", PARSE],
        input=json.dumps(engine_args("vllm")), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "model": "org/m", "names": ["m"], "ranks": 4, "events": "tcp://*:5557", "replay": "tcp://*:5657", "on": True,
        "topic": "kv-events", "details": True, "block": 32,
    }  # fmt: skip


def sglang_source(wheel: zipfile.ZipFile, path: str) -> ast.Module:
    return ast.parse(wheel.read(f"sglang/srt/{path}"))


def sglang_flags(wheel: zipfile.ZipFile) -> dict[str, bool]:
    """Flag without dashes in front -> whether it takes a value."""
    flags: dict[str, bool] = {}
    fields = [name for name in wheel.namelist() if name.startswith("sglang/srt/arg_groups/fields/")]
    for name in fields:
        for node in ast.walk(ast.parse(wheel.read(name))):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            text = ast.unparse(node.annotation)
            names = [node.target.id.replace("_", "-")]
            for keyword in (each for each in ast.walk(node.annotation) if isinstance(each, ast.keyword)):
                if keyword.arg == "aliases":
                    names += [alias.removeprefix("--") for alias in ast.literal_eval(keyword.value)]
            flags |= dict.fromkeys(names, not text.startswith("A[bool"))
    return flags


def test_sglang_has_the_charts_arguments() -> None:
    wheels = list((ROOT / ".cache" / "sglang").glob("*.whl"))
    if not wheels:
        pytest.skip("SGLang's wheel could not be fetched: run python tests/engines_real/prepare.py")
    args = engine_args("sglang")
    with zipfile.ZipFile(wheels[0]) as wheel:
        known = sglang_flags(wheel)
        events = next(
            node
            for node in ast.walk(sglang_source(wheel, "disaggregation/kv_events.py"))
            if isinstance(node, ast.ClassDef) and node.name == "KVEventsConfig"
        )
    assert len(known) > 200 and "kv-events-config" in known
    given = {name: (equals, value) for name, equals, value in (arg[2:].partition("=") for arg in args)}
    assert {"model-path", "kv-events-config", "enable-metrics", "enable-cache-report", "api-key"} <= set(given)
    assert set(given) <= set(known)
    assert {name: bool(equals) for name, (equals, _) in given.items()} == {name: known[name] for name in given}
    fields = {ast.unparse(node.target) for node in events.body if isinstance(node, ast.AnnAssign)}
    assert set(json.loads(given["kv-events-config"][1])) <= fields
