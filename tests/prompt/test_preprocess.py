"""What the engines do to messages before their template (engine-protocol.md F.1, F.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from router.prompt import anthropic, responses, sglang, vllm
from router.prompt.content_format import detect_content_format, detect_sglang_format
from router.prompt.conversation import Inexact
from router.prompt.template import ChatTemplate

PLAIN = ChatTemplate("{% for m in messages %}{{ m.role }}{% endfor %}{{ enable_thinking }}{{ reasoning_effort }}")
CALL = {"index": 0, "type": "function", "id": "c", "function": {"name": "f", "arguments": '{"b": 1, "a": 2}'}}


def vllm_messages(*messages: dict[str, Any], form: Any = "string") -> list[dict[str, Any]]:
    return vllm.conversation({"messages": list(messages)}, PLAIN, form).messages


def test_vllm_content_forms() -> None:
    parts = [{"type": "text", "text": "a"}, "b", {"type": "text", "text": "", "cache_control": {}}]
    message = {"role": "user", "content": parts, "unknown": 1}
    assert vllm_messages(message) == [{"role": "user", "content": "a\nb"}]
    texts = [{"type": "text", "text": text} for text in ("a", "b", "")]
    assert vllm_messages(message, form="openai") == [{"role": "user", "content": texts}]
    nothing = {"role": "assistant", "content": None}
    assert vllm_messages(nothing)[0]["content"] == ""
    assert vllm_messages(nothing, form="openai")[0]["content"] == []
    result = {"role": "tool", "content": parts[:2], "tool_call_id": "c"}
    assert vllm_messages(result, form="openai") == [{"role": "tool", "content": "a\nb", "tool_call_id": "c"}]


def test_vllm_drops_the_billing_line() -> None:
    text = "x-anthropic-billing-header: v=1; h=abc\nYou are"
    assert vllm_messages({"role": "system", "content": text})[0]["content"] == "You are"
    assert vllm_messages({"role": "user", "content": text})[0]["content"] == text


def test_vllm_tool_calls_and_reasoning() -> None:
    (message,) = vllm_messages({"role": "assistant", "reasoning_content": "r", "tool_calls": [CALL]})
    assert (message["reasoning"], message["reasoning_content"]) == ("r", "r")
    (call,) = message["tool_calls"]
    assert list(call) == ["id", "function", "type"]
    assert list(call["function"]) == ["arguments", "name"]
    assert list(call["function"]["arguments"].items()) == [("b", 1), ("a", 2)]
    assert "tool_calls" not in vllm_messages({"role": "assistant", "content": "x", "tool_calls": []})[0]
    broken = {**CALL, "function": {"name": "f", "arguments": "{"}}
    assert (
        vllm_messages({"role": "assistant", "tool_calls": [broken]})[0]["tool_calls"][0]["function"]["arguments"] == {}
    )


def test_vllm_tools_are_dumped_with_nulls() -> None:
    tools = vllm.tools([{"function": {"parameters": {"z": 1, "a": 2}, "name": "f", "x": 1}, "type": "function"}])
    assert tools is not None
    assert repr(tools[0]) == repr(
        {"type": "function", "function": {"name": "f", "description": None, "parameters": {"z": 1, "a": 2}}}
    )
    with pytest.raises(Inexact, match="tools"):
        vllm.tools([{"type": "custom", "custom": {}}])


def test_vllm_developer_role() -> None:
    messages = [
        {"role": "user", "content": "u"},
        {"role": "system", "content": "s"},
        {"role": "developer", "content": "d"},
    ]
    merged = [{"role": "system", "content": "s\n\nd"}, {"role": "user", "content": "u"}]
    assert vllm_messages(*messages) == merged
    knowing = ChatTemplate("{% if messages[0].role == 'developer' %}{% endif %}")
    assert vllm.conversation({"messages": messages}, knowing, "string").messages == messages


def test_vllm_variables() -> None:
    body = {
        "messages": [],
        "reasoning_effort": "none",
        "chat_template_kwargs": {"add_generation_prompt": False, "unused": 1, "reasoning_effort": "high"},
    }
    talk = vllm.conversation(body, PLAIN, "string", defaults={"enable_thinking": True})
    assert talk.add_generation_prompt is True
    assert talk.variables == {"enable_thinking": False, "reasoning_effort": "none"}
    body["chat_template_kwargs"] = {"enable_thinking": True}
    assert vllm.conversation(body, PLAIN, "string").variables["enable_thinking"] is True
    plain = vllm.conversation({"messages": []}, PLAIN, "string", defaults={"enable_thinking": False})
    assert plain.variables == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"chat_template": "x"}, "request-chat-template"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "request-chat-template"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]}, "multimodal"),
        ({"messages": [{"role": "user", "content": [{"type": "video_embeds"}]}]}, "multimodal"),
        ({"messages": [{"role": "user", "content": [{"type": "surprise"}]}]}, "content-part"),
        ({"messages": [{"role": "user", "content": 5}]}, "content-part"),
        ({"messages": [{"role": "assistant", "tool_calls": [5]}]}, "tool-calls"),
    ],
)
def test_what_neither_can_reproduce(fields: dict[str, Any], reason: str) -> None:
    body = {"messages": [], **fields}
    with pytest.raises(Inexact, match=reason):
        vllm.conversation(body, PLAIN, "string")
    with pytest.raises(Inexact, match=reason):
        sglang.conversation(body, "string")


def test_sglang_messages() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = {"messages": [{"role": "user", "content": parts, "name": None}, {"role": "user", "content": "s"}]}
    assert sglang.conversation(body, "string").messages[0] == {"role": "user", "content": "a b"}
    assert sglang.conversation(body, "openai").messages == [{"role": "user", "content": parts}, body["messages"][1]]
    calls = {
        "messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "r"}]
    }
    message = sglang.conversation(calls, "string").messages[0]
    assert list(message["tool_calls"][0]) == ["id", "index", "type", "function"]
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": {"b": 1, "a": 2}}


def test_sglang_final_assistant_turn() -> None:
    body = {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}
    assert sglang.conversation(body, "string").messages[-1] == {"role": "user", "content": "a"}
    talk = sglang.conversation({**body, "continue_final_message": True}, "string")
    assert (len(talk.messages), talk.continuation, talk.add_generation_prompt) == (1, "a", True)


def test_sglang_tool_choice() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
    body = {"messages": [], "tools": tools}
    assert sglang.conversation(body, "string").tools == tools
    assert sglang.conversation({**body, "tool_choice": "none"}, "string").tools is None
    named = {"type": "function", "function": {"name": "g"}}
    assert sglang.conversation({**body, "tool_choice": named}, "string").tools == tools[1:]


def test_anthropic_to_chat() -> None:
    body = {
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: 1"},
            {"type": "text", "text": "A"},
            {"type": "text", "text": "B"},
        ],
        "messages": [
            {"role": "user", "content": "u"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "t"},
                    {"type": "text", "text": "a"},
                    {"type": "tool_use", "id": "c", "name": "f", "input": {"k": 1}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "c", "content": "r"}, {"type": "text", "text": "v"}],
            },
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
    }
    chat = anthropic.chat_body(body)
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"k": 1}'}}
    assert chat["messages"] == [
        {"role": "system", "content": "AB"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "reasoning": "t", "tool_calls": [call], "content": "a"},
        {"role": "tool", "tool_call_id": "c", "content": "r"},
        {"role": "user", "content": "v"},
    ]
    assert vllm.tools(chat["tools"]) == [
        {"type": "function", "function": {"name": "f", "description": None, "parameters": {"type": "object"}}}
    ]
    with pytest.raises(Inexact, match="multimodal"):
        anthropic.chat_body({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]})


def test_responses_to_chat() -> None:
    body = {"instructions": "s", "input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]}
    assert [m["role"] for m in responses.chat_body(body)["messages"]] == ["system", "user"]
    for fields, reason in [
        ({"previous_response_id": "r"}, "stored"),
        ({"tools": [{}]}, "tools"),
        ({"input": 1}, "part"),
    ]:
        with pytest.raises(Inexact, match=reason):
            responses.chat_body({**body, **fields})


@pytest.mark.parametrize(
    ("source", "wanted", "sglang_wanted"),
    [
        ("{% for message in messages %}{{ message.content }}{% endfor %}", "string", "string"),
        ("{% for message in messages %}{% for c in message['content'] %}{% endfor %}{% endfor %}", "openai", "openai"),
        (
            "{% for m in messages %}{% set c = m.content %}{% for p in c | list %}{% endfor %}{% endfor %}",
            "openai",
            "string",
        ),
        (
            "{% macro r(x) %}{% for p in x %}{% endfor %}{% endmacro %}"
            "{% for m in messages %}{{ r(m.content) }}{% endfor %}",
            "openai",
            "string",
        ),
        (
            "{% set some = messages[1:] %}{% for y in some %}{% for p in y.content %}{% endfor %}{% endfor %}",
            "openai",
            "string",
        ),
        ("{% for tool in tools %}{% endfor %}an image", "string", "openai"),
    ],
)
def test_content_format(source: str, wanted: str, sglang_wanted: str) -> None:
    tree = ChatTemplate(source).tree
    assert detect_content_format(tree) == wanted
    assert detect_sglang_format(source, tree) == sglang_wanted


def test_content_format_of_the_shipped_templates() -> None:
    found = {}
    for path in (Path(__file__).parent / "templates").glob("*.jinja"):
        found[path.stem] = detect_content_format(ChatTemplate(path.read_text()).tree)
    assert found == {"chatml": "string", "llama3_like": "string", "mistral_like": "string", "parts": "openai"}
