"""The server-side scripts: scripts.lua cut at its `--- name` lines, each with the prelude in front."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files

from router.index.redis.layout import MAX_SLOTS, VERSION


@dataclass(frozen=True, slots=True)
class Script:
    name: str
    body: bytes
    sha: bytes


def _load() -> dict[str, Script]:
    source = files("router.index.redis").joinpath("scripts.lua").read_text("utf-8")
    _, *parts = re.split(r"^--- (\w+)\n", source, flags=re.MULTILINE)
    bodies = dict(zip(parts[::2], parts[1::2], strict=True))
    prelude = bodies.pop("prelude")
    prelude = prelude.replace("VERSION = '1'", f"VERSION = '{VERSION}'")
    prelude = prelude.replace("MAX_SLOTS = 4096", f"MAX_SLOTS = {MAX_SLOTS}")
    scripts = {}
    for name, body in bodies.items():
        whole = (prelude + body).encode()
        sha = hashlib.sha1(whole, usedforsecurity=False).hexdigest().encode()
        scripts[name] = Script(name, whole, sha)
    return scripts


_SCRIPTS = _load()

CLAIM = _SCRIPTS["claim"]
APPLY = _SCRIPTS["apply"]
RENEW = _SCRIPTS["renew"]
RETIRE = _SCRIPTS["retire"]
SWEEP = _SCRIPTS["sweep"]
ROSTER = _SCRIPTS["roster"]
SCAN = _SCRIPTS["scan"]
SHARE = _SCRIPTS["share"]
