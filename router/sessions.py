"""Agents' sessions as a running router saw them: steps, prompt tokens resent, reused and computed, prefix breaks.

Without ID, the sessions last used; with the id or name of one, its steps and breaks.

examples:
  prefix-router sessions
  prefix-router sessions --broken --limit 100
  prefix-router sessions agent-7 --url http://127.0.0.1:9000
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any
from urllib.parse import quote, urlencode

from router import questions
from router.questions import Unanswered, ask, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("id", metavar="ID", nargs="?", help="a session's id, or the name its client gave it")
    parser.add_argument("--tenant", help="only this tenant's sessions")
    parser.add_argument("--model", help="only sessions with this model")
    parser.add_argument("--broken", action="store_true", help="only sessions with prefix breaks")
    parser.add_argument("--limit", type=int, default=50, help="sessions or steps, at most 500 (default 50)")
    questions.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Ask and print; returns the exit status."""
    wanted = {"limit": args.limit, "tenant": args.tenant, "model": args.model, "broken": 1 if args.broken else None}
    query = urlencode({name: value for name, value in wanted.items() if value is not None})
    try:
        if args.id is None:
            told = ask(args, f"/sessions?{query}")
        else:
            told = ask(args, f"/sessions/{quote(args.id, safe='')}?limit={args.limit}")
    except Unanswered as error:
        sys.stderr.write(f"prefix-router sessions: {error}\n")
        return 2
    if args.json:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        sys.stdout.write(listed(told, time.time(), broken=args.broken) if args.id is None else one(told))
    return 0


def listed(told: dict[str, Any], now: float, *, broken: bool = False) -> str:
    """The list as text."""
    if not told["sessions"]:
        return "no session with prefix breaks is remembered\n" if broken else "no sessions are remembered\n"
    rows = [
        (
            each["id"],
            _cut(each["name"]) if each["named_by_client"] else "-",
            _cut(each["model"]),
            f"{each['steps']:,}",
            f"{each['prompt_tokens']:,}",
            f"{each['prefilled_tokens']:,}",
            "-" if each["hit_rate"] is None else f"{each['hit_rate']:.1%}",
            f"{each['lost_to_breaks_tokens']:,}",
            f"{max(0.0, now - each['last']):,.0f} s",
            ", ".join(f"{kind} x{count}" for kind, count in each["breaks"].items()),
        )
        for each in told["sessions"]
    ]
    names = ("session", "name", "model", "steps", "prompt", "computed", "reused", "lost", "last", "breaks")
    lines = table(names, rows, left=(0, 1, 2, 9))
    if told["next"] is not None:
        lines.append("(there are more: --limit)")
    return "\n".join(lines) + "\n"


def one(told: dict[str, Any]) -> str:
    """One session as text, with tokens prefilled without reuse and with."""
    saved = told["prompt_tokens"] - told["prefilled_tokens"]
    lines = [
        f"session  {told['id']} ({_cut(told['name'])}), model {told['model']}"
        + (f", tenant {told['tenant']}" if told["tenant"] else ""),
        f"tokens   {told['prompt_tokens']:,} sent in {told['steps']:,} steps, {told['prefilled_tokens']:,} computed, "
        f"{saved:,} reused (about {told['saved_gpu_seconds']:,.1f} GPU seconds)",
        "on       " + (", ".join(f"{name} ({count})" for name, count in told["replicas"].items()) or "-"),
        "",
    ]
    rows = [
        (
            str(step["step"]),
            step["relation"],
            step["replica"] or "-",
            *(
                "-" if step[name] is None else f"{step[name]:,}"
                for name in ("prompt_tokens", "resent_tokens", "reused_tokens", "recomputed_tokens")
            ),
            step["cause"] or "-",
            f"{step['sum_without_reuse']:,}",
            f"{step['sum_prefilled']:,}",
        )
        for step in told["table"]
    ]
    names = ("step", "is", "replica", "prompt", "resent", "reused", "again", "why", "sum without", "sum computed")
    lines += table(names, rows, left=(1, 2, 7))
    for step in told["recent_breaks"]:
        broken = step["break"]
        where = broken["field"] if broken["message"] is None else f"message {broken['message']}, {broken['field']}"
        at = "" if broken["offset"] is None else f", character {broken['offset']:,}"
        lines += ["", f"step {step['step']}: {broken['kind']} in {where}{at}: {broken['tokens_lost']:,} tokens lost"]
        if broken["before"] or broken["after"]:
            lines += [f"  was {broken['before']!r}", f"  is  {broken['after']!r}"]
    return "\n".join(lines) + "\n"


def _cut(text: str) -> str:
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return shown if len(shown) <= 32 else shown[:31] + "…"
