"""Real agent sessions, the requests of their steps in two API families, and what a careless client may do to them."""

from __future__ import annotations

import copy
import gzip
import json
import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SESSIONS = Path(__file__).parents[2] / "loadtest" / "data" / "agent_sessions.jsonl.gz"
Body = dict[str, Any]


def sessions(path: Path = SESSIONS) -> list[dict[str, Any]]:
    """Sessions of at least two steps."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [session for line in lines if len((session := json.loads(line))["steps"]) > 1]


def body(session: dict[str, Any], step: int) -> Body:
    """The chat request of a step."""
    found: Body = {"model": "m", "messages": copy.deepcopy(session["messages"][: session["steps"][step]])}
    if session.get("tools"):
        found["tools"] = copy.deepcopy(session["tools"])
    return found


def anthropic(chat: Body) -> Body:
    """The same request as Anthropic's clients write it."""
    system, messages = [], []
    for message in chat["messages"]:
        role, content = message["role"], message.get("content") or ""
        if role == "system":
            system.append({"type": "text", "text": content})
        elif role == "tool":
            block = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": content}
            messages.append({"role": "user", "content": [block]})
        else:
            blocks: list[dict[str, Any]] = [{"type": "text", "text": content}] if content else []
            for call in message.get("tool_calls") or ():
                function = call["function"]
                try:
                    arguments = json.loads(function["arguments"])
                except ValueError:
                    arguments = {"text": function["arguments"]}
                blocks.append({"type": "tool_use", "id": call["id"], "name": function["name"], "input": arguments})
            messages.append({"role": role, "content": blocks})
    tools = [
        {"name": t["function"]["name"], "description": t["function"].get("description"),
         "input_schema": t["function"].get("parameters")}
        for t in chat.get("tools", ())
    ]  # fmt: skip
    return {"model": "m", "system": system, "messages": messages, "tools": tools}


@dataclass(frozen=True)
class Mutation:
    """What was done, and what is to be said about it."""

    kind: str
    message: int | None
    field: str
    offset: int | None = None


Mutate = Callable[[random.Random, Body, Body], Mutation | None]
"""Changes the previous request, the current one, or both (a clock in the system prompt); None if it can't be done."""


def _stamped(clock: Callable[[random.Random], tuple[str, str]], kind: str) -> Mutate:
    def mutate(rng: random.Random, before: Body, after: Body) -> Mutation | None:
        system = next((m for m in before["messages"] if m["role"] == "system"), None)
        if system is None:
            return None
        text = system["content"]
        at = rng.randrange(len(text) + 1)
        one, other = clock(rng)
        for each, value in ((before, one), (after, other)):
            each["messages"][0]["content"] = f"{text[:at]}\n{value}\n{text[at:]}"
        same = next(i for i, (a, b) in enumerate(zip(one + "\n", other + "\n", strict=False)) if a != b)
        return Mutation(kind, 0, "content", at + 1 + same)

    return mutate


def _times(rng: random.Random) -> tuple[str, str]:
    day, second = rng.randrange(1, 28), rng.randrange(10, 50)
    shapes = (
        "Current time: 2026-03-{day:02d}T10:15:{second:02d}Z",
        "Today is {day} March 2026.",
        "The date is 2026-03-{day:02d}, {second} seconds past noon",
        "now={epoch}",
        "It is 10:{second:02d} AM.",
    )
    shape = rng.choice(shapes)
    one = shape.format(day=day, second=second, epoch=1_770_000_000 + second)
    other = shape.format(day=day + 1, second=second + 7, epoch=1_770_000_000 + second + 7)
    return one, other


def _counters(rng: random.Random) -> tuple[str, str]:
    number = rng.randrange(1, 2000)
    shape = rng.choice(("Step {} of the task.", "turn #{}", "<remaining_tokens>{}</remaining_tokens>"))
    return shape.format(number), shape.format(number + rng.choice((1, 1, 3)))


def _billing(rng: random.Random, before: Body, after: Body) -> Mutation | None:
    if before["messages"][0]["role"] != "system":
        return None
    text = before["messages"][0]["content"]
    head = "x-anthropic-billing-header: cc_version=2.1.37.0d9; cc_entrypoint=cli; cch="
    for each, digits in ((before, "0f3a9"), (after, "71bc2")):
        each["messages"][0]["content"] = f"{head}{digits};\n{text}"
    return Mutation("billing_header", 0, "content", len(head))


def _texts(message: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    if isinstance(message.get("content"), str) and message["content"]:
        yield "content", message, "content"
    for place, call in enumerate(message.get("tool_calls") or ()):
        yield f"tool_calls[{place}].arguments", call["function"], "arguments"
        yield f"tool_calls[{place}].name", call["function"], "name"


def _edit(rng: random.Random, before: Body, after: Body) -> Mutation | None:
    places = [i for i, m in enumerate(before["messages"]) if m["role"] != "system" and list(_texts(m))]
    at = rng.choice(places)
    field, holder, key = rng.choice(list(_texts(after["messages"][at])))
    text = holder[key]
    place = rng.randrange(len(text))
    piece = "".join(rng.choice(string.ascii_letters + string.digits + " .") for _ in range(rng.randrange(1, 12)))
    how = rng.choice(("replace", "insert", "delete"))
    if how == "replace":
        changed = text[:place] + piece + text[place + len(piece) :]
    elif how == "insert":
        changed = text[:place] + piece + text[place:]
    else:
        changed = text[:place] + text[place + len(piece) :]
    if changed == text:
        return None
    holder[key] = changed
    first = next(
        (i for i, (a, b) in enumerate(zip(text, changed, strict=False)) if a != b), min(len(text), len(changed))
    )
    return Mutation("edited_history", at, field, first)


def _truncate(rng: random.Random, before: Body, after: Body) -> Mutation | None:
    first = sum(m["role"] == "system" for m in before["messages"])
    room = len(before["messages"]) - first
    if room < 3:
        return None
    start = first + rng.randrange(room - 1)
    count = rng.randrange(1, min(8, len(before["messages"]) - start))
    if after["messages"][start] == after["messages"][start + count]:
        return None
    del after["messages"][start : start + count]
    if rng.random() < 0.4 and count > 1:
        after["messages"].insert(start, {"role": "user", "content": f"Summary of {count} earlier messages."})
    return Mutation("truncated_history", start, "messages")


def _reorder_tools(rng: random.Random, before: Body, after: Body) -> Mutation | None:
    tools = after.get("tools", [])
    if len(tools) < 2:
        return None
    one, other = sorted(rng.sample(range(len(tools)), 2))
    tools[one], tools[other] = tools[other], tools[one]
    return Mutation("reordered_tool_json", None, f"tools[{one}] ")


def _reorder_keys(rng: random.Random, before: Body, after: Body) -> Mutation | None:
    if not after.get("tools"):
        return None
    at = rng.randrange(len(after["tools"]))
    function = after["tools"][at]["function"]
    after["tools"][at]["function"] = dict(reversed(function.items()))
    return Mutation("reordered_tool_json", None, f"tools[{at}] {function['name']}")


def _reorder_arguments(rng: random.Random, before: Body, after: Body) -> Mutation | None:
    found = []
    for place, message in enumerate(before["messages"]):
        for number, call in enumerate(message.get("tool_calls") or ()):
            try:
                arguments = json.loads(call["function"]["arguments"])
            except ValueError:
                continue
            if len(arguments) > 1:
                found.append((place, number, arguments))
    if not found:
        return None
    place, number, arguments = rng.choice(found)
    text = json.dumps(dict(reversed(arguments.items())))
    after["messages"][place]["tool_calls"][number]["function"]["arguments"] = text
    return Mutation("reordered_tool_json", place, f"tool_calls[{number}].arguments")


def _change_tools(rng: random.Random, before: Body, after: Body) -> Mutation | None:
    if not after.get("tools"):
        return None
    at = rng.randrange(len(after["tools"]))
    name = after["tools"][at]["function"]["name"]
    how = rng.choice(("describe", "drop", "add"))
    if how == "describe":
        function = after["tools"][at]["function"]
        function["description"] = (function.get("description") or "") + " Use it with care."
        return Mutation("changed_tools", None, f"tools[{at}] {name}.description")
    if how == "drop":
        del after["tools"][at]
        return Mutation("changed_tools", None, f"tools[{at}] ")
    after["tools"].insert(at, {"type": "function", "function": {"name": "new_tool", "parameters": {}}})
    return Mutation("changed_tools", None, f"tools[{at}] new_tool")


def _change_arguments(rng: random.Random, before: Body, after: Body) -> Mutation:
    if rng.random() < 0.5:
        before["chat_template_kwargs"] = {"enable_thinking": True}
        after["chat_template_kwargs"] = {"enable_thinking": False}
        return Mutation("changed_template_arguments", None, "chat_template_kwargs.enable_thinking")
    after["reasoning_effort"] = "high"
    return Mutation("changed_template_arguments", None, "reasoning_effort")


MUTATIONS: dict[str, Mutate] = {
    "timestamp": _stamped(_times, "timestamp_or_counter"),
    "counter": _stamped(_counters, "timestamp_or_counter"),
    "billing header": _billing,
    "edited history": _edit,
    "truncated history": _truncate,
    "re-ordered tools": _reorder_tools,
    "re-ordered keys": _reorder_keys,
    "re-ordered arguments": _reorder_arguments,
    "changed tools": _change_tools,
    "template arguments": _change_arguments,
}
