"""Questions from the command line to a running router's admin port."""

from __future__ import annotations

import argparse
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

TIMEOUT_S = 30


class Unanswered(Exception):
    """No answer, or a refusal; the text says why and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of every command that asks."""
    parser.add_argument(
        "--url", default="http://127.0.0.1:9000", help="the router's admin address (default %(default)s)"
    )
    parser.add_argument("--token-env", metavar="NAME", help="environment variable with the admin token")
    parser.add_argument("--json", action="store_true", help="print the whole answer")


def ask(
    args: argparse.Namespace, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The JSON at a path; a POST where there is a body. Raises Unanswered."""
    sent = dict(headers or {})
    if args.token_env:
        if args.token_env not in os.environ:
            raise Unanswered(f"--token-env {args.token_env}: this variable is not set")
        sent["authorization"] = f"Bearer {os.environ[args.token_env]}"
    try:
        question = urllib.request.Request(args.url.rstrip("/") + path, body, sent)
        with urllib.request.urlopen(question, timeout=TIMEOUT_S) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        raise Unanswered(_message(error.read()) or f"{args.url} answered {error.code}") from None
    except (OSError, ValueError) as error:
        raise Unanswered(f"{args.url} can't be asked: {error}. --url is the router's admin address.") from None


def _message(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return None


def table(names: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> list[str]:
    """Aligned lines; columns at the places `left` to the left, others to the right."""
    whole = [names, *rows]
    wide = [max(len(row[at]) for row in whole) for at in range(len(names))]
    return [
        "  ".join(cell.ljust(wide[at]) if at in left else cell.rjust(wide[at]) for at, cell in enumerate(row)).rstrip()
        for row in whole
    ]
