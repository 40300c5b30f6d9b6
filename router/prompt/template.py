"""Hugging Face chat templates with jinja2 alone: the same environment, the same variables, the same text.

Source of the behaviour: engine-protocol.md F.3 (transformers' `apply_chat_template`). A template is a trusted file of
the model, but it runs sandboxed and with bounds on its output and its time, so that a broken one costs one request,
not the router.

Example:
    >>> template = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\\n{% endfor %}")
    >>> template.render([{"role": "user", "content": "hi"}], add_generation_prompt=False)
    'user: hi\\n'
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import BuiltinMethodType, MethodType
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from router.prompt.resumable import make_resumable
from router.prompt.resume import Loop, Resumption, Snapshots

CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "

# Variables that every render passes, whether the template names them or not.
STANDARD_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]


class TemplateError(Exception):
    """A chat template that doesn't compile, raises, or exceeds its bounds. The message never contains prompt text."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's tokens for training; here it is its body."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own attribute)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


# Attributes that the sandbox allows anyway, looked up here without its checks: they are most of a render's time.
_DICT_METHODS = frozenset(dir(dict))
_LOOP_FIELDS = frozenset(
    {"first", "last", "index", "index0", "revindex", "revindex0", "length", "previtem", "nextitem"}
)
_TEXT_METHODS = frozenset({"startswith", "endswith", "strip", "lstrip", "rstrip", "split", "rsplit", "lower", "upper"})


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox plus a deadline, looked at on calls, and a bound on `*` and `**`, which could eat the memory."""

    intercepted_binops = frozenset({"*", "**"})
    deadline = float("inf")
    max_chars = 1 << 24
    resumption: Resumption | None = None

    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = type(obj)
        if kind is dict:
            if attribute not in _DICT_METHODS:
                try:
                    return obj[attribute]
                except KeyError:
                    return self.undefined(obj=obj, name=attribute)
        elif kind is str:
            if attribute in _TEXT_METHODS:
                return getattr(obj, attribute)
        elif (kind is Loop and attribute in _LOOP_FIELDS) or (kind is Namespace and attribute[0] != "_"):
            try:
                return getattr(obj, attribute)
            except AttributeError:
                return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(obj, BuiltinMethodType) and type(obj.__self__) is str and obj.__name__ in _TEXT_METHODS:
            kwargs.pop("_loop_vars", None)  # jinja's own, for functions that want the context
            kwargs.pop("_block_vars", None)
            return obj(*args, **kwargs)
        if isinstance(obj, MethodType) and obj.__self__ is self.resumption:
            return obj(*args)
        if time.monotonic() > self.deadline:
            raise TemplateError("the chat template ran over its time limit")
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (abs(left) <= 1 << 16 and abs(right) <= 64):
            raise TemplateError("the chat template computes a power that is too large")
        for repeated, count in ((left, right), (right, left)):
            sized = isinstance(repeated, str | list | tuple) and isinstance(count, int)
            if sized and len(repeated) * count > self.max_chars:
                raise TemplateError("the chat template's output is over its size limit")
        return super().call_binop(context, operator, left, right)


_plain_json = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps makes an encoder on each call: half its time


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if not ensure_ascii and indent is None and separators is None and not sort_keys:
        return _plain_json(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _environment(max_chars: int) -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols], cache_size=0
    )
    environment.max_chars = max_chars
    environment.filters["tojson"] = _tojson

    def bounded(value: Any) -> Any:
        if isinstance(value, str | list | tuple) and len(value) > max_chars:
            raise TemplateError("the chat template's output is over its size limit")
        return value

    environment.filters[_BOUNDED] = bounded
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


_BOUNDED = "router_bounded"


def _bound_assignments(tree: jinja2.nodes.Template) -> None:
    """Measure every assigned value: `{% set s = s ~ s %}` in a loop would double a text until the memory is full."""
    for node in list(tree.find_all(jinja2.nodes.Assign)):
        measured = jinja2.nodes.Filter(node.node, _BOUNDED, [], [], None, None)
        measured.set_lineno(node.lineno)
        assert node.environment is not None
        measured.set_environment(node.environment)
        node.node = measured


class ChatTemplate:
    """One compiled template. Not thread-safe while rendering (the deadline is the environment's)."""

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
        self._environment = _environment(max_chars)
        environment = self._environment
        try:
            tree = environment.parse(source)
            resumable = environment.parse(source)
            _bound_assignments(resumable)
            if max_snapshot_bytes and make_resumable(resumable):
                resumption = environment.resumption = Resumption(Snapshots(max_snapshot_bytes), environment.getitem)
                for method in (resumption.enter, resumption.tail, resumption.item):
                    setattr(environment, f"resumption_{method.__name__}", method)
            self._template = environment.from_string(resumable)
            self._template.root_render_func.__globals__["LoopContext"] = Loop
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"chat template {name!r}, line {error.lineno}: {error.message}") from error
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
        clock: Callable[[], float] = time.monotonic
        deadline = self._environment.deadline = clock() + self._max_seconds
        limit, size = self._max_chars, 0
        pieces: list[str] = []
        append = pieces.append
        resumption = self._environment.resumption
        if resumption is not None:
            resumption.begin(pieces, variables)
        try:
            for piece in self._template.root_render_func(self._template.new_context(variables)):
                append(piece)
                size += len(piece)
                if size > limit:
                    raise TemplateError("the chat template's output is over its size limit")
                if len(pieces) & 255 == 0 and clock() > deadline:
                    raise TemplateError("the chat template ran over its time limit")
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
