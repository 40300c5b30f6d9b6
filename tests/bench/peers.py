"""What a request costs in this router and in its peers: `make bench-peers` (some minutes; installs the peers once).

    python tests/bench/peers.py [--seconds 3] [--repeats 3] [--markdown FILE] [--json FILE] [--routers SPEC ...]

One backend, one router at a time, in turn, repeated; the router alone on core 1, client and backend on core 0. CPU is
user + system time of the router's processes from /proc. Added latency is the difference of two short runs, through the
router and to the backend itself, one right after the other. Each figure is the median of the repeats; what is compared
is always from the same repeat. Then: exact tokens on growing sessions with a warm index of --blocks blocks, the cost
split by stage, and 10,000 streams at once. Nothing here says where requests should go: see `prefix-router loadtest
compare`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import signal
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import peer_load as load
import peer_report as report
import uvloop
from peer_stages import stages
from peer_text import chat, session_bodies

from loadtest.compare.contenders import TUNED, Contender, contenders
from loadtest.compare.fleet import Fleet
from loadtest.compare.routers import Launcher
from loadtest.processes import Child, StartError, cpu_seconds, free_port, rss_bytes

ROOT = Path(__file__).parents[2]
MODEL_DIR = ROOT / ".cache" / "tokenizers" / "qwen3"
ROUTERS = (
    "nginx:round_robin",
    "sglang-router:round_robin",
    "sglang-router:cache_aware",
    "smg:round_robin",
    "smg:cache_aware",
    "vllm-router:consistent_hash",
    "vllm-router:cache_aware",
    "round_robin",
    "prefix",
)
assert TUNED  # thresholds change where requests go, not what they cost: peers run with their defaults
REPLICAS = 4
EVENTS, STREAMS = 200, 64
MAX_RATE = 500.0
"""Requests a second of the latency measurement, at most: above it the client and the backend, on one core, add more
than the router does."""
PAIRS, PAIR_S = 6, 0.6


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Processes started inside run on that core alone, where there is more than one."""
    cores = os.sched_getaffinity(0)
    wanted = {core} if core in cores else cores
    os.sched_setaffinity(0, wanted)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@contextlib.asynccontextmanager
async def backend(model: str, blocks: int = 0) -> AsyncIterator[tuple[Child, list[str]]]:
    argv = [sys.executable, str(Path(__file__).with_name("peer_backend.py")), str(REPLICAS), model, str(blocks)]
    with on_core(0):
        child = Child("backend", argv, {"PYTHONPATH": str(ROOT)})
        async with child:
            yield child, await child.printed(r"^(http://\S+)", REPLICAS)


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.small = [load.post(chat(2_000, seed)) for seed in range(64)]
        self.large = [load.post(chat(64_000, seed)) for seed in range(64)]
        self.stream = load.post(chat(2_000, 1, stream=EVENTS))
        self.launcher = Launcher(ROOT / ".cache" / "peers", say)

    async def peers(self, chosen: Sequence[Contender]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        async with backend("m") as (_, urls):
            fleet = Fleet(urls, "m", None, None)
            for repeat in range(self.args.repeats):
                shift = repeat * len(chosen) // self.args.repeats
                for each in [*chosen[shift:], *chosen[:shift]]:
                    try:
                        row = await self._one(each, fleet)
                    except (StartError, TimeoutError) as error:
                        say(f"FAILED {each.label}: {error}")
                        continue
                    rows.append({"router": each.label, "repeat": repeat, **row})
                    say(report.line(rows[-1]))
        return rows

    async def _one(self, each: Contender, fleet: Fleet) -> dict[str, Any]:
        with on_core(1):
            context = self.launcher.start(each, fleet)
            router = await context.__aenter__()
        try:
            with on_core(0):
                port = port_of(router.url)
                row: dict[str, Any] = {}
                for name, requests in (("us_2k", self.small), ("us_64k", self.large)):
                    row[name], row[f"errors_{name}"] = await self._cpu(router.pid, port, requests)
                row["us_event"], row["errors_event"] = await self._per_event(router.pid, port)
                row["rate"] = rate = float(min(round(0.5e6 / row["us_2k"] / 50) * 50, MAX_RATE))
                row["added_p50_ms"], row["added_p99_ms"] = await self._added(port, port_of(fleet.urls[0]), rate)
                row["rss_mb"] = rss_bytes(router.pid) / 1e6
                return row
        finally:
            await context.__aexit__(None, None, None)

    async def _cpu(self, pid: int, port: int, requests: Sequence[bytes]) -> tuple[float, int]:
        """Microseconds a request, and errors."""
        await load.closed(port, requests, 16, 0.4)
        before = cpu_seconds(pid)
        tally = await load.closed(port, requests, 16, self.args.seconds)
        return (cpu_seconds(pid) - before) / len(tally.latencies) * 1e6, len(tally.errors)

    async def _added(self, port: int, backend_port: int, rate: float) -> tuple[float, float]:
        """Milliseconds at the median and at the 99th percentile: each the median over pairs of runs."""
        differences = []
        for _ in range(PAIRS):
            through, direct = [
                (await load.paced(each, self.small, rate, PAIR_S)).latencies for each in (port, backend_port)
            ]
            differences.append([1000 * (percentile(through, p) - percentile(direct, p)) for p in (0.5, 0.99)])
        p50, p99 = (statistics.median(each) for each in zip(*differences, strict=True))
        return p50, p99

    async def _per_event(self, pid: int, port: int) -> tuple[float, int]:
        before = cpu_seconds(pid)
        tally = await load.streams(port, self.stream, STREAMS)
        missing = STREAMS * EVENTS - tally.events
        return (cpu_seconds(pid) - before) / max(tally.events, 1) * 1e6, len(tally.errors) + missing

    async def exact(self) -> dict[str, Any] | None:
        """Growing sessions under `prefix` with the real tokenizer and a warm index."""
        if not (MODEL_DIR / "tokenizer.json").is_file():
            say(f"SKIPPED exact tokens: no {MODEL_DIR} (python tests/prompt/fetch_tokenizers.py qwen3)")
            return None
        blocks = self.args.blocks
        async with backend("m", blocks) as (engine, urls):
            events = (await engine.printed(r"^events (\S+)"))[0]
            admin = free_port()
            with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
                replicas = [{"url": url} for url in urls]
                replicas[0]["events"] = {"endpoint": events}  # type: ignore[assignment]
                json.dump({"replicas": replicas, "models": [{"name": "m", "files": str(MODEL_DIR)}]}, file)
                file.flush()
                argv = [sys.executable, "-m", "router.cli", "serve", f"--config={file.name}", "--port=0"]
                with on_core(1):
                    child = Child("prefix, exact", [*argv, f"--admin-port={admin}"])
                    await child.__aenter__()
                try:
                    with on_core(0):
                        url = (await child.printed(r"listening on (\S+)"))[0]
                        await child.answers(f"{url}/ready")
                        await quiet(child.pid)  # reading the tokenizer takes twice what it leaves
                        cold = rss_bytes(child.pid)
                        os.kill(engine.pid, signal.SIGUSR1)
                        held = await self._warm(admin, blocks)
                        await quiet(child.pid)
                        row: dict[str, Any] = {"blocks": held, "rss_index_mb": (rss_bytes(child.pid) - cold) / 1e6}
                        for name, size in (("us_2k", 2_000), ("us_64k", 64_000)):
                            row[name], row[f"errors_{name}"] = await self._growing(child.pid, port_of(url), size)
                        row["rss_mb"] = rss_bytes(child.pid) / 1e6
                finally:
                    await child.__aexit__(None, None, None)
        say(f"exact tokens, {held:,} blocks: {row}")
        return row

    async def _warm(self, admin: int, blocks: int) -> int:
        async with asyncio.timeout(180), aiohttp.ClientSession() as http:
            while True:
                async with http.get(f"http://127.0.0.1:{admin}/metrics") as response:
                    page = await response.text()
                held = int(max((float(x.split()[-1]) for x in page.splitlines() if x.startswith(INDEX)), default=0))
                if held >= blocks:
                    return held
                await asyncio.sleep(0.5)

    async def _growing(self, pid: int, port: int, size: int) -> tuple[float, int]:
        """Microseconds a step of sessions that are `size` bytes long on average and grow by 500 tokens a step."""
        sessions = [session_bodies(size, seed) for seed in range(self.args.sessions)]
        first = await load.sequences(port, [[load.post(bodies[0])] for bodies in sessions])
        before = cpu_seconds(pid)
        tally = await load.sequences(port, [[load.post(body) for body in bodies[1:]] for bodies in sessions])
        return (cpu_seconds(pid) - before) / len(tally.latencies) * 1e6, len(tally.errors) + len(first.errors)

    async def many(self, spec: str) -> dict[str, Any]:
        """So many streams at once through one router, an event every 2 s each."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        [each] = self.launcher.prepare(contenders([spec]))
        count = min(self.args.streams, (limit - 200) // 2)
        if count < self.args.streams:
            say(f"REDUCED to {count} streams: a router needs two files a stream, and this system allows {limit}")
        request = load.post(chat(2_000, 1, stream=10), b"x-interval-ms: 2000\r\n")
        async with backend("m") as (_, urls):
            with on_core(1):
                context = self.launcher.start(each, Fleet(urls, "m", None, None))
                router = await context.__aenter__()
            try:
                with on_core(0):
                    before = cpu_seconds(router.pid)
                    watching = asyncio.create_task(peak(router.pid))
                    tally = await load.streams(port_of(router.url), request, count, opening_s=8.0)
                    watching.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await watching
            finally:
                most = PEAK.get(router.pid, 0)
                cpu = cpu_seconds(router.pid) - before
                await context.__aexit__(None, None, None)
        row = {
            "router": each.label, "streams": count, "wanted": self.args.streams, "errors": len(tally.errors),
            "events_missing": count * 10 - tally.events, "first_error": tally.errors[0] if tally.errors else None,
            "rss_mb": most / 1e6, "cpu_s": cpu,
        }  # fmt: skip
        say(f"streams at once: {row}")
        return row


INDEX = "prefix_router_index_blocks"
PEAK: dict[int, int] = {}


async def quiet(pid: int) -> None:
    """Until a process uses less than a twentieth of a core, or a minute has passed."""
    for _ in range(60):
        before = cpu_seconds(pid)
        await asyncio.sleep(1.0)
        if cpu_seconds(pid) - before < 0.05:
            return


async def peak(pid: int) -> None:
    while True:
        PEAK[pid] = max(PEAK.get(pid, 0), rss_bytes(pid))
        await asyncio.sleep(0.5)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


async def run(args: argparse.Namespace) -> dict[str, Any]:
    bench = Bench(args)
    chosen = bench.launcher.prepare(contenders(args.routers))
    result: dict[str, Any] = {"seconds": args.seconds, "repeats": args.repeats}
    result["peers"] = await bench.peers(chosen)
    result["exact"] = await bench.exact() if args.sessions else None
    result["stages"] = await stages(MODEL_DIR, args.blocks) if result["exact"] else None
    result["many"] = [await bench.many(spec) for spec in args.many] if args.streams else []
    result["versions"] = bench.launcher.versions
    result["skipped"] = bench.launcher.skipped
    result["load_average"] = os.getloadavg()[0]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--routers", nargs="+", default=list(ROUTERS))
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--sessions", type=int, default=24, help="growing sessions; 0: none")
    parser.add_argument("--streams", type=int, default=10_000, help="at once; 0: none")
    parser.add_argument("--many", nargs="+", default=["prefix"], help="routers of the streams at once")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    result = uvloop.run(run(args))
    text = report.markdown(result)
    print(text)
    if args.markdown:
        args.markdown.write_text(text)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
