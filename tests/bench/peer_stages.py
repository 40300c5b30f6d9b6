"""What each stage of a request costs in-process, on the same growing sessions: CPU microseconds a step."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peer_text import session_bodies

from router.blocks import chain, root
from router.engines import EngineInfo
from router.fleet.replica import Feed, Health, Replica
from router.index.memory import MemoryIndex
from router.index.types import Delta, Tier
from router.prompt.model import load_model
from router.prompt.requests import parse_request
from router.prompt.stage import ModelSpec, PromptStage
from router.routing.policies import POLICIES
from router.routing.types import Ask, Candidate

BLOCK = 16


async def stages(model_dir: Path, blocks: int) -> dict[str, dict[str, float]]:
    model = load_model(model_dir)
    index = MemoryIndex(max_blocks=2 * blocks)
    replicas = []
    info = EngineInfo("vllm", ("m",), block_size=BLOCK)
    for place in range(4):
        name = f"r{place}"
        replicas.append(
            Replica(name, f"http://{name}", "vllm", info=info, health=Health.UP, reason="", feed=Feed.EVENTS)
        )
        index.add_replica(name)
    source = random.Random(1)
    for _ in range(0, blocks, 10_000):
        index.apply("r0", Delta(stored={Tier.DEVICE: [source.getrandbits(64) for _ in range(10_000)]}))
    policy = POLICIES["prefix"]()
    result: dict[str, dict[str, float]] = {}
    for name, size in (("2 kB", 2_000), ("64 kB", 64_000)):
        stage = PromptStage({"m": ModelSpec("m", model)})
        spent: dict[str, float] = {}
        steps = 0

        def timed(what: str, work: Callable[[], Any], spent: dict[str, float] = spent) -> Any:
            begun = time.process_time()
            answer = work()
            spent[what] = spent.get(what, 0.0) + time.process_time() - begun
            return answer

        gc.disable()
        for seed in range(500, 512):
            bodies = session_bodies(size, seed)
            await stage.prepare(parse_request("/v1/chat/completions", bodies[0]))
            for body in bodies[1:]:
                request = timed("parse", lambda body=body: parse_request("/v1/chat/completions", body))
                begun = time.process_time()
                prompt = await stage.prepare(request)
                whole = time.process_time() - begun
                start = root("m", block_size=BLOCK)
                keys = timed("hash the blocks", lambda ids=prompt.ids, start=start: chain(start, ids, BLOCK))
                spent["render and tokenize"] = spent.get("render and tokenize", 0.0) + whole
                matches = timed("look up", lambda keys=keys: index.match(keys))
                candidates = [Candidate(r, matches[r.id].blocks * BLOCK if r.id in matches else 0) for r in replicas]
                ask = Ask(prompt.tokens, prompt.hittable_blocks * BLOCK, None)
                timed("decide", lambda ask=ask, candidates=candidates: policy.select(ask, candidates))
                index.apply("r1", Delta(stored={Tier.DEVICE: list(keys)}))
                steps += 1
        gc.enable()
        stage.close()
        spent["render and tokenize"] -= spent["hash the blocks"]
        result[name] = {what: seconds / steps * 1e6 for what, seconds in spent.items()}
    return result
