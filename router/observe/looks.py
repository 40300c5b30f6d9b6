"""What a changed place in a text looks like: the usual culprits in system prompts."""

from __future__ import annotations

import re

from router.observe.fingerprint import Place

_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?"
_CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?"
_TIMES = (
    rf"\d{{4}}[-/.]\d{{1,2}}[-/.]\d{{1,2}}(?:[T ,]+{_CLOCK}(?:Z|[+-]\d{{2}}:?\d{{2}})?)?",
    r"\d{1,2}[/.]\d{1,2}[/.]\d{2,4}",
    rf"{_CLOCK}(?: ?[AaPp]\.?[Mm])?",
    rf"\b{_MONTH} \d{{1,2}}(?:,? \d{{4}})?",
    rf"\b\d{{1,2}} {_MONTH}(?:,? \d{{4}})?",
    r"\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b",
    r"\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)\b,?",
    r"\b1\d{9}(?:\d{3})?(?:\.\d+)?\b",  # seconds or milliseconds since 1970
)
_HEX = r"[0-9a-fA-F]"
_IDS = (
    rf"\b(?={_HEX}*\d){_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}\b",
    rf"\b(?={_HEX}*\d){_HEX}{{8,64}}\b",
)
_LOOKS = {
    "timestamp": re.compile("|".join(_TIMES)),
    "id": re.compile("|".join(_IDS)),
    "counter": re.compile(r"\d+"),
}
_AROUND = 80


def looks_like(text: str, at: Place) -> str:
    """ "timestamp", "id", "counter" or nothing: what the text at the place, or within its reach, is."""
    start = max(0, at.offset - _AROUND)
    window = text[start : at.offset + at.within + _AROUND]
    for name, pattern in _LOOKS.items():
        for found in pattern.finditer(window):
            if found.start() <= at.offset + at.within - start and at.offset - start <= found.end():
                return name
    return ""
