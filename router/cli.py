"""The `prefix-router` command: finds the subcommand's module and runs it. Nothing else is imported."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "serve": ("router.serve", "run the router"),
    "demo": ("loadtest.demo", "simulated replicas, the router and agents: see prefix-aware routing at work"),
    "check-config": ("router.check", "check a configuration file and print what takes effect"),
    "keys": ("router.keys", "make API keys"),
    "agent": ("replica.agent", "run beside an engine: publish what its KV cache holds"),
    "explain": ("router.explain", "where a request would go now, and why"),
    "sessions": ("router.sessions", "agents' sessions: steps, tokens reused and computed, prefix breaks"),
    "simulate": ("replica.simulator.command", "run simulated engines"),
    "loadtest": ("loadtest.command", "load an endpoint and report hit rate and latency"),
    "loadtest replay": (
        "loadtest.replay.command",
        "other policies and fleet sizes on recorded requests, in virtual time",
    ),
    "loadtest compare": ("loadtest.compare.command", "several routers and policies on the same fleet and requests"),
}

EPILOG = """examples:
  prefix-router demo
  prefix-router serve --replica http://10.0.0.7:8000 --replica http://10.0.0.8:8000 --model-files Qwen/Qwen3-8B
  prefix-router serve --config router.yaml
  prefix-router loadtest --base-url http://127.0.0.1:8000 --dataset agents

`prefix-router COMMAND --help` says more."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if " ".join(given[:2]) in COMMANDS:
        given[:2] = [" ".join(given[:2])]
    parser = argparse.ArgumentParser(
        prog="prefix-router",
        description="Prefix-aware (KV-cache-aware) router for fleets of vLLM and SGLang replicas.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module_name, summary) in COMMANDS.items():
        wanted = bool(given) and given[0] == name
        # Only the command asked for is imported: `serve` starts without the load test's imports.
        module = importlib.import_module(module_name) if wanted else None
        command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__ if module else summary,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if module is not None:
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    args = parser.parse_args(given)
    return int(args.run(args))


def _version() -> str:
    from importlib.metadata import version

    return f"prefix-router {version('prefix-router')}"


if __name__ == "__main__":
    sys.exit(main())
