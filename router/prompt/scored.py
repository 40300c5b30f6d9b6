"""Prompts of scoring requests, where they follow from the request alone.

Read in vLLM 0.33 (entrypoints/pooling/scoring, entrypoints/generate/generative_scoring) and SGLang 0.5.23
(managers/tokenizer_manager_score_mixin.py).

| engine, path | prompts |
|---|---|
| SGLang `/v1/score` (a generating model) | each item: the text query + item encoded whole, or their ids joined |
| vLLM `/generative_scoring` | each item: the ids of the query, with special tokens, then the item's, without |
| vLLM `/score`, `/rerank`; SGLang `/v1/rerank` | not known: see below |

What vLLM makes of a pair depends on the class of the model (cross-encoder, bi-encoder, late interaction), on
overrides of its configuration (a separator or not), and on a score template given on the command line, none of which
it tells; the same for SGLang's rerank templates. Cross-encoders with attention to both sides, the usual rerankers, have
no prefix cache at all (vLLM: `is_prefix_caching_supported`). Approximate keys begin with the query: requests that share
it meet where a causal reranker has it cached.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from router.blocks import pack
from router.prompt.conversation import Inexact
from router.prompt.requests import ApiRequest, Endpoint

MOST_CHARS = 16 << 20
"""Of all prompts together, the query counted for each item; beyond, preparing them takes seconds."""
# What SGLang takes besides, which changes the prompts.
_CHANGING = ("query_embed_overrides", "item_embed_overrides", "image_data", "score_extraction_token_id")

Piece = tuple[str, bool] | bytes
"""A text and whether special tokens are added, or packed ids."""


def scored_prompts(request: ApiRequest, engine: str) -> Iterator[list[Piece]]:
    """Each prompt's pieces, in order. Raises Inexact."""
    body = request.body
    of_sglang = engine == "sglang" and request.endpoint is Endpoint.SCORE
    if not of_sglang and not (engine == "vllm" and request.endpoint is Endpoint.SCORE_ITEMS):
        raise Inexact("unsupported-endpoint")
    if of_sglang and any(body.get(name) is not None for name in _CHANGING):
        raise Inexact("unsupported-endpoint")
    query = _text_or_ids(body.get("query"))
    items = body.get("items")
    items = [items] if isinstance(items, str) else items
    if not isinstance(items, list) or not items:
        raise Inexact("malformed-request")
    if len(query) * len(items) > MOST_CHARS:
        raise Inexact("too-many-items")
    pieces = [_text_or_ids(item) for item in items]
    if of_sglang and any(type(piece) is not type(query) for piece in pieces):
        raise Inexact("malformed-request")  # the engine will say so
    return (_joined(query, piece, body, of_sglang) for piece in pieces)


def _joined(query: str | bytes, item: str | bytes, body: Mapping[str, Any], whole: bool) -> list[Piece]:
    first = bool(body.get("item_first"))
    if whole and isinstance(query, str) and isinstance(item, str):
        return [(item + query if first else query + item, True)]
    special = body.get("add_special_tokens")
    asked: Piece = (query, True if special is None else bool(special)) if isinstance(query, str) else query
    given: Piece = (item, False) if isinstance(item, str) else item
    return [given, asked] if first else [asked, given]


def _text_or_ids(value: object) -> str | bytes:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise Inexact("malformed-request")
    try:
        return pack(value)
    except (TypeError, OverflowError):
        raise Inexact("malformed-request") from None
