"""Hugging Face chat templates with jinja2 alone: the same environment, the same variables, the same text.

Source of the behaviour: engine-protocol.md F.3 (transformers' `apply_chat_template`). A template is a file of the
model, but it runs in a sandbox that bounds its memory and its time (`sandbox`), so that a broken one costs one request,
not the router.

Example:
    >>> template = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\\n{% endfor %}")
    >>> template.render([{"role": "user", "content": "hi"}], add_generation_prompt=False)
    'user: hi\\n'
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.meta

from router.prompt.measured import Unsupported, measure
from router.prompt.resumable import make_resumable
from router.prompt.resumption import Resumption
from router.prompt.sandbox import OverBounds, Sandbox
from router.prompt.sandbox import TemplateError as TemplateError

log = logging.getLogger(__name__)

CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "

# Variables that every render passes, whether the template names them or not.
STANDARD_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]


# Bytes that a render may make, for each character that it may print: a dozen copies of a conversation.
_BYTES_A_CHAR = 16
_SOURCE_CHARS = 1 << 20


class ChatTemplate:
    """One compiled template. Not thread-safe while rendering (the allowance is the environment's)."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        *,
        name: str = "default",
        max_chars: int = 1 << 24,
        max_seconds: float = 2.0,
        max_snapshot_bytes: int = 32 << 20,
    ) -> None:
        """`special_tokens`: bos_token and so on, as variables. `max_snapshot_bytes`: see `resume`; 0: render always.

        Raises TemplateError naming the line that is wrong.
        """
        self.source = source
        self.name = name
        self._special_tokens = dict(special_tokens or {})
        self._max_chars = max_chars
        self._max_seconds = max_seconds
        self._warned = False
        environment = self._environment = Sandbox(_BYTES_A_CHAR * max_chars)
        try:
            if len(source) > _SOURCE_CHARS:
                raise Unsupported(f"more than {_SOURCE_CHARS} characters", 1)
            tree = environment.parse(source)
            resumable = environment.parse(source)
            if max_snapshot_bytes and make_resumable(resumable):
                environment.resume_with(Resumption(max_snapshot_bytes, environment.getitem, environment.flat))
            else:
                resumable = environment.parse(source)
            measure(resumable)
            self._template = environment.from_string(resumable)
            environment.install(self._template.root_render_func.__globals__)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"chat template {name!r}, line {error.lineno}: {error.message}") from error
        except Unsupported as error:
            raise TemplateError(f"chat template {name!r}, line {error.line}: {error}") from error
        except (RecursionError, MemoryError, SyntaxError) as error:
            raise TemplateError(f"chat template {name!r} is nested too deeply") from error
        self.variables: frozenset[str] = frozenset(jinja2.meta.find_undeclared_variables(tree))
        self.dated = "strftime_now" in self.variables
        self.tree = tree

    def render(
        self,
        messages: Messages,
        tools: Tools | None = None,
        *,
        documents: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt's text. Raises TemplateError when the template refuses the conversation or exceeds a bound.

        With `continue_final_message` the text ends where the last message's content ends (and no generation prompt may
        be asked for).
        """
        final = ""
        if continue_final_message:
            if add_generation_prompt:
                raise TemplateError("continue_final_message and add_generation_prompt exclude each other")
            messages, final = _tagged(messages)
        variables = {
            **self._special_tokens,
            **kwargs,
            "messages": messages,
            "tools": tools or None,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._bounded(variables)
        return _cut_at_tag(text, final) if continue_final_message else text

    def _bounded(self, variables: dict[str, Any]) -> str:
        environment = self._environment
        environment.begin(self._max_seconds)
        limit, size = self._max_chars, 0
        pieces: list[str] = []
        append = pieces.append
        resumption = environment.resumption
        if resumption is not None:
            resumption.begin(pieces, variables)
        try:
            for piece in self._template.root_render_func(self._template.new_context(variables)):
                append(piece)
                size += len(piece)
                if size > limit:
                    raise OverBounds(f"the chat template's output is over its size limit of {limit} characters")
        except OverBounds as error:
            if not self._warned:
                self._warned = True
                log.warning("chat template %r: %s; such prompts are matched by approximate keys", self.name, error)
            raise
        except TemplateError:
            raise
        except Exception as error:  # a template may fail in any way on the messages of a client
            raise TemplateError(f"chat template {self.name!r} raised {type(error).__name__}") from error
        finally:
            if resumption is not None:
                resumption.end()
        return "".join(pieces)


def _tagged(messages: Messages) -> tuple[Messages, str]:
    """The messages with the tag behind the last one's text, and that text."""
    if not messages:
        raise TemplateError("continue_final_message needs a message to continue")
    last = dict(messages[-1])
    content = last.get("content")
    if isinstance(content, str):
        final = content
        last["content"] = content + CONTINUE_TAG
    elif isinstance(content, Sequence):
        parts = [dict(part) if isinstance(part, Mapping) else part for part in content]
        for part in reversed(parts):
            if isinstance(part, dict) and "text" in part:
                final = str(part["text"])
                part["text"] = final + CONTINUE_TAG
                break
        else:
            raise TemplateError("continue_final_message: the last message has no text to continue")
        last["content"] = parts
    else:
        raise TemplateError("continue_final_message: the last message has no content to continue")
    return [*messages[:-1], last], final


def _cut_at_tag(text: str, final: str) -> str:
    at = text.rfind(CONTINUE_TAG.strip())
    if at < 0 or final.strip() not in text:
        raise TemplateError("continue_final_message: the template doesn't print the last message's content")
    kept = text[:at]
    return kept if text.startswith(CONTINUE_TAG, at) else kept.rstrip()
