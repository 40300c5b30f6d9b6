"""Model files from a hub: over real HTTP, with the real client, from a hub on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from support.fake_hub import COMMIT, FakeHub
from support.ports import refusing_port
from support.router_process import router_process

from replica.simulator.config import ReplicaConfig
from replica.simulator.fleet import SimulatedReplica
from router.blocks import unpack
from router.prompt.model import load_model

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "replica" / "simulator" / "model"
REPO = "some-org/tiny-chat"
TEXT = "<|im_start|>user\nhello there<|im_end|>\n"
# The client reads its settings when it is imported: each case is a process of its own.
LOAD = """
import sys
from router.blocks import unpack
from router.prompt.hub import HubError, ModelFilesError
from router.prompt.model import load_model
name, revision, token = sys.argv[1:4]
try:
    model = load_model(name, revision=revision or None, token=token or None, fast=False)
except HubError as error:
    print("passing" if error.passing else "lasting", error)
except ModelFilesError as error:
    print("files", error)
else:
    print("ids", unpack(model.encode(sys.stdin.read())))
"""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    files = {path.name: path.read_bytes() for path in MODEL.iterdir() if path.is_file()}
    server = FakeHub(REPO, {**files, "model.safetensors": b"w" * 1000})
    yield server
    server.close()


def load(url: str, home: Path, name: str = REPO, revision: str = "", token: str = "", **settings: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **settings}
    command = [sys.executable, "-c", LOAD, name, revision, token]
    done = subprocess.run(
        command, input=TEXT, env=environment, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def expected() -> str:
    return f"ids {unpack(load_model(MODEL, fast=False).encode(TEXT))}"


def test_files_are_fetched_once_and_no_weights(hub: FakeHub, tmp_path: Path) -> None:
    assert load(hub.url, tmp_path) == expected()
    assert any("tokenizer.json" in asked for asked in hub.asked)
    assert not any("safetensors" in asked for asked in hub.asked if asked.startswith("GET") and "/resolve/" in asked)
    hub.asked.clear()
    assert load(hub.url, tmp_path) == expected()
    assert not any(asked.startswith("GET") and "/resolve/" in asked for asked in hub.asked)
    assert load(hub.url, tmp_path, revision=COMMIT) == expected()


def test_cached_files_do_without_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    load(hub.url, tmp_path)
    with refusing_port() as port:
        gone = f"http://127.0.0.1:{port}"
        assert load(gone, tmp_path) == expected()
        assert load(gone, tmp_path, HF_HUB_OFFLINE="1") == expected()
    hub.failing = 1000
    assert load(hub.url, tmp_path) == expected()


def test_a_hub_that_is_away_is_tried_again(tmp_path: Path) -> None:
    with refusing_port() as port:
        said = load(f"http://127.0.0.1:{port}", tmp_path)
    assert said.startswith(f"passing {REPO}: is no directory, and the hub can't be reached")
    assert "or give a local directory" in said


def test_offline_says_so(tmp_path: Path) -> None:
    with refusing_port() as port:
        said = load(f"http://127.0.0.1:{port}", tmp_path, HF_HUB_OFFLINE="1")
    assert said.startswith("lasting")
    assert "HF_HUB_OFFLINE" in said


def test_a_failing_hub_is_tried_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.failing = 1000
    said = load(hub.url, tmp_path)
    assert said.startswith("passing")
    assert "503" in said


def test_wrong_names_are_told_apart(hub: FakeHub, tmp_path: Path) -> None:
    assert "the hub has no some-org/other" in load(hub.url, tmp_path, "some-org/other")
    assert "the hub has no revision 'v9'" in load(hub.url, tmp_path, revision="v9")
    assert "no such directory" in load(hub.url, tmp_path, "./nowhere")
    assert "it is no hub id" in load(hub.url, tmp_path, "some org/x")
    del hub.files["tokenizer.json"]
    assert "tokenizer.json: missing" in load(hub.url, tmp_path / "other")


def test_gated_models_need_the_token(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    said = load(hub.url, tmp_path)
    assert said.startswith("lasting")
    assert "models[].token_env" in said
    assert load(hub.url, tmp_path, token="hf_secret") == expected()
    assert load(hub.url, tmp_path / "other", HF_TOKEN="hf_secret") == expected()


async def test_a_router_becomes_exact_when_the_hub_is_back(hub: FakeHub, tmp_path: Path) -> None:
    """The hub is down when the router starts: it serves by approximate keys, tries again, and is exact from then on."""
    hub.failing = 1000
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(SimulatedReplica(ReplicaConfig(model="sim")))
        settings = {"replicas": [{"url": engine.url}], "models": [{"name": "sim", "files": REPO}]}
        router = await stack.enter_async_context(router_process(tmp_path, settings, environment=environment))
        client = await stack.enter_async_context(aiohttp.ClientSession())
        await router.up(client, 1)

        async def tokens() -> str:
            body = {"model": "sim", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
            async with client.post(router.url + "/v1/chat/completions", json=body) as answer:
                assert answer.status == 200
                return answer.headers["x-prefix-router-tokens"]

        await router.said("prompts are matched by approximate keys")
        assert (await tokens()).startswith("approximate")
        hub.failing = 0
        await router.said("its prompts are exact now")
        assert await tokens() == "exact"
