"""Anthropic `/v1/messages` -> the chat request that vLLM makes of it (its Anthropic handler, read in source)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from router.prompt.conversation import BILLING_HEADER, Inexact
from router.prompt.history import Message, SharedList


def chat_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The equivalent chat body. Raises Inexact for media, tool references and ids the engine would make up.

    System blocks are joined without a separator, one that starts with the billing header is dropped. A user's tool
    results become tool messages in front of the rest of that user message. Thinking becomes `reasoning`.
    """
    messages: list[Mapping[str, Any]] = []
    system = _system(body)
    if system is not None:
        messages.append({"role": "system", "content": system})
    for message in body["messages"]:
        if message["role"] == "system":
            raise Inexact("inline-system")  # placed differently by vLLM's versions
        messages += _shared_messages(message)
    chat: dict[str, Any] = {"messages": messages}
    if body.get("tools"):
        chat["tools"] = _tools(body["tools"])
    if isinstance(body.get("chat_template_kwargs"), dict):
        chat["chat_template_kwargs"] = body["chat_template_kwargs"]
    output = body.get("output_config")
    if isinstance(output, dict) and output.get("effort") is not None:
        chat["reasoning_effort"] = output["effort"]
    return chat


def _shared_messages(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The message's conversion, once per message that requests share; what it becomes is shared too."""
    if not isinstance(message, Message):
        return _messages(message)
    known = message.parts.get("anthropic")
    if known is None:
        known = message.parts["anthropic"] = tuple(Message(part) for part in _messages(message))
    return known


def _tools(tools: Any) -> list[dict[str, Any]]:
    if not isinstance(tools, SharedList):
        return [_tool(tool) for tool in tools]
    known = tools.converted.get("anthropic")
    if known is None:
        known = tools.converted["anthropic"] = SharedList(_tool(tool) for tool in tools)
    return known


def _system(body: Mapping[str, Any]) -> str | None:
    system = body.get("system")
    if not system:
        return None
    if isinstance(system, str):
        return system
    if not isinstance(system, list):
        raise Inexact("content-part")
    texts = []
    for block in system:
        if not isinstance(block, dict):
            raise Inexact("content-part")
        text = block.get("text")
        if block.get("type") == "text" and isinstance(text, str) and text and not text.startswith(BILLING_HEADER):
            texts.append(text)
    return "".join(texts) if texts else None


def _messages(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    role = message["role"]
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        raise Inexact("content-part")
    results: list[dict[str, Any]] = []
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    reasoning: list[str] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            if block.get("text"):
                texts.append(block["text"])
        elif kind == "thinking":
            reasoning.append(block.get("thinking") or "")
        elif kind == "tool_use":
            calls.append(_call(block))
        elif kind == "tool_result" and role == "user":
            results.append(_result(block))
        elif kind != "redacted_thinking":
            raise Inexact("multimodal" if kind in ("image", "document") else "content-part")
    whole: dict[str, Any] = {"role": role}
    if reasoning:
        whole["reasoning"] = "".join(reasoning)
    if calls:
        whole["tool_calls"] = calls
    if texts:
        whole["content"] = texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]
    return [*results, whole] if role != "user" or texts else results


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    if not block.get("id"):
        raise Inexact("tool-calls")  # the engine makes one up from its clock
    arguments = json.dumps(block.get("input") or {})
    return {
        "id": block["id"],
        "type": "function",
        "function": {"name": block.get("name") or "", "arguments": arguments},
    }


def _result(block: Mapping[str, Any]) -> dict[str, Any]:
    content = block.get("content")
    if isinstance(content, list):
        if any(not isinstance(item, dict) or item.get("type") != "text" for item in content):
            raise Inexact("multimodal")
        content = "\n".join(str(item.get("text", "")) for item in content)
    if content is not None and not isinstance(content, str):
        raise Inexact("content-part")
    return {"role": "tool", "tool_call_id": block.get("tool_use_id") or "", "content": content or ""}


def _tool(tool: object) -> dict[str, Any]:
    if not isinstance(tool, dict) or "input_schema" not in tool:
        raise Inexact("tools")  # a server-side tool: no function of the client's
    function = {
        "name": tool.get("name"),
        "description": tool.get("description"),
        "parameters": tool["input_schema"],
        "defer_loading": tool.get("defer_loading"),
    }
    return {"type": "function", "function": function}
