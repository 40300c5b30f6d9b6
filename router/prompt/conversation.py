"""What every engine's preparation of a chat request comes down to, and why it sometimes can't be reproduced."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from router.prompt.content_format import ContentFormat
from router.prompt.history import Message

BILLING_HEADER = "x-anthropic-billing-header"
_TEXT_TYPES = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
_MEDIA = ("image", "video", "audio", "file", "input_file")


class Inexact(Exception):
    """The router can't know the engine's ids for this request. `reason`: a short slug for receipts and metrics."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class Conversation:
    """The arguments of a template's render, after an engine's own pre-processing.

    `continuation`: text whose ids are appended to the rendered prompt's (SGLang's way to continue a message).
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: dict[str, Any] = field(default_factory=dict)
    continuation: str | None = None


def converted(
    messages: Iterable[Mapping[str, Any]],
    content_format: ContentFormat,
    kind: str,
    convert: Callable[[Mapping[str, Any], ContentFormat], dict[str, Any]],
) -> list[dict[str, Any]]:
    """`convert(message, content_format)` of each, once per message that requests share. They are not to be changed."""
    found: list[dict[str, Any]] = []
    for message in messages:
        if isinstance(message, Message):
            known = message.converted.get(kind)
            if known is None:
                known = message.converted[kind] = convert(message, content_format)
            found.append(known)
        else:
            found.append(convert(message, content_format))
    return found


def part_text(part: object) -> str | None:
    """A content part's text; None for one that engines skip. Raises Inexact for media and unknown kinds."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise Inexact("content-part")
    kind = part.get("type")
    if kind is None and isinstance(part.get("text"), str):
        kind = "text"
    name = _TEXT_TYPES.get(kind) if isinstance(kind, str) else None
    if name is None:
        media = isinstance(kind, str) and (kind.startswith(_MEDIA) or kind.endswith("_embeds"))
        raise Inexact("multimodal" if media else "content-part")
    text = part.get(name)
    if text is not None and not isinstance(text, str):
        raise Inexact("content-part")
    return text


def object_arguments(arguments: object) -> dict[str, Any] | None:
    """A past tool call's arguments as an object; None if they are not one."""
    if isinstance(arguments, dict):
        return arguments
    if not isinstance(arguments, str):
        return None
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def refuse_foreign_prompts(body: Mapping[str, Any]) -> None:
    """Requests that bring their own template, or embeddings instead of text."""
    if body.get("chat_template") is not None:
        raise Inexact("request-chat-template")
    settings = body.get("chat_template_kwargs")
    if settings is not None and (not isinstance(settings, dict) or "chat_template" in settings):
        raise Inexact("request-chat-template")
