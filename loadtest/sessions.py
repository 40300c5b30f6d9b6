"""Conversations from files, replayed teacher-forced.

Session format (one JSON object a line, `.jsonl` or `.jsonl.gz`):

| field | meaning |
|---|---|
| `session_id` | name of the session |
| `messages` | OpenAI chat messages, with `tool_calls` / `tool_call_id` |
| `tools` | OpenAI function schemas; absent: none |
| `steps` | indices j: LLM call k had `messages[:steps[k]]` as prompt and `messages[steps[k]]` as recorded answer |
| `step_t` | seconds from the session's first call to each call; absent: not recorded |

ShareGPT: a JSON array of `{"id", "conversations": [{"from": "human"|"gpt"|"system", "value"}]}`. vLLM's multi-turn
benchmark: a JSON array of `{"id", "messages": [{"role", "content"}]}`. In both every assistant message is one step.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest.files import Row, read_array, read_lines
from loadtest.prompts import CHARS_PER_TOKEN, ChatPrompt, Message
from loadtest.types import Session, Step, Workload, WorkloadError

DEFAULT_ANSWER_TOKENS = 64
"""Asked for where no answer was recorded."""

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}
ROLES = {"system", "developer", "user", "assistant", "tool", "function"}


def load_sessions(path: str | Path, *, max_tokens: int | None = None, recorded_times: bool = False) -> Workload:
    """Sessions of a file in the session format.

    max_tokens: output tokens per step; None asks for about as many as were recorded (characters / 4).
    recorded_times: keep `step_t` as earliest times of the steps.
    Raises WorkloadError naming file, line and field.
    """
    sessions = [_recorded_session(row, max_tokens, recorded_times) for row in read_lines(path)]
    return Workload("sessions", sessions, {"file": Path(path).name})


def load_sharegpt(path: str | Path, *, max_tokens: int | None = None) -> Workload:
    """ShareGPT conversations; those without an assistant turn after a human one are left out."""
    sessions: list[Session] = []
    for row in read_array(path):
        turns = row.get("conversations", list)
        messages = []
        for position, turn in enumerate(turns):
            part = Row(f"{row.where}, conversations[{position}]", turn)
            speaker = part.get("from", str)
            if speaker not in SHAREGPT_ROLES:
                raise part.error("from", f"must be one of {', '.join(sorted(SHAREGPT_ROLES))}, found {speaker!r}")
            messages.append({"role": SHAREGPT_ROLES[speaker], "content": part.get("value", str)})
        sessions.append(conversation(str(row.fields.get("id") or len(sessions)), messages, max_tokens))
    return _only_with_steps(Workload("sharegpt", sessions, {"file": Path(path).name}), path)


def load_multi_turn(path: str | Path, *, max_tokens: int | None = None) -> Workload:
    """Conversations in the format of vLLM's `benchmark_serving_multi_turn.py`."""
    sessions: list[Session] = []
    for row in read_array(path):
        messages = _messages(row)
        sessions.append(conversation(str(row.fields.get("id") or len(sessions)), messages, max_tokens))
    return _only_with_steps(Workload("vllm-multi-turn", sessions, {"file": Path(path).name}), path)


def conversation(name: str, messages: Sequence[Message], max_tokens: int | None = None) -> Session:
    """A session with one step per assistant message that has something before it."""
    indices = [i for i, message in enumerate(messages) if i and message["role"] == "assistant"]
    return Session(name, [_step(messages, None, index, max_tokens, 0.0) for index in indices])


def _recorded_session(row: Row, max_tokens: int | None, recorded_times: bool) -> Session:
    name = row.get("session_id", str)
    messages = _messages(row)
    tools = row.get("tools", list, None)
    indices = row.get("steps", list)
    times = row.get("step_t", list, None) if recorded_times else None
    if not indices:
        raise row.error("steps", "is empty; give the message index of at least one LLM call")
    if times is not None and len(times) != len(indices):
        raise row.error("step_t", f"has {len(times)} times for {len(indices)} steps; give one per step")
    steps = []
    for position, index in enumerate(indices):
        if not isinstance(index, int) or not 1 <= index <= len(messages):
            raise row.error("steps", f"must hold indices from 1 to {len(messages)} (the messages), found {index!r}")
        offset = times[position] if times else 0.0
        if not isinstance(offset, (int, float)) or offset < 0:
            raise row.error("step_t", f"must hold seconds of at least 0, found {offset!r}")
        steps.append(_step(messages, tools, index, max_tokens, float(offset)))
    return Session(name, steps)


def _messages(row: Row) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = row.get("messages", list)
    for position, message in enumerate(messages):
        role = Row(f"{row.where}, messages[{position}]", message).get("role", str)
        if role not in ROLES:
            raise row.error(f"messages[{position}].role", f"must be one of {', '.join(sorted(ROLES))}, found {role!r}")
    return messages


def _step(
    messages: Sequence[Message], tools: Sequence[Message] | None, index: int, max_tokens: int | None, offset_s: float
) -> Step:
    if max_tokens is None:
        max_tokens = _recorded_tokens(messages[index]) if index < len(messages) else DEFAULT_ANSWER_TOKENS
    return Step(ChatPrompt(messages, index, tools), max_tokens, offset_s=offset_s)


def _recorded_tokens(answer: Message) -> int:
    text = answer.get("content") or ""
    calls = answer.get("tool_calls")
    characters = len(text if isinstance(text, str) else json.dumps(text)) + (len(json.dumps(calls)) if calls else 0)
    return max(1, round(characters / CHARS_PER_TOKEN))


def _only_with_steps(workload: Workload, path: str | Path) -> Workload:
    sessions = [session for session in workload.sessions if session.steps]
    if not sessions:
        raise WorkloadError(f"{path}: no conversation has an assistant turn after another turn; nothing to send")
    return Workload(workload.name, sessions, workload.settings)
