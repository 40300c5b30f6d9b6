"""Policies that don't look at caches: prompts are passed on unread, and nothing is claimed about them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from e2e.conftest import Build, receipt

SYSTEM = {"role": "system", "content": "You are a careful agent. " * 200}
JSON = {"content-type": "application/json"}
BLIND = ["round_robin", "random", "least_load", "session"]


def messages(question: str) -> list[dict[str, Any]]:
    return [SYSTEM, {"role": "user", "content": question}]


@pytest.mark.parametrize("policy", BLIND)
async def test_nothing_is_claimed_about_a_prompt_that_was_not_read(build: Build, policy: str) -> None:
    system = await build(replicas=2, settings={"routing.policy": policy})
    for number in range(4):
        headers, answer = await system.chat(messages(f"{number}"))
        assert answer["choices"][0]["message"]["content"]
        assert receipt(headers, "tokens") == "unread"
        assert not {"x-prefix-router-matched-tokens", "x-prefix-router-prompt-tokens"} & headers.keys()
        assert "x-prefix-router-session" not in headers
    await system.settled()
    async with system.client.get(system.admin_url + "/requests") as got:
        records = (await got.json())["requests"]
    assert len(records) == 4
    for record in records:
        assert record["tokens"] == "unread"
        assert record["status"] == 200
        assert record["engine_prompt_tokens"] > 500, "what the engine says is told"
        assert record["prompt_tokens"] is record["matched_tokens"] is record["cause"] is None
    assert len(system.app.index.overlay or ()) == 0, "nothing was predicted"
    async with system.client.get(system.admin_url + "/metrics") as got:
        page = await got.text()
    assert "prefix_router_prompt_tokens_total{" not in page
    assert "prefix_router_engine_prompt_tokens_total{" in page


async def test_reports_can_be_had_under_every_policy(build: Build) -> None:
    system = await build(replicas=1, settings={"routing.policy": "round_robin", "observe.prompts": "always"})
    await system.chat(messages("one"))
    await system.settled()
    headers, answer = await system.chat(messages("two"))
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert int(receipt(headers, "matched-tokens")) == cached > 500
    assert receipt(headers, "tokens") == "exact"
    assert "step=" in receipt(headers, "session")


async def test_the_body_goes_out_as_it_came_and_faults_of_it_are_found(build: Build) -> None:
    system = await build(replicas=1, settings={"routing.policy": "round_robin"})
    body = json.dumps({"model": "sim", "messages": messages("x"), "max_tokens": 2}, indent=1).encode()
    async with system.client.post(system.url + "/v1/chat/completions", data=body, headers=JSON) as answer:
        assert answer.status == 200
    for wrong, field in (
        (b'{"model": "sim", "messages": "x"}', "messages"),
        (b'{"model": "sim", "messages": [{]}', None),
        (b'{"messages": []}', "model"),
    ):
        async with system.client.post(system.url + "/v1/chat/completions", data=wrong, headers=JSON) as answer:
            assert answer.status == 400
            assert (await answer.json())["error"]["param"] == field


async def test_an_explanation_reads_the_prompt(build: Build) -> None:
    system = await build(replicas=2, settings={"routing.policy": "round_robin"})
    headers, _ = await system.chat(messages("one"))
    await system.settled()
    content = {"model": "sim", "messages": messages("two")}
    async with system.client.post(system.admin_url + "/explain", json=content) as got:
        told = await got.json()
    held = {one["replica"]: one["matched_tokens"] for one in told["candidates"]}
    assert held[receipt(headers, "replica")] > 500, "as its events say"
    assert told["tokens"]["exact"]
    assert told["decision"]["reason"] == "round_robin"
