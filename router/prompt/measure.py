"""How long the text of a value can get, before it is made."""

from __future__ import annotations

import re
import string
from collections.abc import ItemsView, KeysView, Mapping, ValuesView
from typing import NamedTuple

from jinja2.utils import Namespace

REPR = 10
"""Characters that one character may become where a value is printed as Python writes it (`\\U0001f600`)."""
_LONGEST_NUMBER = 400  # a float without an exponent; widths and precisions are counted beside it
_OTHER = 200  # any other value's text: an object's type and address
_MOST = 1 << 50
_FORMAT_CHARS = 1 << 16
_DIGITS = re.compile(r"\d+")


class Size(NamedTuple):
    """Of a value: the characters in it, the values in it, how deep they lie."""

    chars: int
    values: int
    depth: int


class TooLong(Exception):
    """A format whose result can't be bounded."""


def size(value: object, known: dict[int, Size] | None = None) -> Size:
    """What is in a value; a part that is in it many times counts each time, but is looked through once.

    Raises RecursionError for a value nested too deeply, or within itself.
    """
    if isinstance(value, str):
        return Size(len(value) + 2, 1, 0)
    if isinstance(value, int):
        return Size(value.bit_length() // 3 + 2, 1, 0)
    kept = isinstance(value, dict | list | tuple)
    if isinstance(value, Namespace):
        value = object.__getattribute__(value, "_Namespace__attrs")
    elif isinstance(value, KeysView | ValuesView | ItemsView):
        value = getattr(value, "mapping", ())  # a proxy of its own each time: not to be known by its id
    if isinstance(value, Mapping):
        parts: list[object] = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple):
        parts = list(value)
    else:
        return Size(_OTHER, 1, 0)
    known = {} if known is None else known
    found = known.get(id(value)) if kept else None
    if found is None:
        chars, values, depth = 2, 1, 0
        for part in parts:
            inner = size(part, known)
            chars += inner.chars + 4
            values += inner.values
            depth = max(depth, inner.depth)
        found = Size(min(chars, _MOST), min(values, _MOST), depth + 1)
        if kept:
            known[id(value)] = found
    return found


def printf_chars(text: str, arguments: object) -> int:
    """Bound on the characters of `text % arguments`: every `%` may be the widest of all, with all arguments in it."""
    widest = _widest(text)
    if "*" in text:  # a width that is an argument
        given = arguments.values() if isinstance(arguments, Mapping) else arguments
        for value in given if isinstance(given, tuple | ValuesView) else (given,):
            widest = max(widest, abs(value)) if isinstance(value, int) else widest
    return len(text) + text.count("%") * (widest + _LONGEST_NUMBER + REPR * size(arguments).chars)


def format_chars(text: str, arguments: tuple[object, ...], named: Mapping[str, object]) -> int:
    """The same for `text.format(*arguments, **named)`. Raises TooLong if a width is an argument."""
    if len(text) > _FORMAT_CHARS:
        raise TooLong
    if any(spec and "{" in spec for _, _, spec, _ in string.Formatter().parse(text)):
        raise TooLong
    inside = size(arguments).chars + size(dict(named)).chars
    return len(text) + text.count("{") * (_widest(text) + _LONGEST_NUMBER + REPR * inside)


def _widest(text: str) -> int:
    """The largest number spelled in a format."""
    return max((int(run) if len(run) < 16 else _MOST for run in _DIGITS.findall(text)), default=0)
