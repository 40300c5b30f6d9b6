"""Characters that split patterns see the same way, whatever Unicode version a library's tables are of.

Patterns ask whether a character is a letter (of which kind), a mark, a number, punctuation or a symbol, or white space.
Taken as settled: what had the same category in Unicode 3.2 as in Python's tables, and symbols in the blocks kept for
them, which were places for nothing else before.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from itertools import groupby

_LAST = 0x2FFFF
_SYMBOLS = (range(0x2190, 0x2C00), range(0x1F000, 0x1FB00))
"""Arrows, boxes, mathematics, dingbats; pictures and emoji."""
_LONG_S = 0x17F
"""Some engines take it for an s where case is ignored."""
_SPACES = frozenset(map(ord, "\t\n\v\f\r\x85"))
"""Control characters that are white space, to both libraries."""


@cache
def stable() -> re.Pattern[str]:
    """A pattern that matches a text of settled characters only, all of it. Built on first use: 30 ms."""
    return re.compile(f"[{_places(_settled)}]*")


@cache
def printed() -> re.Pattern[str]:
    """As `stable`, without control, format and private characters other than white space."""
    return re.compile(f"[{_places(lambda place: _settled(place) and (place in _SPACES or _kind(place)[0] != 'C'))}]*")


@cache
def numbers() -> str:
    """The settled numbers (`\\p{N}`), as the inside of a character class."""
    return _places(lambda place: _settled(place) and _kind(place)[0] == "N")


def _places(test: Callable[[int], bool]) -> str:
    runs = []
    for wanted, group in groupby(range(_LAST + 1), test):
        places = list(group)
        if wanted:
            runs.append(f"\\U{places[0]:08x}-\\U{places[-1]:08x}")
    return "".join(runs)


def _kind(place: int) -> str:
    return unicodedata.category(chr(place))


def _settled(place: int) -> bool:
    now, then = _kind(place), unicodedata.ucd_3_2_0.category(chr(place))
    if now == then:
        return now not in ("Cn", "Cs") and place != _LONG_S
    return now[0] == "S" and then in ("Cn", "So", "Sm") and any(place in block for block in _SYMBOLS)
