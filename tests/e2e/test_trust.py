"""Evidence for and against a replica's ids, and what is done with it, on whole systems."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.waiting import until
from tokenizers import Tokenizer, normalizers

from replica.simulator.config import MODEL_DIR
from router.catalog import Catalog
from router.config.model import Model
from router.prompt.model import ChatModel
from router.prompt.pipelines import apply_class


def turn(number: int) -> list[dict[str, str]]:
    """A conversation of a few hundred tokens that shares nothing with the others."""
    return [{"role": "user", "content": f"{number} is the number of this one. " * 40}]


async def test_lost_events_are_noticed_by_their_missing_blocks_and_forgiven(build) -> None:
    system = await build(replicas=1)
    replica = system.replica(0)
    await until(lambda: replica.verified, "its ids were compared")
    system.fleet[0].fault(drop_events=10_000)
    for number in range(12):
        headers, _ = await system.chat(turn(number))
        assert headers["x-prefix-router-tokens"] in ("exact", "approximate; token-mismatch")
    await until(lambda: "blocks" in replica.distrust, "the missing blocks were noticed")
    degraded = system.app.ready()[1]["degraded"]
    assert any("quarantined" in line and "KV events" in line for line in degraded)
    for _ in range(2):
        headers, _ = await system.chat(turn(3))
    assert int(headers["x-prefix-router-matched-tokens"]) > 100, "its cache is modelled meanwhile"
    async with system.client.get(system.admin_url + "/metrics") as page:
        text = await page.text()
    assert f'prefix_router_event_drift{{replica="{replica.id}"}} 1.0' in text
    system.fleet[0].fault(drop_events=0)
    number = 100
    while replica.distrust:
        number += 1
        assert number < 2000, "it is believed again"
        await system.chat(turn(number))
    assert system.app.ready()[1]["status"] == "ready"


async def test_events_that_arrive_speak_for_a_replica(build) -> None:
    system = await build(replicas=2, simulator={"kv_blocks": 8192})
    for number in range(30):
        await system.chat(turn(number % 10))
    records = system.app.trust._records.values()
    await until(lambda: sum(r.blocks.samples for r in records) >= 10, "blocks were looked for")
    assert all(record.blocks.drift == 0 for record in records)
    assert not any(replica.distrust for replica in system.app.fleet)


async def test_another_reading_of_the_tokenizer_file_is_found_and_used(build, tmp_path: Path) -> None:
    served = tmp_path / "served"
    shutil.copytree(MODEL_DIR, served)
    tokenizer = Tokenizer.from_file(str(served / "tokenizer.json"))
    apply_class(tokenizer, "Qwen2Tokenizer")
    tokenizer.save(str(served / "tokenizer.json"))
    system = await build(replicas=2, simulator={"model_dir": served}, model_files=str(MODEL_DIR))
    await until(lambda: all(replica.verified for replica in system.app.fleet), "both were compared")
    assert not any(replica.distrust for replica in system.app.fleet)
    message = [{"role": "user", "content": "1234567 e\u0301 it's 98765 x_y " * 30}]
    for _ in range(2):
        headers, answer = await system.chat(message)
        assert headers["x-prefix-router-tokens"] == "exact"
        assert int(headers["x-prefix-router-prompt-tokens"]) == answer["usage"]["prompt_tokens"]
        await system.settled()
    assert (
        int(headers["x-prefix-router-matched-tokens"]) == answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    )


async def test_replicas_that_no_reading_fits_make_the_router_read_the_file_once_more(
    build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, read, reads = tmp_path / "served", Catalog._read, []

    def counted(self: Catalog, settings: Model, tokenizer_class: str | None, *, fast: bool = True) -> ChatModel:
        reads.append((tokenizer_class, fast))
        return read(self, settings, tokenizer_class, fast=fast)

    monkeypatch.setattr(Catalog, "_read", counted)
    shutil.copytree(MODEL_DIR, served)
    tokenizer = Tokenizer.from_file(str(served / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(served / "tokenizer.json"))
    system = await build(replicas=3, simulator={"model_dir": served}, model_files=str(MODEL_DIR))
    await until(lambda: all(replica.distrust for replica in system.app.fleet), "all were compared")
    assert reads == [(None, True), ("Qwen2Tokenizer", False)]


async def test_ids_are_asked_of_the_engine_where_the_router_has_none(build) -> None:
    settings = {"prompt.unreproducible": "ask_engine", "prompt.ask_timeout_s": 5}
    system = await build(replicas=2, model_files=None, settings=settings, simulator={"record_requests": 10_000})
    history = turn(1)
    for step in range(3):
        headers, answer = await system.chat(history)
        assert headers["x-prefix-router-tokens"] == "exact"
        assert int(headers["x-prefix-router-prompt-tokens"]) == answer["usage"]["prompt_tokens"]
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert int(headers["x-prefix-router-matched-tokens"]) == cached
        assert (cached > 0) == (step > 0)
        history += [answer["choices"][0]["message"], {"role": "user", "content": f"and {step}?"}]
        await system.settled()
    renders = [r for s in system.fleet for r in s.requests if r.target.endswith("/render")]
    before = len(renders)
    await system.chat(history[:-2])  # asked before: known
    assert sum(r.target.endswith("/render") for s in system.fleet for r in s.requests) == before


async def test_without_being_told_so_no_engine_is_asked(build) -> None:
    system = await build(replicas=1, model_files=None)
    headers, _ = await system.chat(turn(1))
    assert headers["x-prefix-router-tokens"] == "approximate; no-model-files"


async def test_ids_are_sent_along_when_that_is_wanted_and_they_are_proven(build) -> None:
    for wanted in (True, False):
        settings = {"prompt.send_token_ids": wanted}
        system = await build(replicas=1, settings=settings, simulator={"record_requests": 10_000})
        await until(lambda system=system: system.replica(0).verified, "its ids were compared")
        body = {"model": "sim", "messages": turn(1), "max_tokens": 4, "seed": 1}
        _, plain, first = await system.post("/v1/chat/completions", {**body, "return_token_ids": True})
        image = [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]
        await system.post("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": image}]})
        sent = [json.loads(r.body) for r in system.fleet[0].requests if r.target == "/v1/chat/completions"]
        ids = [one.get("kv_transfer_params", {}).get("prompt_token_ids") for one in sent]
        assert ids == [first["prompt_token_ids"] if wanted else None, None]
        assert {**sent[0], "kv_transfer_params": None} == {
            **body,
            "return_token_ids": True,
            "kv_transfer_params": None,
        }
        assert int(plain["x-prefix-router-prompt-tokens"]) == len(first["prompt_token_ids"])


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
TALK = [{"role": "user", "content": "é?"}, {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c", "content": "<|im_end|> ok"}]  # fmt: skip
FINAL = [{"role": "user", "content": "go on"}, {"role": "assistant", "content": "I was"}]


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"messages": TALK, "tools": [TOOL]}, True),
        ({"messages": TALK, "tools": [TOOL], "tool_choice": "none", "stream": True}, True),
        ({"messages": TALK, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look"}}}, True),
        ({"messages": FINAL, "stream": True}, True),
        ({"messages": FINAL, "add_generation_prompt": False, "continue_final_message": True}, False),
        ({"messages": FINAL, "chat_template": "x"}, False),
    ],
)
async def test_sent_ids_are_those_the_engine_would_have_made(build, kind: str, fields, sent: bool) -> None:
    """Tools, streams, final assistant turns; the engine's own ids are asked of it directly."""
    settings = {"prompt.send_token_ids": True}
    system = await build(replicas=1, settings=settings, simulator={"kind": kind, "record_requests": 10_000})
    await until(lambda: system.replica(0).verified, "its ids were compared")
    body = {"model": "sim", "max_tokens": 2, **fields}
    async with system.client.post(system.url + "/v1/chat/completions", json=body) as answer:
        text = await answer.text()
        assert answer.status == 200, text
    (request,) = [r for r in system.fleet[0].requests if r.target == "/v1/chat/completions"]
    got = json.loads(request.body)
    ids = got.pop("input_ids", None) if kind == "sglang" else got.pop("kv_transfer_params", {}).get("prompt_token_ids")
    assert got == body
    assert (ids is not None) is sent
    if sent:
        path = "/v1/chat/completions/render" if kind == "vllm" else "/v1/tokenize"
        async with system.client.post(system.fleet[0].url + path, json={**body, "stream": False}) as answer:
            told = await answer.json()
        assert ids == told["token_ids" if kind == "vllm" else "tokens"]


async def test_ids_are_not_sent_to_a_replica_that_reads_otherwise(build, tmp_path: Path) -> None:
    files = tmp_path / "model"
    shutil.copytree(MODEL_DIR, files)
    template = (files / "chat_template.jinja").read_text()
    (files / "chat_template.jinja").write_text("{{- 'An extra line.\\n' }}" + template)
    system = await build(
        replicas=1,
        model_files=str(files),
        settings={"prompt.send_token_ids": True},
        simulator={"record_requests": 10_000},
    )
    await until(lambda: system.replica(0).distrust, "it was compared")
    await system.chat(turn(1))
    sent = [json.loads(r.body) for r in system.fleet[0].requests if r.target == "/v1/chat/completions"]
    assert [one.get("kv_transfer_params") for one in sent] == [None]
