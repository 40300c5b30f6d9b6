"""What the watcher reads from answers, however they are split."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.proxy.watch import ResponseWatcher, Usage

OPENAI = (
    b'data: {"choices":[{"delta":{"content":"a \\"usage\\":{\\"prompt_tokens\\":7}"}}],"usage":null}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":120,"total_tokens":125,"completion_tokens":5,'
    b'"prompt_tokens_details":{"cached_tokens":112}}}\n\ndata: [DONE]\n\n'
)
ANTHROPIC = (
    b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":50,"output_tokens":0,'
    b'"cache_read_input_tokens":32}}}\n\n' + b'event: x\ndata: {"type":"content_block_delta"}\n\n' * 300 +
    b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":9}}\n\n'
)  # fmt: skip
SGLANG = b'data: {"text":"a","meta_info":{"prompt_tokens":30,"completion_tokens":1,"cached_tokens":16}}\n\n'
JSON = json.dumps(
    {
        "choices": [{"message": {"content": "x" * 5000}}],
        "usage": {"prompt_tokens": 4, "completion_tokens": 3, "prompt_tokens_details": None},
        "prompt_token_ids": list(range(3000)),
    }
).encode()


@settings(max_examples=60)
@given(
    st.sampled_from(
        [
            (OPENAI, b"text/event-stream", Usage(120, 5, 112)),
            (ANTHROPIC, b"text/event-stream", Usage(50, 9, 32)),
            (SGLANG, b"text/event-stream", Usage(30, 1, 16)),
            (JSON, b"application/json", Usage(4, 3, None)),
        ]
    ),
    st.integers(1, 4000),
)
def test_usage_with_any_split(case: tuple[bytes, bytes, Usage], step: int) -> None:
    data, kind, expected = case
    watch = ResponseWatcher(kind, b"")
    for at in range(0, len(data), step):
        watch.feed(data[at : at + step], float(at))
    assert watch.usage() == expected
    assert not watch.error_seen and watch.bytes == len(data) and watch.first_at == 0.0


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("data", [OPENAI, ANTHROPIC, b": ping\n\ndata: 1\ndata: 2\n\ndata: 3\n\n\nid: 4\ndata: 5"])
def test_events_are_counted_with_any_split(data: bytes, end: bytes) -> None:
    events = len([event for event in data.split(b"\n\n")[:-1] if event.strip()])
    lines = data.replace(b"\n", end)
    for step in (1, 2, 3, 4, 5, 7, 63, 64, 65, 66, 100, 1000, 5000):
        watch = ResponseWatcher(b"text/event-stream", b"")
        for at in range(0, len(lines), step):
            watch.feed(lines[at : at + step], 0.0)
        assert watch.events == events, step


@pytest.mark.parametrize(
    ("event", "seen"),
    [
        (b'data: {"error": {"message": "m"}}\n\n', True),
        (b'event: error\ndata: {"type":"error","error":{"message":"m"}}\n\n', True),
        (b'data: {"choices":[{"delta":{"content":"data: {\\"error\\""}}]}\n\n', False),
        (b'data: {"choices":[],"error":null}\n\n', False),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_error_events(event: bytes, seen: bool, step: int) -> None:
    watch = ResponseWatcher(b"text/event-stream", b"")
    data = b"data: 1\n\n" + event
    for at in range(0, len(data), step):
        watch.feed(data[at : at + step], 0.0)
    assert watch.error_seen is seen


def test_comments_are_no_first_content_and_compressed_bodies_are_skipped() -> None:
    watch = ResponseWatcher(b"text/event-stream", b"")
    watch.feed(b": ping\n\n", 1.0)
    watch.feed(b"data: x\n\n", 2.0)
    assert watch.first_at == 2.0 and watch.events == 2
    packed = ResponseWatcher(b"application/json", b"gzip")
    packed.feed(JSON, 1.0)
    assert packed.usage() is None and packed.bytes == len(JSON)
