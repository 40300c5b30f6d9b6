"""vLLM's pre-processing of a chat request before its template is rendered (engine-protocol.md F.1).

| step | what happens |
|---|---|
| validation | `reasoning_content` becomes `reasoning` if that is missing; unknown message keys are lost |
| content | string format: parts joined by newlines; openai format: a string wrapped into a part; null is empty |
| system | a text starting with x-anthropic-billing-header loses its first line |
| tool calls | key order id, function {arguments, name}, type; arguments as an object; an empty list is removed |
| tools | dumped in the order of vLLM's own classes, with nulls for an absent description or parameters |
| developer | a template that doesn't know the role gets system messages, merged into one in front |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from router.prompt.content_format import ContentFormat
from router.prompt.conversation import (
    BILLING_HEADER,
    Conversation,
    Inexact,
    converted,
    object_arguments,
    part_text,
    refuse_foreign_prompts,
)
from router.prompt.history import SharedList
from router.prompt.template import ChatTemplate

_ROLE = itemgetter("role")


def conversation(
    body: Mapping[str, Any],
    template: ChatTemplate,
    content_format: ContentFormat,
    *,
    defaults: Mapping[str, Any] | None = None,
    exclude_tools_when_none: bool = False,
) -> Conversation:
    """The render's arguments for a chat request. Raises Inexact.

    `defaults`: the server's `--default-chat-template-kwargs`. `exclude_tools_when_none`: the server's
    `--exclude-tools-when-tool-choice-none`.
    """
    refuse_foreign_prompts(body)
    messages = converted(body["messages"], content_format, f"vllm-{content_format}", _message)
    if "developer" in map(_ROLE, messages) and not _knows_developer(template):
        messages = _merge_system(messages, content_format)
    offered = None if exclude_tools_when_none and body.get("tool_choice") == "none" else body.get("tools")
    variables = _variables(body, defaults or {})
    generation = variables.pop("add_generation_prompt")
    final = variables.pop("continue_final_message")
    kept = {name: value for name, value in variables.items() if name in template.variables or name == "documents"}
    return Conversation(messages, tools(offered), bool(generation), bool(final), kept)


def tools(offered: object) -> list[dict[str, Any]] | None:
    """The tools as the template sees them. Raises Inexact for tools that are not functions."""
    if not offered:
        return None
    if not isinstance(offered, list):
        raise Inexact("tools")
    if not isinstance(offered, SharedList):
        return [_tool(tool) for tool in offered]
    known = offered.converted.get("vllm")
    if known is None:
        known = offered.converted["vllm"] = SharedList(_tool(tool) for tool in offered)
    return known


def _tool(tool: object) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or not isinstance(function, dict) or tool.get("type", "function") != "function":
        raise Inexact("tools")
    dumped: dict[str, Any] = {
        "name": function.get("name"),
        "description": function.get("description"),
        "parameters": function.get("parameters"),
    }
    dumped |= {key: function[key] for key in ("strict", "defer_loading") if function.get(key) is not None}
    whole: dict[str, Any] = {"type": "function", "function": dumped}
    if tool.get("defer_loading") is not None:
        whole["defer_loading"] = tool["defer_loading"]
    return whole


def _message(message: Mapping[str, Any], content_format: ContentFormat) -> dict[str, Any]:
    role = message["role"]
    result: dict[str, Any] = {"role": role, "content": _content(role, message.get("content"), content_format)}
    if role == "assistant":
        calls = message.get("tool_calls")
        if calls:
            result["tool_calls"] = _tool_calls(calls)
        reasoning = message.get("reasoning")
        if reasoning is None:
            reasoning = message.get("reasoning_content")
        if reasoning is not None:
            result["reasoning"] = result["reasoning_content"] = reasoning
    elif role == "tool":
        if "tool_call_id" in message:
            result["tool_call_id"] = message["tool_call_id"]
    elif role == "developer" and message.get("tools") is not None:
        result["tools"] = message["tools"]
    if isinstance(message.get("name"), str):
        result["name"] = message["name"]
    return result


def _content(role: str, content: object, content_format: ContentFormat) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        texts = [content]
    elif content is None:
        texts = []
    elif isinstance(content, list):
        texts = [text for part in content if (text := part_text(part)) is not None]
    else:
        raise Inexact("content-part")
    if role == "system":
        texts = [_without_billing_line(text) for text in texts]
    if content_format == "openai":
        return "\n".join(texts) if role == "tool" else [{"type": "text", "text": text} for text in texts]
    return "\n".join(text for text in texts if text)


def _without_billing_line(text: str) -> str:
    return text.partition("\n")[2] if text.startswith(BILLING_HEADER) else text


def _tool_calls(calls: object) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise Inexact("tool-calls")
    dumped: list[dict[str, Any]] = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise Inexact("tool-calls")
        arguments = object_arguments(function.get("arguments")) or {}
        ordered: dict[str, Any] = {"id": call["id"]} if "id" in call else {}
        ordered["function"] = {"arguments": arguments, "name": function.get("name")}
        ordered["type"] = call.get("type", "function")
        dumped.append(ordered)
    return dumped


def _knows_developer(template: ChatTemplate) -> bool:
    return '"developer"' in template.source or "'developer'" in template.source


def _merge_system(messages: Sequence[dict[str, Any]], content_format: ContentFormat) -> list[dict[str, Any]]:
    system: list[dict[str, Any]] = []
    rest: list[dict[str, Any]] = []
    for message in messages:
        (system if message["role"] in ("system", "developer") else rest).append(message)
    contents = [message["content"] for message in system]
    if content_format == "openai":
        texts = [part["text"] for content in contents for part in (content if isinstance(content, list) else [])]
        merged: Any = [{"type": "text", "text": "\n\n".join(texts)}]
    else:
        merged = "\n\n".join(contents)
    return [{"role": "system", "content": merged}, *rest]


def _variables(body: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Server defaults < chat_template_kwargs < the request's own fields; null and "auto" never override."""
    requested = body.get("chat_template_kwargs") or {}
    generation = body.get("add_generation_prompt")
    fields = {
        "add_generation_prompt": True if generation is None else generation,
        "continue_final_message": body.get("continue_final_message") or False,
        "documents": body.get("documents"),
        "reasoning_effort": body.get("reasoning_effort"),
    }
    effort = fields["reasoning_effort"]
    if effort is not None and "enable_thinking" not in requested:
        fields["enable_thinking"] = effort != "none"
    merged = {**defaults, **requested}
    merged |= {name: value for name, value in fields.items() if value is not None and value != "auto"}
    return merged
