"""Sends the router's ids along with a chat request, so that the engine neither renders nor tokenizes it again.

vLLM >= 0.28 takes them in `kv_transfer_params.prompt_token_ids`, SGLang >= 0.5.14 in `input_ids` (engine-protocol.md,
surprise 9). The body's bytes change by one added field; everything else in it stays as the client wrote it. Both go on
to read messages, tools and tool_choice for parsing the answer and constraining it (read in vLLM 0.33
renderers/online_renderer.py and SGLang 0.5.23 openai/serving_chat.py).
"""

from __future__ import annotations

import re

import msgspec

from router.blocks import unpack

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class NotForwardable(Exception):
    """The engine would ignore the ids, or they could change the answer. The message says why."""


_SINCE = {"vllm": (0, 28), "sglang": (0, 5, 14)}
_NUMBER = re.compile(r"\d+")


def supports(kind: str, version: str) -> bool:
    """Whether an engine of this kind and version ("0.32.0", "0.5.14.post1") takes ids; not if it doesn't say which."""
    since = _SINCE.get(kind)
    found = tuple(int(number) for number in _NUMBER.findall(version)[:3])
    return since is not None and len(found) >= 2 and found >= since


def with_token_ids(body: bytes, ids: bytes, kind: str) -> bytes:
    """The chat request's body with its exact ids (packed) for an engine of this kind. Raises NotForwardable.

    For bodies of `/v1/chat/completions` only, and only ids of a prompt that is exact (`Prompt.exact`).
    """
    if kind not in ("vllm", "sglang"):
        raise NotForwardable(f"{kind} takes no ids with a chat request")
    if not ids:
        raise NotForwardable("there are no ids")
    try:
        fields = _fields(body)
        messages = msgspec.json.decode(fields["messages"])
        rest = {name: msgspec.json.decode(raw) for name, raw in fields.items() if name in _LOOKED_AT}
    except (msgspec.DecodeError, KeyError, UnicodeDecodeError, RecursionError):
        raise NotForwardable("the body is no chat request") from None
    if rest.get("echo"):
        raise NotForwardable("echo gives the prompt's text back, which the engine then doesn't have")
    if rest.get("return_prompt_text"):
        raise NotForwardable("the prompt's text is wanted back, which the engine then doesn't have")
    if rest.get("kv_transfer_params") is not None or rest.get("input_ids") is not None:
        raise NotForwardable("the client sends ids or transfer parameters of its own")
    if rest.get("continue_final_message") or rest.get("truncate_prompt_tokens") is not None:
        raise NotForwardable("the engine changes the prompt's end or length itself")
    if not isinstance(messages, list) or not all(_is_text(message) for message in messages):
        raise NotForwardable("a message has content that is not text")
    listed = msgspec.Raw(_encode(unpack(ids)))
    if kind == "sglang":
        return _encode({**fields, "input_ids": listed})
    return _encode({**fields, "kv_transfer_params": {"prompt_token_ids": listed}})


_LOOKED_AT = frozenset(
    {
        *("echo", "return_prompt_text", "kv_transfer_params", "input_ids", "continue_final_message"),
        "truncate_prompt_tokens",
    }
)


def _is_text(message: object) -> bool:
    content = message.get("content") if isinstance(message, dict) else 0
    if isinstance(content, list):
        return all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    return content is None or isinstance(content, str)
