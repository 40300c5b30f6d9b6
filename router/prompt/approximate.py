"""Keys for prompts whose ids can't be known: chunks of the request's own text.

Four bytes of text count as one token, and four of the model's blocks are one chunk: 256 bytes for blocks of 16. Text
keys only have to tell how far prompts agree, and each key costs a look in the index. The text is canonical: tools,
then each message's role and content in order, as compact JSON, nothing rendered. Requests that grow by appending
share their first chunks, which is all that routing needs; such a chain never equals one of token ids, because its
root is mixed with a marker.
"""

from __future__ import annotations

from typing import Any

import msgspec
import xxhash

from router.blocks import TOKEN_BYTES, mix
from router.prompt.requests import ApiRequest, Endpoint

_encode = msgspec.json.Encoder().encode
CHUNK_BLOCKS = 4
"""Blocks of the model to a chunk of text."""
# A data URL or inline image is replaced by its hash, a picture being worth more bytes than its tokens.
_LONG_DATA = 512
_MEDIA_KEYS = frozenset({"url", "data", "image_url", "image", "video_url", "audio_url", "file_data"})
_SCORED = ("text_1", "queries", "query", "text_2", "items", "documents", "input")


def approximate_root(root: int) -> int:
    """The root of a chain of text chunks."""
    return mix(root, b"prefix-router/text/v1")


def canonical_text(request: ApiRequest) -> bytes:
    """The bytes that stand for the prompt, padded to whole 4-byte units."""
    parts: list[bytes] = []
    body = request.body
    if request.prompts:
        first = request.prompts[0]
        parts.append(first.encode("utf-8", "surrogatepass") if isinstance(first, str) else first)
    elif request.endpoint in (Endpoint.SCORE, Endpoint.SCORE_ITEMS, Endpoint.RERANK):
        parts += [_bytes(body[name]) for name in _SCORED if name in body]
    else:
        for name in ("tools", "system", "instructions"):
            if body.get(name):
                parts.append(_bytes(body[name]))
        history = body.get("messages")
        if history is None:
            history = body.get("input")
        for message in history if isinstance(history, list) else [history]:
            if isinstance(message, dict):
                parts += [_bytes(value) for value in message.values() if value is not None]
            elif message is not None:
                parts.append(_bytes(message))
    text = b"\n".join(parts)
    return text + b"\n" * (-len(text) % TOKEN_BYTES)


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    return _encode(_short(value))


def _short(value: Any) -> Any:
    """The value with long media replaced by hashes of their content."""
    if isinstance(value, dict):
        return {key: _digest(inner) if key in _MEDIA_KEYS else _short(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_short(inner) for inner in value]
    return value


def _digest(value: Any) -> Any:
    if isinstance(value, str):
        return xxhash.xxh3_64_hexdigest(value.encode("utf-8", "surrogatepass")) if len(value) > _LONG_DATA else value
    return _short(value)
