"""The sandbox that chat templates run in: jinja2's, with an allowance of memory and time for each render.

A template comes with a model's files. One expression of it can ask for gigabytes (`'x'.center(10**9)`,
`'%999999999d' % 1`, `9**9**9`, `tools|tojson(indent=10**8)`), a few lines can double a text until the memory is full.
So every operation that can make more than it was given is measured first, everything made is taken off the allowance,
whether it is kept or not, and what no chat template needs is refused. The allowance bounds what a render can hold.

| what | how |
|---|---|
| `*`, `**`, `%` | jinja2's interception of operators |
| `+`, comparisons, slices, tuples, iterations | the syntax tree is changed (`measured`) to call the filters below |
| `~`, printing, what macros and blocks collect | the functions that the compiled template calls for them |
| filters, tests | each replaced by one that measures, or refuses |
| calls | methods by name, functions by kind; anything else is refused |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import wraps
from itertools import islice
from sys import getsizeof
from time import monotonic
from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2 import filters, pass_context, pass_eval_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import BlockReference, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace
from markupsafe import Markup

from router.prompt.measure import REPR, TooLong, format_chars, printf_chars, size
from router.prompt.resume import Loop
from router.prompt.resumption import Resumption


class TemplateError(Exception):
    """A chat template that doesn't compile, raises, or exceeds its bounds. The message never contains prompt text."""


class OverBounds(TemplateError):
    """A chat template that asks for more memory or time than a render may use, or for what is refused."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's tokens for training; here it is its body."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own attribute)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_LARGE = 1 << 14  # characters from which an operation is measured before it is done, not only after
_SLOT = 64  # bytes of an item in a list: its place and a small object
_WIDEST_INT = 1 << 12  # bits
_LONGEST_INT = 4300  # digits, as Python's own limit where it has one
_VALUES_COMPARED = 1 << 20
_FORMAT_CHARS = 1000  # of a date: the C library may print 256 for each
_ESCAPED = 6  # characters that one character may become in JSON or in HTML

# Attributes that the sandbox allows anyway, looked up here without its checks: they are most of a render's time.
_DICT_METHODS = frozenset(dir(dict))
_LOOP_FIELDS = frozenset(
    {"first", "last", "index", "index0", "revindex", "revindex0", "length", "previtem", "nextitem"}
)
_COMMON = frozenset({"startswith", "endswith", "strip", "lstrip", "rstrip", "split", "rsplit", "lower", "upper"})
# Methods of a text that make no more than three times the text and what they are given.
_TEXT_METHODS = _COMMON - {"split", "rsplit"} | {
    *("capitalize", "casefold", "title", "swapcase", "removeprefix", "removesuffix", "partition", "rpartition"),
    *("count", "find", "rfind", "index", "rindex", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit"),
    *("isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper"),
}  # fmt: skip
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_CONTAINER_METHODS = frozenset({"get", "items", "keys", "values", "copy", "index", "count"})
_CALLED = (FunctionType, Macro, LoopContext, BlockReference, Joiner, Undefined)
_CLASSES = (dict, Namespace, Cycler, Joiner)

_namespace_attributes = object.__getattribute__  # jinja2's own is twice a Python function

_SMALL_FILTERS = ("abs", "attr", "count", "d", "default", "first", "float", "items", "last", "length")
_ITEM_FILTERS = frozenset({"map", "reject", "rejectattr", "reverse", "select", "selectattr"})
_REFUSED_FILTERS = ("pprint", "random", "striptags", "urlize", "wordcount", "wordwrap", "xmlattr")
_COMPARING_TESTS = (
    *("==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge", "<", "lt", "lessthan", "<=", "le"),
    *("in", "lower", "upper"),
)
_NUMBER_TESTS = ("divisibleby", "even", "odd")


class _Code(CodeGenerator):
    """`message.role` of a dict and `loop.index0` are looked up where they stand: most of a render is look-ups."""

    def visit_Getattr(self, node: jinja2.nodes.Getattr, frame: Frame) -> None:
        of, name = node.node, node.attr
        if isinstance(of, jinja2.nodes.Name) and of.name == "loop" and name in _LOOP_FIELDS:
            here, kind, known = f"_of.{name}", "LoopContext", ""
        elif name not in _DICT_METHODS:
            here, kind, known = f"_of[{name!r}]", "dict", f"and {name!r} in _of "
        else:
            super().visit_Getattr(node, frame)
            return
        self.write(f"({here} if type(_of := ")
        self.visit(of, frame)
        self.write(f") is {kind} {known}else environment.getattr(_of, {name!r}))")


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template. For one render at a time."""

    code_generator_class = _Code
    intercepted_binops = frozenset({"*", "**", "%"})
    resumption: Resumption | None = None

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: of everything that one render makes."""
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols], cache_size=0
        )
        self._max_bytes = max_bytes
        self.begin(float("inf"))
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        own: dict[str, Callable[..., Any]] = {
            **{name: self._refuse(name) for name in _REFUSED_FILTERS},
            **{name: self.filters[name] for name in _SMALL_FILTERS},
            **{name: getattr(self, f"_filter_{name}") for name in _BOUNDED_FILTERS},
        }
        others = {name: self._measured(name, one) for name, one in self.filters.items() if name not in own}
        self.filters = {**others, **own, "router_add": self.add, "router_made": self.made}
        self.filters |= {"router_flat": self.flat, "router_tick": self.tick}
        tests: dict[str, Any] = self.tests
        tests |= {name: self._comparing(tests[name]) for name in _COMPARING_TESTS}
        tests |= {name: _of_number(tests[name]) for name in _NUMBER_TESTS}

    def resume_with(self, resumption: Resumption) -> None:
        """The compiled template will call these (see `resumable`)."""
        self.resumption = resumption
        own = (
            resumption.enter,
            resumption.tail,
            resumption.item,
            resumption.upto,
            resumption.compared,
            resumption.counted,
            resumption.length,
        )
        for method in (*own, resumption.scan, resumption.places, resumption.telling):
            setattr(self, f"resumption_{method.__name__}", method)

    def install(self, names: dict[str, Any]) -> None:
        """`names`: what the compiled template's module calls its helpers by."""
        names |= {"LoopContext": Loop, "str": self.text, "str_join": self.concat}

    # The allowance

    def begin(self, seconds: float) -> None:
        """A render starts; it may take so long."""
        self._left = self._max_bytes
        self._deadline = monotonic() + seconds

    def spend(self, count: int) -> None:
        """Take bytes off the allowance. Raises OverBounds."""
        self._left -= count
        if self._left < 0:
            raise OverBounds(f"the chat template makes more than {self._max_bytes} bytes of text and lists")

    def reserve(self, chars: int, what: str) -> None:
        """Raises OverBounds if a text of so many characters, four bytes each, is over what is left."""
        if 4 * chars > self._left:
            raise OverBounds(f"the chat template's {what} may make {chars} characters, which is over its limit")

    def made(self, value: Any) -> Any:
        """The value, which was just made."""
        if isinstance(value, str):
            self.spend(getsizeof(value))
        elif isinstance(value, list | tuple | dict):
            self.spend(_SLOT * len(value))
        return value

    def check_time(self) -> None:
        """Raises OverBounds."""
        if monotonic() > self._deadline:
            raise OverBounds("the chat template ran over its time limit")

    def flat(self, value: Any) -> Any:
        """The value, which will be compared or hashed: parts that it has many times are looked at each time."""
        if isinstance(value, list | tuple | dict) and size(value).values > _VALUES_COMPARED:
            raise OverBounds("the chat template compares values with too many parts")
        self.check_time()
        return value

    @pass_context
    def tick(self, _context: Any, weight: int) -> None:
        """An iteration of a loop begins, which may print `weight` bytes of references."""
        left = self._left = self._left - weight
        if left < 0 or monotonic() > self._deadline:
            self.spend(0)
            self.check_time()

    # Text

    def text(self, value: Any) -> str:
        """`str(value)`."""
        if type(value) is str:
            return value
        if isinstance(value, str):
            return str(value)
        self.reserve(REPR * size(value).chars, "printing of a value")
        made = str(value)
        self.spend(getsizeof(made))
        return made

    def _as_text(self, value: Any) -> str:
        return value if isinstance(value, str) else self.text(value)

    def concat(self, pieces: Iterable[Any]) -> str:
        """The text of the pieces, joined."""
        return self._joined("", [piece if type(piece) is str else self.text(piece) for piece in pieces])

    def _joined(self, separator: str, texts: Sequence[str]) -> str:
        total = sum(map(len, texts)) + len(separator) * len(texts)
        if total > _LARGE:
            self.reserve(total, "text")
        made = separator.join(texts)
        self.spend(getsizeof(made))
        return made

    def add(self, first: Any, *others: Any) -> Any:
        """`first + second + ...`."""
        if type(first) is str:
            for other in others:
                if type(other) is not str:
                    break
            else:
                return self._joined("", (first, *others))
        total = first
        for other in others:
            if isinstance(total, str) and isinstance(other, str):
                self.reserve(_ESCAPED * (len(total) + len(other)), "text")  # one may be safe: the other gets escaped
            elif isinstance(total, list | tuple) and isinstance(other, list | tuple):
                self.reserve(_SLOT // 4 * (len(total) + len(other)), "list")
            total = self.made(total + other)
        return self.flat(total) if type(total) is tuple else total

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%":
            if isinstance(left, str):
                self.reserve(printf_chars(left, right), "text % values")
        elif operator == "**":
            _check_power(left, right)
        elif isinstance(left, int) and isinstance(right, int):
            if left.bit_length() + right.bit_length() > _WIDEST_INT:
                raise OverBounds("the chat template computes a number that is too large")
        else:
            for repeated, count in ((left, right), (right, left)):
                if isinstance(repeated, str | list | tuple) and isinstance(count, int):
                    each = 1 if isinstance(repeated, str) else _SLOT // 4
                    self.reserve(each * len(repeated) * count, "repetition")
        made = self.made(super().call_binop(context, operator, left, right))
        return self.flat(made) if type(made) is tuple else made

    # Attributes and calls

    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = type(obj)
        if kind is Namespace and attribute[0] != "_":
            attributes = _namespace_attributes(obj, "_Namespace__attrs")
            return attributes[attribute] if attribute in attributes else self.undefined(obj=obj, name=attribute)
        if kind is str and attribute in _COMMON:
            return getattr(obj, attribute)
        if kind is dict and attribute not in _DICT_METHODS:
            try:
                return obj[attribute]
            except KeyError:
                return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(obj, BuiltinMethodType | MethodType):
            owner = obj.__self__
            if isinstance(owner, str):
                kwargs.pop("_loop_vars", None)  # jinja's own, for functions that want the context
                kwargs.pop("_block_vars", None)
                return self._text_method(obj, owner, *args, **kwargs)
            if owner is self.resumption:
                return obj(*args)
            allowed = isinstance(owner, dict | list | tuple) and obj.__name__ in _CONTAINER_METHODS
            allowed = allowed or isinstance(owner, LoopContext | Cycler)
        else:
            allowed = isinstance(obj, _CALLED) or obj in _CLASSES
        if not allowed:
            raise OverBounds(f"the chat template calls {getattr(obj, '__name__', 'something')!r}, which is not allowed")
        self.spend(_SLOT)
        self.check_time()
        return self.made(super().call(context, obj, *args, **kwargs))

    def _text_method(self, method: Any, text: str, *args: Any, **kwargs: Any) -> Any:
        name = method.__name__
        if name in _TEXT_METHODS:
            return self.made(method(*args, **kwargs))
        if name in ("split", "rsplit"):
            return self._split(method, text, *args, **kwargs)
        if name == "splitlines":
            self._check_pieces(1 + sum(text.count(end) for end in _LINE_ENDS), text)
        elif name == "join":
            (items,) = args
            texts = self._filter_list(items)
            self.reserve(_escaped(text) * (sum(map(len, texts)) + len(text) * len(texts)), "join")
            args = (texts,)
        else:
            measure = _GROWING_METHODS.get(name)
            if measure is None:
                raise OverBounds(f"the chat template calls {name!r} of a text, which is not allowed")
            self.reserve(_escaped(text) * measure(text, *args, **kwargs), name)
        return self.made(method(*args, **kwargs))

    def _split(self, method: Any, text: str, sep: str | None = None, maxsplit: int = -1) -> Any:
        most = self._left // _SLOT
        if len(text) >= most and not 0 <= maxsplit <= most:
            found = method(sep, most)
            self._check_pieces(len(found), text)
        else:
            found = method(sep, maxsplit)
        self.spend(getsizeof(text))
        return self.made(found)

    def _check_pieces(self, count: int, text: str) -> None:
        self.reserve(_SLOT // 4 * count + len(text), "split text")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        format_ = super().wrap_str_format(value)
        if format_ is None:
            return None
        text = value.__self__
        mapped = value.__name__ == "format_map"

        def measured(*args: Any, **kwargs: Any) -> str:
            named = args[0] if mapped and args and isinstance(args[0], Mapping) else kwargs
            try:
                chars = format_chars(text, () if mapped else args, named)
            except TooLong:
                raise OverBounds("the chat template's format has a width that can't be bounded") from None
            self.reserve(_escaped(text) * chars, "format")
            return str(self.made(format_(*args, **kwargs))) if type(text) is str else format_(*args, **kwargs)

        return measured

    # Filters and tests

    def _filter_list(self, value: Iterable[Any]) -> list[Any]:
        found = list(islice(value, self._left // _SLOT + 1))  # one more than is left for
        self.spend(_SLOT * len(found))
        return found

    def _measured(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that makes no more than its input, or REPR times its input's text."""
        position = 1 if hasattr(function, "jinja_pass_arg") else 0
        of_items = name in _ITEM_FILTERS

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            value = args[position]
            if type(value) is not str:
                if of_items:
                    self.check_time()
                else:
                    self.reserve(REPR * size(self.flat(value)).chars, name)
            elif len(value) > _LARGE:
                self.reserve(
                    (_SLOT // 4 if of_items or name in ("title", "sort", "unique") else REPR) * len(value), name
                )
            return self.made(function(*args, **kwargs))

        return run

    @staticmethod
    def _refuse(name: str) -> Callable[..., NoReturn]:
        def refused(*_args: Any, **_kwargs: Any) -> NoReturn:
            raise OverBounds(f"the chat template uses the filter {name!r}, which is not allowed")

        return refused

    def _comparing(self, test: Callable[..., bool]) -> Callable[..., bool]:
        return lambda *values: test(*map(self.flat, values))

    def _filter_center(self, value: Any, width: int = 80) -> Any:
        value = self._as_text(value)
        self.reserve(_escaped(value) * max(len(value), width), "center")
        return self.made(filters.do_center(value, width))

    def _filter_indent(self, value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> Any:
        value = self._as_text(value)
        wide = len(width) if isinstance(width, str) else width
        lines = 2 + sum(value.count(end) for end in _LINE_ENDS)
        self._check_pieces(lines, value)
        self.reserve(_ESCAPED * (len(value) + lines * wide), "indent")
        return self.made(filters.do_indent(value, width, first, blank))

    @pass_eval_context
    def _filter_replace(self, context: Any, value: Any, old: Any, new: Any, count: int | None = None) -> Any:
        value, old, new = map(self._as_text, (value, old, new))
        self.reserve(_ESCAPED * _replaced(value, old, new), "replace")
        return self.made(filters.do_replace(context, value, old, new, count))

    @pass_eval_context
    def _filter_join(self, context: Any, value: Any, d: Any = "", attribute: Any = None) -> Any:
        items = self._filter_list(value)
        separator = self._as_text(d)
        inside = sum(REPR * size(item).chars if not isinstance(item, str) else len(item) for item in items)
        self.reserve(inside + len(separator) * len(items), "join")
        return self.made(filters.do_join(context, items, separator, attribute))

    def _filter_format(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        value = self._as_text(value)
        self.reserve(_escaped(value) * printf_chars(value, kwargs or args), "format")
        return self.made(filters.do_format(value, *args, **kwargs))

    def _filter_tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        plain = not ensure_ascii and indent is None and separators is None and not sort_keys
        if type(value) is not str or len(value) > _LARGE:
            chars, values, depth = size(value)
            wide = indent if isinstance(indent, int) else len(indent or "")
            beside = max(0, wide) * (depth + 1) + sum(map(len, separators or ()))
            self.reserve(2 * _ESCAPED * chars + values * beside, "tojson")
        made = (
            _plain_json(value)
            if plain
            else json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        )
        self.spend(getsizeof(made))
        return made

    def _filter_batch(self, value: Any, linecount: int, fill_with: Any = None) -> Any:
        self.reserve(_SLOT // 4 * linecount, "batch")
        return filters.do_batch(self._filter_list(value), linecount, fill_with)

    def _filter_slice(self, value: Any, slices: int, fill_with: Any = None) -> Any:
        self.reserve(_SLOT // 4 * slices, "slice")
        return filters.sync_do_slice(self._filter_list(value), slices, fill_with)

    def _filter_round(self, value: Any, precision: int = 0, method: Any = "common") -> Any:
        if not isinstance(value, int | float) or abs(precision) > _LONGEST_INT >> 3:
            raise OverBounds("the chat template rounds what it can't, or to too many digits")
        return filters.do_round(value, precision, method)

    def _filter_int(self, value: Any, default: int = 0, base: int = 10) -> int:
        if isinstance(value, str) and len(value) > _LONGEST_INT:
            raise OverBounds("the chat template reads a number that is too large")
        return filters.do_int(value, default, base)

    def _filter_sum(self, value: Any, attribute: Any = None, start: Any = 0) -> Any:
        if not isinstance(start, int | float):
            raise OverBounds("the chat template sums what are no numbers")
        return filters.sync_do_sum(self, value, attribute, start)


_BOUNDED_FILTERS = (
    *("batch", "center", "format", "indent", "int", "join", "list", "replace", "round", "slice", "sum", "tojson"),
)  # fmt: skip


def _replaced(text: str, old: str, new: str, count: int = -1) -> int:
    return len(text) + (text.count(old) if old else len(text) + 1) * len(new)


def _padded(text: str, width: int, fill: str = " ") -> int:
    return max(len(text), width)


def _expanded(text: str, tabsize: int = 8) -> int:
    return len(text) + text.count("\t") * tabsize


_GROWING_METHODS: Mapping[str, Callable[..., int]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _padded),
    "expandtabs": _expanded,
    "replace": _replaced,
}

_plain_json = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps makes an encoder on each call: half its time


def _escaped(text: str) -> int:
    """Characters that one character of what is put into the text may become."""
    return _ESCAPED if isinstance(text, Markup) else 1


def _check_power(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int) and abs(exponent) * base.bit_length() > _WIDEST_INT:
        raise OverBounds("the chat template computes a power that is too large")


def _of_number(test: Callable[..., bool]) -> Callable[..., bool]:
    def run(value: Any, *others: Any) -> bool:
        if isinstance(value, str):
            raise OverBounds("the chat template divides a text")
        return test(value, *others)

    return run


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    if len(format) > _FORMAT_CHARS:
        raise OverBounds("the chat template's date has a format that is too long")
    return datetime.now().strftime(format)
