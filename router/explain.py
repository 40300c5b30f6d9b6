"""Where a request would go now, and why: asks a running router, which forwards nothing and changes nothing.

FILE is the JSON body as a client would send it (- reads standard input).

examples:
  prefix-router explain request.json
  prefix-router explain request.json --header x-session-id:agent-7 --url http://127.0.0.1:9000
  prefix-router explain - --path /v1/messages < request.json
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.parse
from pathlib import Path
from typing import Any

from router import questions

COLUMNS = ("replica", "matched", "running", "queued", "base", "queue", "crowd", "prefill", "later", "affinity", "total")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("file", metavar="FILE", help="the request's body, JSON; - for standard input")
    parser.add_argument("--path", help="the endpoint the body is for (default: by its fields)")
    parser.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help="a header of the request")
    questions.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Ask and print; returns the exit status."""
    try:
        body = sys.stdin.buffer.read() if args.file == "-" else Path(args.file).read_bytes()
    except OSError as error:
        return _fail(f"{args.file}: {error.strerror or error}")
    headers = {"content-type": "application/json"}
    for text in args.header:
        name, colon, value = text.partition(":")
        if not colon:
            return _fail(f"--header takes NAME:VALUE, as x-session-id:agent-7, got {text!r}")
        headers[name.strip()] = value.strip()
    query = "?" + urllib.parse.urlencode({"path": args.path}) if args.path else ""
    try:
        told = questions.ask(args, f"/explain{query}", body, headers)
    except questions.Unanswered as error:
        return _fail(str(error))
    sys.stdout.write(json.dumps(told, indent=2) + "\n" if args.json else page(told))
    return 0


def page(told: dict[str, Any]) -> str:
    """An explanation as text; costs in milliseconds."""
    tokens, chain, session, decision = told["tokens"], told["chain"], told["session"], told["decision"]
    exact = "exact" if tokens["exact"] else f"approximate: {tokens['reason']}"
    lines = [
        f"to {decision['replica']} because {decision['reason']} (policy {decision['policy']})",
        f"prompt   {tokens['prompt']:,} tokens ({exact}), {chain['blocks']:,} blocks of {chain['block_size']}",
        f"session  {session['id'] or 'new'} (found by {session['found_by']}), home {session['home'] or '-'}, "
        f"{session['shared_tokens']:,} tokens shared with others, {session['class']}; "
        f"{session['expected_steps']:g} more steps of {session['expected_tokens_a_step']:,} tokens expected",
        "",
    ]
    rows = []
    for one in told["candidates"]:
        cost = one["cost_s"] or {}
        counts = (f"{one['matched_tokens']:,}", f"{one['running']:,}", f"{one['queued_prefill_tokens']:,}")
        rows.append((one["replica"], *counts, *(_ms(cost.get(name)) for name in COLUMNS[4:])))
    lines += questions.table(COLUMNS, rows)
    lines.append("(tokens; costs in ms: docs/routing.md)")
    return "\n".join(lines) + "\n"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f}"


def _fail(message: str) -> int:
    sys.stderr.write(f"prefix-router explain: {message}\n")
    return 2
