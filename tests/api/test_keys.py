"""API keys without a server: lists that are refused, buckets, and what becomes of both at a reload."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.api.errors import ApiError
from router.api.keys import Bucket, Gate, KeyEntry, KeysError, digest, parse_keys
from router.http.message import Request


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def gate(clock: Clock, **limits: object) -> Gate:
    return Gate([KeyEntry(name="a", sha256=digest("secret-a"), **limits)], clock=clock)  # type: ignore[arg-type]


def ask(*headers: tuple[bytes, bytes]) -> Request:
    return Request("POST", b"/v1/x", list(headers))


BEARER = ask((b"Authorization", b"Bearer secret-a"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- name: a", "keys[0] (a): give `sha256` or `env`"),
        ("- {name: a, sha256: abc}", "keys[0]: "),
        ("- {name: 'a b', env: K}", "keys[0]: "),
        ("- {name: a, env: K, tenants: x}", "tenants"),
        ("- {name: a, env: MISSING}", "keys[0].env: the environment variable MISSING is not set"),
        ("- {name: a, env: K}\n- {name: a, env: L}", "keys[1].name: a is given twice"),
        ("- {name: a, env: K}\n- {name: b, env: K}", "keys[1]: b is the same key as a"),
        ("- {name: a, env: K, requests_per_minute: 0}", "requests_per_minute"),
        ("name: a", "must be a list"),
        ("[", "not valid YAML"),
    ],
)
def test_a_list_that_cannot_be_used_says_where(text: str, said: str) -> None:
    with pytest.raises(KeysError) as caught:
        parse_keys(text, {"K": "one", "L": "two"})
    assert said in str(caught.value)


def test_keys_are_known_by_their_hash_in_either_header() -> None:
    keys = gate(Clock())
    assert keys.enter(BEARER) is not None
    keys.enter(ask((b"x-api-key", b"secret-a")))
    keys.enter(ask((b"authorization", b"bearer other"), (b"X-Api-Key", b"secret-a")))
    for bad in (ask(), ask((b"authorization", b"Basic secret-a")), ask((b"authorization", b"Bearer secret-b"))):
        with pytest.raises(ApiError) as caught:
            keys.enter(bad)
        assert caught.value.status == 401
    assert "secret" not in repr([key.entry for key in keys])


def test_requests_and_concurrency() -> None:
    clock = Clock()
    keys = gate(clock, requests_per_minute=2, max_concurrent=1)
    first = keys.enter(BEARER)
    first.begin("m")
    with pytest.raises(ApiError, match="at once"):
        keys.enter(BEARER).begin("m")
    first.end()
    first.end()
    second = keys.enter(BEARER)
    second.begin("m")
    second.end()
    with pytest.raises(ApiError) as caught:
        keys.enter(BEARER).begin("m")
    assert (caught.value.status, caught.value.retry_after_s) == (429, 30)
    clock.now += 30
    keys.enter(BEARER).begin("m")


def test_tokens_are_charged_before_and_settled_after() -> None:
    clock = Clock()
    keys = gate(clock, tokens_per_minute=600)
    grant = keys.enter(BEARER)
    grant.begin("m")
    grant.charge(500)
    grant.settle(480, 130)  # the engine counted 480: 610 in all, 10 more than there were
    with pytest.raises(ApiError) as caught:
        keys.enter(BEARER).charge(10)
    assert caught.value.retry_after_s == 2
    clock.now += 2
    keys.enter(BEARER).charge(10)
    clock.now += 120
    keys.enter(BEARER).charge(5000)  # larger than the bucket: admitted when it is full
    clock.now += 60
    with pytest.raises(ApiError):
        keys.enter(BEARER).charge(1)


def test_a_reload_keeps_counts_and_levels() -> None:
    clock = Clock()
    keys = gate(clock, requests_per_minute=1)
    running = keys.enter(BEARER)
    running.begin("m")
    keys.configure(
        [
            KeyEntry(name="a", sha256=digest("secret-new"), requests_per_minute=1),
            KeyEntry(name="b", sha256=digest("secret-b")),
        ],
        salted=False,
    )
    with pytest.raises(ApiError, match="not valid"):
        keys.enter(BEARER)
    renewed = keys.enter(ask((b"authorization", b"Bearer secret-new")))
    with pytest.raises(ApiError, match="1 requests a minute"):
        renewed.begin("m")
    running.end()
    assert [key.usage.running for key in keys] == [0, 0]
    assert [key.usage.requests for key in keys] == [1, 0]


@given(
    per_minute=st.integers(1, 100_000),
    steps=st.lists(st.tuples(st.floats(0, 100), st.integers(0, 200_000)), max_size=60),
)
def test_what_is_admitted_never_exceeds_the_rate(per_minute: int, steps: list[tuple[float, int]]) -> None:
    now = 0.0
    bucket = Bucket(per_minute, now)
    admitted = largest = 0
    for pause, amount in steps:
        now += pause
        wait = bucket.wait_s(amount, now)
        assert wait >= 0
        if not wait:
            bucket.spend(amount)
            admitted += amount
            largest = max(largest, amount)
        else:
            assert bucket.wait_s(amount, now + wait * (1 + 1e-9) + 1e-6) <= 1e-3, "Retry-After is long enough"
            now += wait
    assert admitted <= per_minute + now * per_minute / 60 + largest + 1


@pytest.mark.parametrize(
    ("model", "lora", "allowed"),
    [
        ("base", None, True),
        ("base", "mine", True),
        ("base", "listed", True),
        ("base", ["mine", None, "listed"], True),
        ("base", "", True),
        ("base", "other", False),
        ("base", ["mine", "other"], False),
        ("base", {"path": "other"}, False),
        ("other", "listed", False),
        (None, "listed", False),
    ],
)
def test_an_adapter_beside_the_model_has_to_be_in_the_keys_list(model: str | None, lora: object, allowed: bool) -> None:
    """SGLang takes one in `lora_path`."""
    keys = gate(Clock(), models=["base", "base:mine", "listed"])
    if allowed:
        keys.enter(BEARER).begin(model, lora)
    else:
        with pytest.raises(ApiError) as caught:
            keys.enter(BEARER).begin(model, lora)
        assert (caught.value.status, caught.value.code) == (403, "model_not_allowed")
    gate(Clock()).enter(BEARER).begin(model, lora)
