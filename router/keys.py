"""Make API keys. The key itself is printed once and kept nowhere; the router knows it by its SHA-256.

examples:
  prefix-router keys new --name alice --tenant research --requests-per-minute 600 --file keys.yaml
  prefix-router keys new --name bob --model Qwen/Qwen3-8B            # prints the entry, changes no file
  printf %s "$KEY" | prefix-router keys hash                         # the sha256 of a key you have

Name the file in the configuration (keys.file); a running router takes a changed file up by itself.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from pathlib import Path

import msgspec
import yaml

from router.api.keys import KeyEntry, KeysError, digest, parse_keys

SHORTEST = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = actions.add_parser(
        "new",
        help="make a key, and its entry for the file",
        epilog="example: prefix-router keys new --name alice --tenant research --file keys.yaml",
    )
    new.add_argument("--name", required=True, help="name in logs and metrics")
    new.add_argument("--tenant", help="tenant the key belongs to")
    new.add_argument("--model", action="append", dest="models", help="model it may use; repeat for each (default all)")
    new.add_argument("--requests-per-minute", type=int, metavar="N")
    new.add_argument("--tokens-per-minute", type=int, metavar="N")
    new.add_argument("--max-concurrent", type=int, metavar="N")
    new.add_argument("--file", type=Path, metavar="FILE", help="file the entry is added to (made if there is none)")
    actions.add_parser(
        "hash",
        help="read a key from standard input, print its sha256",
        epilog='example: printf %s "$KEY" | prefix-router keys hash',
    )


def run(args: argparse.Namespace) -> int:
    """Make or hash a key; returns the exit status."""
    try:
        return _hash() if args.action == "hash" else _new(args)
    except (KeysError, OSError) as error:
        sys.stderr.write(f"prefix-router: {error}\n")
        return 2


def _hash() -> int:
    key = sys.stdin.read().strip()
    if len(key) < SHORTEST:
        raise KeysError(f"a key of fewer than {SHORTEST} characters can be guessed from its hash; use a longer one.")
    sys.stdout.write(digest(key) + "\n")
    return 0


def _new(args: argparse.Namespace) -> int:
    key = "pr-" + secrets.token_urlsafe(32)
    names = ("name", "tenant", "models", "requests_per_minute", "tokens_per_minute", "max_concurrent")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    entry = {"name": given.pop("name"), "sha256": digest(key), **given}
    text = yaml.safe_dump([entry], sort_keys=False)
    try:
        msgspec.convert(entry, KeyEntry)
    except msgspec.ValidationError as error:
        raise KeysError(f"{error}.") from None
    if args.file is None:
        sys.stderr.write(f"Add this to the file that keys.file names:\n\n{text}\nThe key, shown this once:\n")
    else:
        _add(args.file, text)
        sys.stderr.write(f"Added to {args.file}. The key, shown this once:\n")
    sys.stdout.write(key + "\n")
    return 0


def _add(file: Path, text: str) -> None:
    """Append to the file by a fresh one renamed over it, so that no reader sees half of it. Raises KeysError."""
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    if before and not before.endswith("\n"):
        before += "\n"
    if before.strip():
        parse_keys(before, os.environ)
    try:
        parse_keys(before + text, os.environ)
    except KeysError as error:
        raise KeysError(
            f"{file}: the entry can't be added at its end ({error}) Write it there by hand:\n{text}"
        ) from None
    fresh = file.with_name(file.name + ".new")
    fresh.touch(mode=0o600)
    fresh.write_text(before + text, encoding="utf-8")
    if file.exists():
        fresh.chmod(file.stat().st_mode & 0o777)
    fresh.replace(file)
