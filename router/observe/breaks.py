"""Where a step of a session stops extending an earlier one, and what kind of change did it. Pure functions.

What is a break and what is not, for a request compared with one before it (`a` assistant, `t` tool result or user):

| the request | relation | a break? |
|---|---|---|
| `s u a t`, then `s u a t a t` | extends | no |
| the same again (a retry) | repeats | no |
| `s u a t`, then `s u` | rewinds: all of it was computed before | no |
| `s u a t`, then `s u A T` or `s u a T` | forks: a new answer or a parallel branch; all in common is kept | no |
| `s u a t`, then `S u a t a t` | broken: system text changed; timestamp or counter, billing header, or other | yes |
| `s u a t`, then `s u A t a t`, or a message put in between | broken: edited history | yes |
| `s u a t a t`, then `s a t a t` or `s U a t a t`, U a summary of what is gone | broken: truncated history | yes |
| tools re-ordered (array, or keys within), or changed | broken | yes |
| arguments of the chat template changed, all else as before | broken | yes |
| nothing but perhaps the system text in common | unrelated: a new session under the same key | no |

An answer changed where the history goes on as it was is an edit; one that ends the request is a fork.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import msgspec

from router.observe.digest import (
    SYSTEM_ROLES,
    Digest,
    MessagePrint,
    canonical,
    fields_of,
    messages_of,
    system_of,
    tool_text,
    tools_of,
)
from router.observe.fingerprint import Place, TextPrint, alike, locate, masked, resumes, shape
from router.observe.looks import looks_like
from router.prompt.conversation import BILLING_HEADER
from router.prompt.requests import ApiRequest

EXCERPT_BEFORE, EXCERPT_AFTER = 20, 28


class BreakClass(StrEnum):
    """What kind of change broke the prefix."""

    VOLATILE_SYSTEM = "timestamp_or_counter"
    """A time, a counter or an id in the system prompt."""
    BILLING = "billing_header"
    """Claude Code's attribution line (x-anthropic-billing-header, cch=...), which changes with every request."""
    SYSTEM = "changed_system"
    """The system prompt changed in another way."""
    REORDERED = "reordered_tool_json"
    """The same tools, or the same arguments of a call, in another order."""
    TOOLS = "changed_tools"
    ARGUMENTS = "changed_template_arguments"
    EDITED = "edited_history"
    TRUNCATED = "truncated_history"
    TEMPLATE = "template_rewrite"
    """The client only appended: the chat template writes earlier messages differently now."""
    NEW = "new_session"
    """Another conversation under the same key; nothing was lost."""


_UNPRINTABLE = re.compile("[^!-:<-~]")


def shown(name: str) -> str:
    """What a client called a role, a tool or an argument, in header lines and logs: its first 100 characters, with `?`
    for those that could end a line."""
    return _UNPRINTABLE.sub("?", name[:100].replace(" ", "."))


class Relation(StrEnum):
    """What a request is to one before it."""

    FIRST = "first"
    EXTENDS = "extends"
    REPEATS = "repeats"
    REWINDS = "rewinds"
    FORKS = "forks"
    BROKEN = "broken"
    UNRELATED = "unrelated"


@dataclass(frozen=True, slots=True)
class Break:
    """Where and how.

    `message`: index in the request's messages, None for what is outside them. `field`: as in `content[2].text`,
    `tools[3] read_file.description`, `chat_template_kwargs.enable_thinking`. `offset`: in characters (token ids:
    tokens) of the field's text, of a tool's its JSON; the difference may be up to `within` further on. `before`,
    `after`: what was and what is there, masked unless texts may be shown. `hint`: what the changed place looks like.
    `tokens_lost`: prompt tokens of the earlier request that can't be reused; set by who knows the token chain.
    """

    kind: BreakClass
    message: int | None
    role: str
    field: str
    offset: int | None = None
    within: int = 0
    before: str = ""
    after: str = ""
    hint: str = ""
    tokens_lost: int = 0

    def header(self) -> str:
        """The response header's value: everything but the excerpts."""
        parts: list[str] = [self.kind]
        for name, value in (("message", self.message), ("role", self.role), ("field", self.field)):
            if value not in (None, ""):
                parts.append(f"{name}={shown(str(value))}")
        if self.offset is not None:
            parts.append(f"offset={self.offset}")
        parts.append(f"lost={self.tokens_lost}")
        return "; ".join(parts)

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


class Comparison(msgspec.Struct, frozen=True, gc=False):
    """`shared`: leading messages in common; the more, the closer two requests are."""

    relation: Relation
    shared: int
    broken: Break | None = None


def compare(previous: Digest, current: Digest, request: ApiRequest) -> Comparison:
    """What `request`, whose digest is `current`, is to the one that `previous` was taken of."""
    old, new = previous.messages, current.messages
    shared = _common(old, new)
    if old and new and old[0].role == new[0].role == "prompt":
        return _compare_prompts(old[0], new[0], request)
    change = _Change(previous, current, request)
    outside = change.tools() or change.system()
    own = shared - sum(message.role in SYSTEM_ROLES for message in new[:shared])
    if shared == len(old) or shared == len(new):
        if outside is None and own == 0 and not _same_start(previous, current):
            return Comparison(Relation.UNRELATED, shared)
        found = outside or change.arguments()
        if found is not None:
            return Comparison(Relation.BROKEN, shared, found) if own else Comparison(Relation.UNRELATED, shared)
        longer = Relation.EXTENDS if len(new) > len(old) else Relation.REWINDS
        return Comparison(Relation.REPEATS if len(new) == len(old) else longer, shared)
    return _diverged(previous, current, change, outside, shared, own)


def _diverged(
    previous: Digest, current: Digest, change: _Change, outside: Break | None, shared: int, own: int
) -> Comparison:
    old, new = previous.messages, current.messages
    ends_anew = len(new) <= len(old) and not any(_is_answer(message) for message in old[shared + 1 :])
    if own and ends_anew and outside is None and _is_answer(new[shared]):
        return Comparison(Relation.FORKS, shared)
    met = _resumption(old, new, shared)
    if met is not None:
        return Comparison(Relation.BROKEN, shared, outside or change.message(shared, met))
    answered = any(_is_answer(message) for message in new[shared + 1 :])
    if own:
        if outside is not None:
            return Comparison(Relation.BROKEN, shared, outside)
        if _is_answer(new[shared]) or not answered:
            return Comparison(Relation.FORKS, shared)
        return Comparison(Relation.BROKEN, shared, change.message(shared, 0))
    if answered and _same_start(previous, current) and change.looks_edited(shared):
        return Comparison(Relation.BROKEN, shared, outside or change.message(shared, 0))
    return Comparison(Relation.UNRELATED, shared)


def _common(old: Sequence[MessagePrint], new: Sequence[MessagePrint]) -> int:
    for place, (one, other) in enumerate(zip(old, new, strict=False)):
        if one is not other and one.hash != other.hash:
            return place
    return min(len(old), len(new))


def _is_answer(message: MessagePrint) -> bool:
    return message.role in ("assistant", "function_call", "reasoning")


def _same_start(previous: Digest, current: Digest) -> bool:
    """Whether the system texts are the same, so that a difference lies in the conversation."""

    def start(digest: Digest) -> list[int]:
        outside = [digest.system.hash] if digest.system is not None else []
        return outside + [message.hash for message in digest.messages[:1] if message.role in SYSTEM_ROLES]

    return start(previous) == start(current)


def _resumption(old: Sequence[MessagePrint], new: Sequence[MessagePrint], shared: int) -> int | None:
    """How many messages are missing in `new` before it goes on as `old` did (negative: more); None if it doesn't."""
    if shared < len(old) <= len(new) and old[-1].hash == new[len(old) - 1].hash:
        return 0
    places: dict[int, list[int]] = {}
    for place in range(shared, len(new)):
        places.setdefault(new[place].hash, []).append(place)
    for place in range(len(old) - 1, max(shared, len(old) - 64) - 1, -1):
        found = places.get(old[place].hash)
        if found is not None:
            return place - min(found, key=lambda at: abs(at - place))
    return None


class _Change:
    """Finds the first difference in one part of a request, and puts it into words."""

    def __init__(self, previous: Digest, current: Digest, request: ApiRequest) -> None:
        self._previous = previous
        self._current = current
        self._request = request

    def tools(self) -> Break | None:
        """The first tool that differs."""
        old, new = self._previous.tools, self._current.tools
        texts = tools_of(self._request)
        place = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a.text.hash != b.text.hash), None)
        if place is None:
            if len(old) == len(new):
                return None
            place = min(len(old), len(new))
            known = (old if len(old) > len(new) else new)[place].name
            hint = "removed" if len(old) > len(new) else "added"
            return Break(BreakClass.TOOLS, None, "tools", f"tools[{place}] {known}", 0, hint=hint)
        reordered = sorted(t.canonical for t in old) == sorted(t.canonical for t in new)
        kind = BreakClass.REORDERED if reordered else BreakClass.TOOLS
        was, now = old[place], new[place]
        if was.name != now.name:
            names = {tool.name for tool in old}, {tool.name for tool in new}
            hint = "moved" if reordered or now.name in names[0] else "added" if was.name in names[1] else "replaced"
            if hint == "moved" and was.name not in names[1]:
                hint = f"{was.name} removed"
            return Break(kind, None, "tools", f"tools[{place}] {now.name}", 0, hint=hint)
        text = tool_text(texts[place])
        at = locate(was.text, text)
        keys = re.findall(r'"(\w+)":', text[: at.offset + 1])
        name = f"tools[{place}] {now.name}" + (f".{keys[-1]}" if keys else "")
        return _described(Break(kind, None, "tools", name), was.text, text, at)

    def system(self) -> Break | None:
        """A change of system text outside the messages."""
        was, now = self._previous.system, self._current.system
        if was is None and now is None:
            return None
        if was is not None and now is not None and was.hash == now.hash:
            return None
        empty = MessagePrint("system", 0, ())
        found = _in_message(was or empty, now or empty, system_of(self._request) or {}, None)
        return replace(found, field=f"system.{found.field}" if found.field != "content" else "system")

    def arguments(self) -> Break | None:
        """The first template argument that differs."""
        old, new = self._previous.arguments, self._current.arguments
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                hint = "added" if name not in old else "removed" if name not in new else "changed"
                return Break(BreakClass.ARGUMENTS, None, "arguments", name, hint=hint)
        return None

    def message(self, place: int, missing: int) -> Break:
        """The difference at messages[place], after which `missing` messages are left out."""
        was, now = self._previous.messages[place], self._current.messages[place]
        if missing > 0:
            hint = f"{missing} message{'s' if missing > 1 else ''} left out"
            return Break(BreakClass.TRUNCATED, place, now.role, "messages", hint=hint)
        if missing < 0 and was.hash in {message.hash for message in self._current.messages[place:]}:
            return Break(BreakClass.EDITED, place, now.role, "messages", hint=f"{-missing} put in")
        return _in_message(was, now, messages_of(self._request)[place], place)

    def looks_edited(self, place: int) -> bool:
        """Whether the two messages at `place` look like versions of one."""
        was, now = self._previous.messages[place], self._current.messages[place]
        known = dict(was.fields)
        texts = fields_of(messages_of(self._request)[place])
        return was.role == now.role and any(name in known and alike(known[name], text) for name, text in texts)


def _in_message(was: MessagePrint, now: MessagePrint, message: Mapping[str, Any], place: int | None) -> Break:
    """The first field that differs between two versions of a message."""
    system = now.role in SYSTEM_ROLES
    kind = BreakClass.SYSTEM if system else BreakClass.EDITED
    if was.role != now.role:
        return Break(kind, place, now.role, "role", 0, before=was.role, after=now.role)
    known, present, objects = dict(was.fields), dict(now.fields), dict(was.json)
    for name, text in fields_of(message):
        before = known.pop(name, None)
        if before is None:
            added = Break(kind, place, now.role, name, 0, after=masked(shape(text[:EXCERPT_AFTER])), hint="added")
            return replace(added, kind=BreakClass.BILLING) if system and text.startswith(BILLING_HEADER) else added
        if before.hash == present[name].hash:
            continue
        at = locate(before, text)
        found = Break(kind, place, now.role, name)
        if objects.get(name) is not None and objects[name] == canonical(text):
            return _described(replace(found, kind=BreakClass.REORDERED), before, text, at)
        found = _described(found, before, text, at)
        if system:
            line = text[text.rfind("\n", 0, at.offset) + 1 :].partition("\n")[0]
            if line.startswith(BILLING_HEADER) or "cch=" in line:
                return replace(found, kind=BreakClass.BILLING)
            if found.hint:
                return replace(found, kind=BreakClass.VOLATILE_SYSTEM)
        return found
    gone = next(iter(known), "content")
    return Break(kind, place, now.role, gone, 0, hint="removed")


def _described(found: Break, before: TextPrint, text: str, at: Place) -> Break:
    """With the place and what is there on both sides."""
    start, end = max(0, at.offset - EXCERPT_BEFORE), at.offset + EXCERPT_AFTER
    was = masked(before.shape[start:end]) if before.kept is None else before.kept[start:end]
    now = masked(shape(text[start:end])) if before.kept is None else text[start:end]
    return replace(found, offset=at.offset, within=at.within, before=was, after=now, hint=looks_like(text, at))


def _compare_prompts(was: MessagePrint, now: MessagePrint, request: ApiRequest) -> Comparison:
    """Prompts that are one text, or one list of token ids (four characters each here)."""
    if was.hash == now.hash:
        return Comparison(Relation.REPEATS, 1)
    name, text = next(iter(fields_of(messages_of(request)[0])), ("", ""))
    before = dict(was.fields).get(name)
    if before is None:
        return Comparison(Relation.UNRELATED, 0)
    at = locate(before, text)
    if not at.within and at.offset in (before.chars, len(text)):
        return Comparison(Relation.EXTENDS if at.offset == before.chars else Relation.REWINDS, 1)
    if not resumes(before, text, at):
        related = at.offset >= min(256, before.chars // 2)
        return Comparison(Relation.FORKS if related else Relation.UNRELATED, int(related))
    found = Break(BreakClass.EDITED, 0, "prompt", name)
    if name == "ids":
        found = replace(found, offset=at.offset // 4, within=-(-at.within // 4))
    else:
        found = _described(found, before, text, at)
    return Comparison(Relation.BROKEN, 1, found)
