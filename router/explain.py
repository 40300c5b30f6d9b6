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
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

COLUMNS = ("replica", "matched", "running", "queued", "base", "queue", "crowd", "prefill", "later", "affinity", "total")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("file", metavar="FILE", help="the request's body, JSON; - for standard input")
    parser.add_argument(
        "--url", default="http://127.0.0.1:9000", help="the router's admin address (default %(default)s)"
    )
    parser.add_argument("--path", help="the endpoint the body is for (default: by its fields)")
    parser.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help="a header of the request")
    parser.add_argument("--token-env", metavar="NAME", help="environment variable with the admin token")
    parser.add_argument("--json", action="store_true", help="print the whole answer")


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
    if args.token_env:
        if args.token_env not in os.environ:
            return _fail(f"--token-env {args.token_env}: this variable is not set")
        headers["authorization"] = f"Bearer {os.environ[args.token_env]}"
    query = "?" + urllib.parse.urlencode({"path": args.path}) if args.path else ""
    question = urllib.request.Request(f"{args.url.rstrip('/')}/explain{query}", body, headers)
    try:
        with urllib.request.urlopen(question, timeout=30) as answer:
            told = json.load(answer)
    except urllib.error.HTTPError as error:
        return _fail(_message(error.read()) or f"{args.url} answered {error.code}")
    except (OSError, ValueError) as error:
        return _fail(f"{args.url} can't be asked: {error}. --url is the router's admin address.")
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
    rows = [COLUMNS]
    for one in told["candidates"]:
        cost = one["cost_s"] or {}
        counts = (f"{one['matched_tokens']:,}", f"{one['running']:,}", f"{one['queued_prefill_tokens']:,}")
        rows.append((one["replica"], *counts, *(_ms(cost.get(name)) for name in COLUMNS[4:])))
    wide = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS))]
    lines += [
        "  ".join([row[0].ljust(wide[0]), *(row[at].rjust(wide[at]) for at in range(1, len(row)))]) for row in rows
    ]
    lines.append("(tokens; costs in ms: docs/routing.md)")
    return "\n".join(lines) + "\n"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f}"


def _message(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return None


def _fail(message: str) -> int:
    sys.stderr.write(f"prefix-router explain: {message}\n")
    return 2
