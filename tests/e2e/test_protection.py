"""What keeps a fleet alive: token ids are checked, poison is refused, failing replicas rest, outages aren't doubled."""

from __future__ import annotations

import json
from collections import Counter
from time import monotonic

import pytest
from support.waiting import until

from router.fleet.breaker import Circuit


def ask(number: int, **fields: object) -> dict[str, object]:
    return {"model": "sim", "messages": [{"role": "user", "content": f"question {number}"}], "max_tokens": 4, **fields}


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/completions", {"prompt": [1, 2, 4096]}, "prompt"),
        ("/v1/completions", {"prompt": [[1, 2], [3, 99_999]]}, "prompt[1]"),
        ("/v1/embeddings", {"input": [5000]}, "input"),
        ("/generate", {"input_ids": [[1], [4096]]}, "input_ids[1]"),
        ("/v1/chat/completions", {**ask(1), "input_ids": [1, -1]}, "input_ids"),
        (
            "/v1/chat/completions",
            {**ask(1), "kv_transfer_params": {"prompt_token_ids": [4096]}},
            "kv_transfer_params.prompt_token_ids",
        ),
        ("/v1/score", {"query": [1, 4096], "items": [[2]]}, "query"),
        ("/v1/score", {"query": [1], "items": [[2], [3, 4096]]}, "items"),
        ("/generative_scoring", {"query": "q", "items": ["i"], "label_token_ids": [4096]}, "label_token_ids"),
        ("/inference/v1/generate", {"token_ids": [1, 2, 1 << 40]}, "token_ids"),
    ],
)
async def test_a_token_id_outside_the_vocabulary_reaches_no_engine(build, path, fields, param) -> None:
    system = await build(replicas=1, simulator={"record_requests": 10_000})
    status, _, answer = await system.post(path, {"model": "sim", **fields})
    assert status == 400, answer
    assert answer["error"]["param"] == param and answer["error"]["code"] == "invalid_token_id"
    assert "4095" in answer["error"]["message"]
    assert not [request for request in system.fleet[0].requests if request.path == path]


async def test_the_last_token_id_of_the_vocabulary_passes(build) -> None:
    system = await build(replicas=1)
    status, _, answer = await system.post("/v1/completions", {"model": "sim", "prompt": [1, 4095], "max_tokens": 2})
    assert status == 200, answer


async def test_a_request_that_kills_engines_is_refused_before_the_fleet_is_gone(build) -> None:
    system = await build(replicas=4)
    for simulated in system.fleet:
        simulated.fault(die=True)
    seen: list[int] = []
    for _ in range(3):
        status, headers, answer = await system.post("/v1/chat/completions", ask(666))
        seen.append(status)
    assert seen == [502, 422, 422], "two replicas killed by one request, none by its repetition"
    assert "retry-after" in headers and "may be the cause" in answer["error"]["message"]
    for simulated in system.fleet:
        simulated.clear_faults()
    status, _, _ = await system.post("/v1/chat/completions", ask(1))
    assert status == 200
    await system.idle()


async def test_a_request_that_only_meets_broken_connections_is_answered(build) -> None:
    system = await build(replicas=4)
    for simulated in list(system.fleet)[:3]:
        simulated.fault(close_before_head=1)
    status, _, answer = await system.post("/v1/chat/completions", ask(1))
    assert status == 200, answer
    await system.idle()


async def test_a_replica_whose_requests_fail_rests_and_comes_back(build) -> None:
    system = await build(replicas=3, settings={"health.eject_s": 300, "routing.policy": "round_robin"})
    system.fleet[0].fault(status=500)
    statuses: Counter[int] = Counter()
    for number in range(30):
        status, _, _ = await system.post("/v1/chat/completions", ask(number))
        statuses[status] += 1
    assert statuses == {200: 30}
    breaker = system.replica(0).breaker
    assert breaker.circuit is Circuit.OPEN
    _, said = system.app.ready()
    assert any("is ejected" in line for line in said["degraded"])
    system.fleet[0].clear_faults()
    system.app.outliers._clock = lambda: monotonic() + 300
    await until(lambda: breaker.circuit is Circuit.HALF_OPEN, "its time is over")
    for number in range(100, 103):
        status, _, _ = await system.post("/v1/chat/completions", ask(number))
        assert status == 200
    assert breaker.circuit is Circuit.CLOSED, "one of three in turns went there"
    await system.idle()


async def test_an_outage_is_not_doubled_by_retries(build) -> None:
    settings = {
        "proxy.retry_budget_per_s": 0.5,
        "proxy.retry_budget_ratio": 0.1,
        "proxy.max_attempts": 3,
        "health.max_ejected_share": 0,
    }
    system = await build(replicas=4, settings=settings, simulator={"record_requests": 10_000})
    for simulated in system.fleet:
        simulated.fault(status=502)
    for number in range(200):
        await system.post("/v1/chat/completions", ask(number))
    tries = sum(r.path == "/v1/chat/completions" for simulated in system.fleet for r in simulated.requests)
    assert 200 < tries < 250, "200 requests, 5 + 10 % retries of retries; 600 without a budget"
    await system.idle()


async def test_the_report_mode_that_spoils_counts_never_reaches_vllm(build) -> None:
    system = await build(replicas=1, simulator={"record_requests": 10_000})
    status, _, answer = await system.post(
        "/v1/chat/completions", ask(1, vllm_xargs={"kv_cache_report_mode": "full", "x": 1}, seed=7)
    )
    assert status == 200, answer
    sent = [r for r in system.fleet[0].requests if r.path == "/v1/chat/completions"][-1]
    assert json.loads(sent.body) == ask(1, vllm_xargs={"x": 1}, seed=7)


async def test_two_replicas_that_fail_at_once_fail_nobody(build) -> None:
    """Both answer 500 and are alive: the third has the answer."""
    system = await build(replicas=3, settings={"routing.policy": "round_robin"})
    for index in (0, 1):
        system.fleet[index].fault(status=500)
    for number in range(6):
        headers, _ = await system.chat([{"role": "user", "content": f"question {number}"}])
        assert headers["x-prefix-router-replica"] == system.replica(2).id
    await system.idle()
