"""OpenAI `/v1/responses` -> the chat request that engines make of it, where that is known for certain.

Instructions become a system message, a text input a user message, message items messages. Everything that engines
convert differently from version to version (tools, function calls, reasoning items, a stored previous response) is
left to approximate keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.prompt.conversation import Inexact
from router.prompt.history import Message


def chat_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The equivalent chat body. Raises Inexact."""
    for name in ("previous_response_id", "previous_input_messages", "conversation", "prompt"):
        if body.get(name) is not None:
            raise Inexact("stored-response")
    if body.get("tools"):
        raise Inexact("responses-tools")
    reasoning = body.get("reasoning")
    messages: list[Mapping[str, Any]] = []
    if body.get("instructions"):
        messages.append({"role": "system", "content": body["instructions"]})
    given = body.get("input")
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    elif isinstance(given, list):
        messages += [_shared_message(item) for item in given]
    else:
        raise Inexact("content-part")
    chat: dict[str, Any] = {"messages": messages}
    if isinstance(reasoning, dict) and reasoning.get("effort") is not None:
        chat["reasoning_effort"] = reasoning["effort"]
    return chat


def _shared_message(item: object) -> Mapping[str, Any]:
    if not isinstance(item, Message):
        return _message(item)
    known = item.parts.get("responses")
    if known is None:
        known = item.parts["responses"] = (Message(_message(item)),)
    return known[0]


def _message(item: object) -> dict[str, Any]:
    if not isinstance(item, dict) or item.get("type", "message") != "message" or not isinstance(item.get("role"), str):
        raise Inexact("responses-items")
    return {"role": item["role"], "content": item.get("content")}
