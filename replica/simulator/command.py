"""`prefix-router simulate`: simulated replicas to point a router at."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from .config import KINDS, MODEL_DIR, ReplicaConfig
from .events import DIALECTS
from .fleet import SimulatedFleet
from .timing import TIME_MODELS, time_model

DESCRIPTION = """\
Start simulated replicas: engines that behave like vLLM, SGLang or TGI from outside (exact prefix cache, continuous
batching, KV events, metrics) and answer with words instead of sense. For trying the router, tests and load tests.

examples:
  prefix-router simulate --replicas 4 --port 8101
  prefix-router simulate --kind sglang --block-size 64 --kv-blocks 4096
  prefix-router simulate --dialect array-0.22 --time-model 70b-4xh100 --time-scale 0.1
  curl -X POST localhost:8101/sim/faults -d '{"slow": 5}'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--replicas", type=int, default=4, metavar="N", help="how many (default 4)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument(
        "--port", type=int, default=8101, help="port of the first one; 0: any free ports (default 8101)"
    )
    parser.add_argument("--kind", choices=KINDS, default="vllm", help="which engine to imitate (default vllm)")
    parser.add_argument("--model", default="sim", help="served model name (default sim)")
    parser.add_argument("--lora", action="append", default=[], metavar="NAME", help="also serve this LoRA adapter")
    parser.add_argument(
        "--model-dir", type=Path, default=MODEL_DIR, help="tokenizer and template (default: a tiny one)"
    )
    parser.add_argument("--block-size", type=int, default=16, metavar="TOKENS", help="KV block or page (default 16)")
    parser.add_argument("--kv-blocks", type=int, default=2048, metavar="N", help="KV capacity in blocks (default 2048)")
    parser.add_argument("--max-num-seqs", type=int, default=256, metavar="N", help="sequences in a batch (default 256)")
    parser.add_argument(
        "--max-num-batched-tokens", type=int, default=8192, metavar="N", help="tokens in a step (default 8192)"
    )
    parser.add_argument(
        "--max-queued", type=int, default=0, metavar="N", help="waiting requests before 503; 0: no limit"
    )
    parser.add_argument(
        "--dialect", choices=DIALECTS, default=None, help="wire form of KV events (default: the newest)"
    )
    parser.add_argument("--bytes-hashes", action="store_true", help="events carry raw digests instead of integers")
    parser.add_argument("--no-events", action="store_true", help="publish no KV events")
    parser.add_argument("--time-model", choices=TIME_MODELS, default="8b-h100", help="whose speed (default 8b-h100)")
    parser.add_argument("--time-scale", type=float, default=1.0, metavar="X", help="0.1: ten times faster (default 1)")
    parser.add_argument("--replica-header", default="", metavar="NAME", help="name the replica in this response header")
    parser.add_argument("--record", type=int, default=0, metavar="N", help="keep the last N requests at /sim/requests")


def run(args: argparse.Namespace) -> int:
    try:
        config = ReplicaConfig(
            model=args.model,
            model_dir=args.model_dir,
            kind=args.kind,
            loras=tuple(args.lora),
            block_size=args.block_size,
            kv_blocks=args.kv_blocks,
            max_num_seqs=args.max_num_seqs,
            max_num_batched_tokens=args.max_num_batched_tokens,
            max_queued=args.max_queued,
            timing=time_model(args.time_model, args.time_scale),
            host=args.host,
            port=args.port,
            dialect=args.dialect or "",
            bytes_hashes=args.bytes_hashes,
            events=not args.no_events,
            record_requests=args.record,
            replica_header=args.replica_header,
        )
        fleet = SimulatedFleet(args.replicas, config)
    except Exception as error:  # bad values and unreadable model files alike: say it in one line
        sys.stderr.write(f"prefix-router simulate: {error}\n")
        return 2
    try:
        import uvloop
    except ImportError:
        return asyncio.run(_serve(fleet))
    return int(uvloop.run(_serve(fleet)))


async def _serve(fleet: SimulatedFleet) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        await fleet.start()
    except OSError as error:
        sys.stderr.write(f"prefix-router simulate: {error}. Choose another --port, or --port 0 for any free ones\n")
        return 1
    sys.stdout.write(_summary(fleet))
    sys.stdout.flush()
    await stop.wait()
    await fleet.stop()
    return 0


def _summary(fleet: SimulatedFleet) -> str:
    config = fleet[0].config
    lines = [f"{len(fleet)} simulated {config.kind} replicas, model {config.model!r}; Ctrl-C stops them", ""]
    for replica in fleet:
        events = f"  events {replica.events_endpoint}  replay {replica.replay_endpoint}" if config.publishes else ""
        lines.append(f"  {replica.url}{events}")
    lines += ["", "for the router's configuration:", "", "replicas:"]
    for replica in fleet:
        lines.append(f"  - url: {replica.url}")
        if config.publishes:
            lines.append(
                f'    events: {{endpoint: "{replica.events_endpoint}", replay_endpoint: "{replica.replay_endpoint}", '
                f'topic: "{config.topic}"}}'
            )
    return "\n".join(lines) + "\n\n"
