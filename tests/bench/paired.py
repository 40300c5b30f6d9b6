"""What a change did to a request's CPU: this checkout and another one, and a peer, alive at once and loaded in turn.

    python tests/bench/paired.py --base DIR [--policy round_robin] [--peer sglang-router:round_robin] [--repeats 5]

The routers share one backend and core 1. Within a repeat each gets every load for `--seconds`, one right after the
other; what is told is the median over the repeats of each router's CPU (us), and of its ratio to the first router's in
the same repeat: that holds when other work shares the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import peer_load as load
import uvloop
from peer_text import chat
from peers import EVENTS, ROOT, backend, on_core, port_of, say

from loadtest.compare.contenders import contenders
from loadtest.compare.fleet import Fleet
from loadtest.compare.routers import Launcher
from loadtest.processes import Child, cpu_seconds, rss_bytes

LOADS = ("2k", "64k", "event")
STREAMS = 64


async def serve(stack: contextlib.AsyncExitStack, root: Path, policy: str, urls: Sequence[str]) -> tuple[int, int]:
    """A router of the checkout `root`: (pid, port)."""
    argv = [sys.executable, "-P", "-m", "router.cli", "serve", f"--policy={policy}", "--port=0", "--admin-port=0"]
    argv += ["--set=log.level=info", *(f"--replica={url}" for url in urls)]
    with on_core(1):
        child = await stack.enter_async_context(Child(str(root), argv, {"PYTHONPATH": str(root)}))
    url = (await child.printed(r"listening on (\S+)"))[0]
    await child.answers(f"{url}/ready")
    return child.pid, port_of(url)


async def cost(pid: int, port: int, kind: str, seconds: float) -> float:
    """Microseconds of CPU a request, or a streamed event."""
    if kind == "event":
        before = cpu_seconds(pid)
        tally = await load.streams(port, load.post(chat(2_000, 1, stream=EVENTS)), STREAMS)
        done = tally.events
    else:
        requests = [load.post(chat(2_000 if kind == "2k" else 64_000, seed)) for seed in range(64)]
        await load.closed(port, requests, 16, 0.1)
        before = cpu_seconds(pid)
        tally = await load.closed(port, requests, 16, seconds)
        done = len(tally.latencies)
    if tally.errors:
        raise RuntimeError(f"{len(tally.errors)} errors, the first: {tally.errors[0]}")
    return (cpu_seconds(pid) - before) / done * 1e6


async def run(args: argparse.Namespace) -> None:
    async with contextlib.AsyncExitStack() as stack:
        _, urls = await stack.enter_async_context(backend("m"))
        routers = {"base": await serve(stack, args.base, args.policy, urls)}
        routers["this"] = await serve(stack, ROOT, args.policy, urls)
        if args.peer:
            launcher = Launcher(args.peers, say)
            with on_core(1):
                for each in launcher.prepare(contenders([args.peer])):
                    peer = await stack.enter_async_context(launcher.start(each, Fleet(list(urls), "m", None, None)))
                    routers[each.label] = peer.pid, port_of(peer.url)
        found: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in routers} for kind in args.loads}
        with on_core(0):
            for _ in range(args.repeats):
                for kind, costs in found.items():
                    for name, (pid, port) in routers.items():
                        costs[name].append(await cost(pid, port, kind, args.seconds))
        for kind, costs in found.items():
            for name, values in costs.items():
                ratio = statistics.median(mine / base for mine, base in zip(values, costs["base"], strict=True))
                rss = rss_bytes(routers[name][0]) / 1e6
                print(f"{kind:5} {name:28} {statistics.median(values):7.1f} us  x{ratio:.3f}  RSS {rss:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="another checkout of this repository")
    parser.add_argument("--policy", default="round_robin")
    parser.add_argument("--peer", help="as in peers.py, such as sglang-router:round_robin")
    parser.add_argument("--peers", type=Path, default=ROOT / ".cache" / "peers", help="where peers are installed")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=5)
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
