"""Takes vLLM's `kv_cache_report_mode` out of requests: it makes the engine announce blocks again that were only hit.

Copies are counted per block (engine-protocol.md, surprise 6), so such a block would stay in the index after its
eviction. A documented exception to byte-identical forwarding: the field, and the white space around the values of the
objects it was in; every other value keeps its bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

FIELD = "kv_cache_report_mode"
_PLACES = (("vllm_xargs",), ("sampling_params", "extra_args"))
"""Where vLLM reads it: OpenAI's and Anthropic's endpoints; /inference/v1/generate."""

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def asks_report(body: Mapping[str, Any]) -> bool:
    """Whether a parsed request has the field."""
    return ("vllm_xargs" in body or "sampling_params" in body) and any(_has(body, place) for place in _PLACES)


def without_report(body: bytes) -> bytes:
    """The body without it. One that is JSON to Python only is written anew."""
    try:
        _fields(body)
    except msgspec.DecodeError:
        return _rewritten(body)
    for place in _PLACES:
        body = _without(body, place)
    return body


def _rewritten(body: bytes) -> bytes:
    fields = json.loads(body)
    for place in _PLACES:
        inner = fields
        for name in place:
            inner = inner.get(name) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner.pop(FIELD, None)
    return json.dumps(fields).encode()


def _has(value: Any, place: Sequence[str]) -> bool:
    for name in place:
        value = value.get(name) if isinstance(value, dict) else None
    return isinstance(value, dict) and FIELD in value


def _without(raw: bytes, place: Sequence[str]) -> bytes:
    try:
        fields = _fields(raw)
    except msgspec.DecodeError:
        return raw  # no object here
    if not place:
        if fields.pop(FIELD, None) is None:
            return raw
        return _encode(fields)
    inner = bytes(fields.get(place[0], b""))
    changed = _without(inner, place[1:])
    return raw if changed == inner else _encode({**fields, place[0]: msgspec.Raw(changed)})
