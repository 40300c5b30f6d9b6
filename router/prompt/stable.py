"""Characters that split patterns see the same way, whatever Unicode version a library's tables are of.

Patterns ask whether a character is a letter (of which kind), a mark, a number, or white space. Taken as settled: what
had the same category in Unicode 3.2 as in Python's tables, and symbols in the blocks kept for them, which are told
neither from each other nor from unassigned places there.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from itertools import groupby

_LAST = 0x2FFFF
_SYMBOLS = (range(0x2190, 0x2C00), range(0x1F000, 0x1FB00))
"""Arrows, boxes, mathematics, dingbats; pictures and emoji."""
_LONG_S = 0x17F
"""Some engines take it for an s where case is ignored."""
_OTHER = "PS"
"""Punctuation and symbols: what patterns have no name for."""


@cache
def stable() -> re.Pattern[str]:
    """A pattern that matches a text of settled characters only, all of it. Built on first use: 30 ms."""
    runs = []
    for settled, group in groupby(range(_LAST + 1), _settled):
        places = list(group)
        if settled:
            runs.append(f"\\U{places[0]:08x}-\\U{places[-1]:08x}")
    return re.compile(f"[{''.join(runs)}]*")


def _settled(place: int) -> bool:
    now = unicodedata.category(chr(place))
    then = unicodedata.ucd_3_2_0.category(chr(place))
    if now == then and now not in ("Cn", "Cs"):
        return place != _LONG_S
    return any(place in block for block in _SYMBOLS) and all(kind == "Cn" or kind[0] in _OTHER for kind in (now, then))
