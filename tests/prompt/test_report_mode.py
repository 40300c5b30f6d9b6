"""`kv_cache_report_mode` goes, everything else keeps its bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.prompt.report_mode import asks_report, without_report


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (
            b'{"model": "m", "seed":1e2,"vllm_xargs": {"a": 1.50, "kv_cache_report_mode": "full"}, "n":1}',
            b'{"model":"m","seed":1e2,"vllm_xargs":{"a":1.50},"n":1}',
        ),
        (b'{"vllm_xargs":{"\\u006bv_cache_report_mode":"full"}}', b'{"vllm_xargs":{}}'),
        (
            b'{"sampling_params":{"extra_args":{"kv_cache_report_mode":1,"x":"\\u00e9"},"top_p":0.10}}',
            b'{"sampling_params":{"extra_args":{"x":"\\u00e9"},"top_p":0.10}}',
        ),
    ],
)
def test_taken_out(body: bytes, left: bytes) -> None:
    assert asks_report(json.loads(body))
    assert without_report(body) == left


def test_taken_out_of_what_only_python_reads() -> None:
    body = b'\xef\xbb\xbf{"a":NaN,"vllm_xargs":{"kv_cache_report_mode":"full","b":"\xc3\xa9"}}'
    assert without_report(body) == b'{"a": NaN, "vllm_xargs": {"b": "\\u00e9"}}'


@pytest.mark.parametrize(
    "body",
    [
        b'{ "messages": [{"content": "kv_cache_report_mode"}], "kv_cache_report_mode": "full" }',
        b'{"vllm_xargs": null}',
        b'{"vllm_xargs": [1], "sampling_params": "x"}',
        b'{ "vllm_xargs": {"session_id": "kv_cache_report_mode"} }',
    ],
)
def test_left_alone(body: bytes) -> None:
    assert not asks_report(json.loads(body))
    assert without_report(body) == body


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner), max_leaves=8
)


@given(st.dictionaries(st.text(), values), st.dictionaries(st.text(), values), values)
def test_any_body(fields: dict[str, object], arguments: dict[str, object], mode: object) -> None:
    body = fields | {"vllm_xargs": arguments | {"kv_cache_report_mode": mode}}
    arguments.pop("kv_cache_report_mode", None)
    assert json.loads(without_report(json.dumps(body).encode())) == fields | {"vllm_xargs": arguments}
