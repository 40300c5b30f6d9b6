"""The name a client gives its session: headers first, then the body's fields.

A name says whose step a request is even after its history was edited. Only what names one conversation counts as a
name; what groups many (a user, an OpenAI `prompt_cache_key`) is a hint, used by the `session` policy alone.

    routing.session_header (x-session-id), routing.session_cookie      any client
    x-claude-code-session-id, with x-claude-code-agent-id              Claude Code: each sub-agent is a session
    session-id or session_id, with thread-id or conversation_id        Codex, OpenCode
    body session_id, session_params.id, vllm_xargs.session_id          vLLM, SGLang
    body vllm_xargs.agentic_context                                    vLLM's agent programs
    body user, metadata.user_id, prompt_cache_key                      hints
"""

from __future__ import annotations

from router.http.message import Request
from router.prompt.requests import ApiRequest

_AGENTS = (
    (b"x-claude-code-session-id", (b"x-claude-code-agent-id",)),
    (b"session-id", (b"thread-id",)),
    (b"session_id", (b"conversation_id",)),
    (b"thread-id", ()),
)
_NAMING = frozenset(header for header, _ in _AGENTS)
MAX_NAME = 256
"""Longer names are cut: they are kept in a table."""


class Naming:
    """`header` and `cookie`: what any client may name its session in."""

    def __init__(self, header: str = "x-session-id", cookie: str | None = None) -> None:
        self._header = header.lower().encode()
        self._named = cookie

    def name(self, request: Request, parsed: ApiRequest) -> str | None:
        """What names the session this request belongs to; None if nothing does."""
        told = request.header(self._header)
        if told:
            return told.decode("latin-1")[:MAX_NAME]
        if self._named is not None and (value := _cookie(request, self._named)):
            return value[:MAX_NAME]
        for header, parts in () if _NAMING.isdisjoint(request.names) else _AGENTS:
            told = request.header(header)
            if told:
                rest = (request.header(part) for part in parts)
                return b"/".join([told, *(part for part in rest if part)]).decode("latin-1")[:MAX_NAME]
        named = parsed.session.session_id or parsed.session.agentic_context
        return None if named is None else named[:MAX_NAME]

    def hint(self, parsed: ApiRequest) -> str | None:
        """What groups requests without naming a conversation."""
        return parsed.session.prompt_cache_key or parsed.session.user


def _cookie(request: Request, name: str) -> str | None:
    for part in (request.header(b"cookie") or b"").decode("latin-1").split(";"):
        key, _, value = part.strip(" ").partition("=")
        if key == name:
            return value.strip('"') or None
    return None
