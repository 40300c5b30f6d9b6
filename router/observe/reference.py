"""docs/metrics.md, made from the code: `python -m router.observe.reference`; `make lint` compares."""

from __future__ import annotations

import sys

from router.observe.metrics import Metrics
from router.observe.scraped import SCRAPED

HEAD = """# Metrics

Generated from the code by `make format`; don't edit. `GET /metrics` on the admin port, in Prometheus' text format.
A histogram `NAME` has the series `NAME_bucket`, `NAME_sum` and `NAME_count`. Label values are replica ids, names of API
keys and the words listed here: their number is bounded, and none is ever a piece of a prompt.
What to watch, and alert rules: [observability.md](observability.md).

| metric | kind | labels | meaning |
|---|---|---|---|
"""


def render() -> str:
    """The page."""
    rows = [
        f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels) or '-'} | {text} |"
        for name, kind, labels, text in sorted(_kept() + _scraped())
    ]
    return HEAD + "\n".join(rows) + "\n"


_Row = tuple[str, str, tuple[str, ...], str]


def _kept() -> list[_Row]:
    """Those kept up to date on the request path."""
    kept = Metrics(lambda: iter(())).kept
    return [(_name(one.name, one.kind), one.kind, one.label_names, one.text) for one in kept]


def _scraped() -> list[_Row]:
    return [(_name(f"prefix_router_{one.name}", one.kind), one.kind, one.labels, one.text) for one in SCRAPED.values()]


def _name(name: str, kind: str) -> str:
    return name + "_total" if kind == "counter" else name


if __name__ == "__main__":
    sys.stdout.write(render())
