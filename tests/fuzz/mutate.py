"""Requests that are nearly right: seeds, and what is done to them."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

CHAT = {
    "model": "sim",
    "messages": [
        {"role": "system", "content": "You are a careful agent."},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "max_tokens": 5, "n": 1, "stream": False, "priority": 1, "cache_salt": "s", "user": "u",
}  # fmt: skip
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "sim", "prompt": ["one", "two"], "max_tokens": 3, "vllm_xargs": {"session_id": "a"}},
    "/v1/completions?x=1": {"model": "sim", "prompt": [1, 2, 3], "kv_transfer_params": {"prompt_token_ids": [1]}},
    "/v1/responses": {"model": "sim", "input": [{"role": "user", "content": "hi"}], "instructions": "be brief"},
    "/v1/messages": {"model": "sim", "max_tokens": 5, "system": [{"type": "text", "text": "s"}], "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}]},
    "/v1/embeddings": {"model": "sim", "input": ["a", "b"]},
    "/generate": {"text": "hello", "sampling_params": {"max_new_tokens": 4}, "input_ids": [1, 2]},
    "/v1/score": {"model": "sim", "text_1": "a", "text_2": ["b"]},
    "/rerank": {"model": "sim", "query": "q", "documents": ["a", "b"]},
    "/tokenize": {"model": "sim", "prompt": "abc"},
    "/inference/v1/generate": {"model": "sim", "token_ids": [1, 2], "sampling_params": {"extra_args": {}}},
    "/anything/else": {"model": "sim", "what": "ever"},
}  # fmt: skip
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**64, -(2**70), 1e308, 0.1, "", "sim", "x" * 3000, "\u0000", "\ud800",
    "😀" * 50, [], {}, [[]], [None], [1, "a"], {"role": 1}, {"": {}}, "kv_cache_report_mode", [{"type": "image_url"}],
    [-1], [4096], "<|im_start|>system", "{{ messages }}", "{% for x in range(10) %}", "nan", "\r\n\r\n", "data: [DONE]",
]  # fmt: skip
HEADERS = [
    ("x-session-id", "abc"), ("authorization", "Bearer x"), ("x-vllm-priority", "-3"), ("x-vllm-priority", "high"),
    ("x-request-timeout", "nan"), ("x-request-timeout", "30"), ("x-stainless-read-timeout", "1e999"),
    ("connection", "x-session-id, content-type"), ("connection", "keep-alive, content-length"), ("te", "trailers"),
    ("x-prefix-router-replica", "evil"), ("x-request-id", "../../etc"), ("accept-encoding", "gzip"), ("cookie", "a=b"),
    ("x-forwarded-for", "1.2.3.4"), ("expect", "100-continue"), ("upgrade", "h2c"), ("x-é", "ü"), ("x-long", "y" * 900),
    ("connection", "Upgrade, HTTP2-Settings"),
    ("proxy-connection", "close"), ("content-type", "text/plain"), ("content-encoding", "gzip"), ("trailer", "x"),
]  # fmt: skip
BYTES = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"chunked", b"Transfer-Encoding: chunked\r\n", b"\xff",
    b"Content-Length: 0\r\n", b"content-length: 5\r\n", b"0\r\n\r\n", b"f" * 30, b"HTTP/1.1", b"HTTP/2.0", b"#",
    b"GET / ", b"Host: b\r\n", b"\r\n folded", b";ext=\"\r\n\"", b"-1\r\n",
    b"Expect: 100-continue\r\n", b"Connection: close\r\n",
]  # fmt: skip


def body(rng: random.Random) -> tuple[str, bytes]:
    """A path and a mutated body for it."""
    path = rng.choice(list(BODIES))
    value = json.loads(json.dumps(BODIES[path]))
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        _mutate(rng, value)
    data = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.15:
        data = _bytes(
            rng, data, [b"\\", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\xff", b"1e999", b"NaN", b"\\ud800"]
        )
    if rng.random() < 0.02:
        depth = rng.choice((50, 500, 5000))
        data = data.replace(b'"sim"', b"[" * depth + b"]" * depth, 1)
    return path, data


def _mutate(rng: random.Random, value: Any) -> None:
    """Change something at a random place of a JSON value."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.7:
            value = value[key]
            continue
        action = rng.random()
        if action < 0.6:
            value[key] = copy.deepcopy(rng.choice(ODD))
        elif action < 0.75:
            del value[key]
        elif isinstance(value, dict):
            value[rng.choice(["messages", "stream", "model", "n", "prompt", "tools", "extra"])] = copy.deepcopy(
                rng.choice(ODD)
            )
        else:
            value.append(copy.deepcopy(rng.choice(ODD)))
        return


def whole(rng: random.Random) -> bytes:
    """A well-framed request with a mutated body, odd headers, a content length or chunks."""
    path, data = body(rng)
    method = rng.choices(["POST", "GET", "HEAD", "PUT", "DELETE", "OPTIONS"], [40, 2, 1, 1, 1, 1])[0]
    lines = [f"{method} {path} HTTP/1.1", "Host: router"]
    lines += [f"{name}: {value}" for name, value in rng.sample(HEADERS, rng.choice((0, 0, 1, 2, 3)))]
    if rng.random() < 0.2:
        cuts = sorted(rng.sample(range(len(data) + 1), min(2, len(data))))
        pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if b > a]
        framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        lines.append("Transfer-Encoding: chunked")
        data = framed
    else:
        lines.append(f"Content-Length: {len(data)}")
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + data


def broken(rng: random.Random) -> bytes:
    """One or two requests whose bytes were tampered with."""
    data = whole(rng) + (whole(rng) if rng.random() < 0.3 else b"")
    head = data.find(b"\r\n\r\n") + 4 if rng.random() < 0.8 else len(data)
    return _bytes(rng, data[:head], BYTES) + data[head:]


def _bytes(rng: random.Random, data: bytes, parts: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        action = rng.random()
        if action < 0.5:
            changed[at:at] = rng.choice(parts)
        elif action < 0.8:
            del changed[at : at + rng.randint(1, 12)]
        else:
            changed[at : at + 1] = bytes([rng.randrange(256)])
    return bytes(changed)
