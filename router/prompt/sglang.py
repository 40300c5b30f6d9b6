"""SGLang's pre-processing of a chat request before its template is rendered (engine-protocol.md F.2).

| step | what happens |
|---|---|
| content | text parts joined by one space (string format); a string stays a string in either format; null is empty |
| messages | keys with null values are dropped |
| tool calls | key order id, index, type, function {name, arguments}; arguments as an object |
| tools | as the client ordered them; none with tool_choice "none"; one with a named choice |
| last turn | an assistant's becomes the user's, or with continue_final_message its ids follow the generation prompt |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.prompt.content_format import ContentFormat
from router.prompt.conversation import (
    Conversation,
    Inexact,
    converted,
    object_arguments,
    part_text,
    refuse_foreign_prompts,
)

_KEPT = ("name", "tool_call_id", "reasoning_content", "reasoning")


def conversation(body: Mapping[str, Any], content_format: ContentFormat) -> Conversation:
    """The render's arguments for a chat request. Raises Inexact."""
    refuse_foreign_prompts(body)
    if body.get("input_ids") is not None:
        raise Inexact("request-input-ids")
    messages = converted(body["messages"], content_format, f"sglang-{content_format}", _message)
    continuation = None
    if messages and messages[-1]["role"] == "assistant" and isinstance(messages[-1]["content"], str):
        last = messages.pop()
        if body.get("continue_final_message"):
            continuation = last["content"]
        else:
            messages.append({"role": "user", "content": last["content"]})
    variables: dict[str, Any] = {}
    if body.get("reasoning_effort") is not None:
        variables["reasoning_effort"] = body["reasoning_effort"]
    variables |= body.get("chat_template_kwargs") or {}
    for name in ("messages", "tools", "add_generation_prompt", "continue_final_message", "tokenize"):
        if name in variables:
            raise Inexact("template-arguments")  # the engine passes these itself and would refuse
    return Conversation(messages, _tools(body), variables=variables, continuation=continuation)


def _tools(body: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    choice, tools = body.get("tool_choice"), body.get("tools")
    if not tools or choice == "none":
        return None
    if not isinstance(tools, list) or any(not isinstance(tool, dict) for tool in tools):
        raise Inexact("tools")
    if isinstance(choice, dict):
        wanted = choice.get("function")
        name = wanted.get("name") if isinstance(wanted, dict) else None
        return [
            tool for tool in tools if isinstance(tool.get("function"), dict) and tool["function"].get("name") == name
        ]
    return tools


def _message(message: Mapping[str, Any], content_format: ContentFormat) -> dict[str, Any]:
    role, content = message["role"], message.get("content")
    result: dict[str, Any] = {"role": role, "content": "" if content is None else content}
    if isinstance(content, list):
        texts = [text for part in content if (text := part_text(part)) is not None]
        if content_format == "string" or role == "tool":
            result["content"] = " ".join(texts)
        else:
            result["content"] = [{"type": "text", "text": text} for text in texts]
    elif content is not None and not isinstance(content, str):
        raise Inexact("content-part")
    result |= {key: message[key] for key in _KEPT if message.get(key) is not None}
    calls = message.get("tool_calls")
    if role == "assistant" and calls is not None:
        if not isinstance(calls, list):
            raise Inexact("tool-calls")
        result["tool_calls"] = [_call(call) for call in calls]
    return result


def _call(call: object) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise Inexact("tool-calls")
    arguments = object_arguments(function.get("arguments"))
    if arguments is None:
        raise Inexact("tool-calls")  # the engine refuses the request
    return {
        "id": call.get("id"),
        "index": call.get("index"),
        "type": call.get("type", "function"),
        "function": {"name": function.get("name"), "arguments": arguments},
    }
