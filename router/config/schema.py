"""Writes the settings' JSON schema into the Helm chart, so that `helm install` refuses what the router would refuse.

python -m router.config.schema [--check] helm/prefix-router/values.schema.json

Definitions called `config.SECTION` are generated from router/config/model.py; the rest of the file is kept as it is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from router.config.model import Config

PREFIX = "config."


def definitions() -> dict[str, Any]:
    """JSON schema (draft 7) of each section by its name, `config.Config` the whole. Unknown keys are refused."""
    whole = msgspec.json.schema(Config, ref_template=f"#/$defs/{PREFIX}{{name}}", schema_hook=_anything)
    return {PREFIX + name: _plain(schema) for name, schema in sorted(whole["$defs"].items())}


def _anything(kind: type) -> dict[str, Any]:
    return {"title": "anything"}


def _plain(schema: Any) -> Any:
    # Titles, descriptions and defaults are in docs/configuration.md.
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "properties" in schema:
        properties = {name: _plain(each) for name, each in schema["properties"].items()}
        return {**_plain({k: v for k, v in schema.items() if k != "properties"}), "properties": properties}
    return {key: _plain(value) for key, value in schema.items() if key not in ("title", "description", "default")}


def merged(chart: dict[str, Any]) -> dict[str, Any]:
    """The chart's schema with the definitions as they are now."""
    own = {name: schema for name, schema in chart["$defs"].items() if not name.startswith(PREFIX)}
    return {**chart, "$defs": {**own, **definitions()}}


def main(file: Path, *, check: bool) -> int:
    """Write the definitions, or with `check` only say whether the file has them; returns the exit status."""
    before = file.read_text(encoding="utf-8")
    after = json.dumps(merged(json.loads(before)), indent=1) + "\n"
    if check and after != before:
        sys.stderr.write(f"{file} is not up to date: run make format\n")
        return 1
    file.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[-1]), check="--check" in sys.argv))
