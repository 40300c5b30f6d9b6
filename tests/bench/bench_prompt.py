"""What the prompt stage costs: `python tests/bench/bench_prompt.py MODEL_DIR...` (default: downloaded Qwen3).

1. A growing agent session: CPU of the whole stage (parse, render, tokenize, hash, look up) at about 32k tokens, all but
   about 500 of which were seen before.
2. Ids of a step of a 100k-token session, against tokenizing it whole.
3. The longest stall of the event loop while four 100k-token prompts, never seen before, arrive at once.
4. The same while two histories of 7,500 short messages arrive, and while one request with 20,000 prompts is prepared.

Each goal gets a yes or a no. A stall is judged by what this process did in it: the loop's own CPU time is the least
that it was, the smaller of wall time and all threads' CPU time the most. The wall time alone says what the machine's
other work adds, for which an idle loop's longest gap is given.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from router.blocks import TOKEN_BYTES
from router.index.memory import MemoryIndex
from router.index.types import Delta, Tier
from router.prompt.model import ChatModel, load_model
from router.prompt.requests import parse_request
from router.prompt.stage import ModelSpec, PromptStage, Took

ROOT = Path(__file__).parents[2]
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "router").rglob("*.py")))
# For a model without a template of its own: each message between its marks, as such models' templates do.
MARKED = (
    "{% for message in messages %}{{ bos_token }}{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}\n{{ call | tojson }}{% endfor %}{{ eos_token }}{% endfor %}"
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": f"tool_{i}",
            "description": "Does one thing and does it well. " * 6,
            "parameters": {"type": "object", "properties": {"path": {"type": "string", "description": "a path"}}},
        },
    }
    for i in range(12)
]


def text_of(chars: int, seed: int) -> str:
    """Code-like text that no other seed gives."""
    at = random.Random(seed).randrange(max(1, len(SOURCE) - chars))
    base = SOURCE[at : at + chars]
    while len(base) < chars:
        base += SOURCE[: chars - len(base)]
    return f"# {seed}\n" + base


class Gap(NamedTuple):
    """Seconds between two turns of the loop: by the clock, the loop's own CPU, all threads' CPU."""

    wall: float
    own: float
    all: float

    @property
    def most(self) -> float:
        return min(self.wall, self.all)


def goal(met: bool) -> str:
    return "yes" if met else "NO"


def session(tokens: int, step_tokens: int, seed: int = 0) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": text_of(6000, seed)}]
    messages.append({"role": "user", "content": text_of(2000, seed + 1)})
    steps = tokens // step_tokens
    for i in range(steps):
        call = {
            "id": f"c{i}",
            "type": "function",
            "function": {"name": "tool_1", "arguments": json.dumps({"path": f"{i}"})},
        }
        messages.append({"role": "assistant", "content": text_of(400, seed + 10 * i), "tool_calls": [call]})
        result = text_of(int(step_tokens * 3.4) - 500, seed + 10 * i + 5)
        messages.append({"role": "tool", "tool_call_id": f"c{i}", "content": result})
    return messages


def body_of(messages: list[dict[str, Any]]) -> bytes:
    return json.dumps({"model": "m", "messages": messages, "tools": TOOLS, "max_tokens": 100}).encode()


async def growing(model: ChatModel, tokens: int, limit_ms: float, rounds: int = 6) -> None:
    """Half of the rounds collect garbage before each step, which leaves the CPU's caches cold; half go on at once."""
    messages = session(tokens + 20 * 500, 500)
    base = len(messages) - 40
    cpu: dict[bool, list[float]] = {True: [], False: []}
    laps: dict[str, list[float]] = {}
    lengths: list[int] = []
    for round_ in range(rounds):
        cold = round_ % 2 == 0
        model.tokenizer.forget()
        stage = PromptStage({"m": ModelSpec("m", model)})
        index = MemoryIndex()
        before = await stage.prepare(parse_request("/v1/chat/completions", body_of(messages[:base])))
        for replica in range(8):
            index.add_replica(f"r{replica}")
            index.apply(f"r{replica}", Delta(stored={Tier.DEVICE: before.chain}))
        bodies = [body_of(messages[: base + 2 * (k + 1)]) for k in range(20)]
        gc.collect()
        gc.freeze()  # as the router does when it has started
        for body in bodies:
            if cold:
                gc.unfreeze()
                gc.collect()
            took = Took()
            started = time.process_time()
            request = parse_request("/v1/chat/completions", body)
            took.lap("parse")
            prompt = await stage.prepare(request, took=took)
            index.match(prompt.chain)
            took.lap("look up")
            cpu[cold].append(time.process_time() - started)
            for name, seconds in took.seconds.items() if cold else ():
                laps.setdefault(name, []).append(seconds)
            lengths.append(prompt.tokens)
            assert prompt.exact, prompt.reason
        gc.unfreeze()
        stage.close()
    parts = ", ".join(f"{name} {statistics.median(seconds) * 1e3:.2f}" for name, seconds in laps.items())
    print(f"  step at {min(lengths)} to {max(lengths)} tokens ({len(body) >> 10} kB, {len(messages)} messages), CPU:")
    for cold, what in ((False, "one step after the other"), (True, "after a full garbage collection each")):
        median = statistics.median(cpu[cold]) * 1e3
        best = min(cpu[cold]) * 1e3
        print(f"    {what}: median {median:.2f} ms, best {best:.2f} ms; under {limit_ms} ms: {goal(median < limit_ms)}")
    print(f"    wall medians of the latter, ms: {parts}")


def ids_of_step(model: ChatModel, tokenizer: Tokenizer) -> None:
    messages = session(115_000, 500)
    whole_text = model.render(messages, TOOLS)
    before = model.render(messages[:-2], TOOLS)
    shares: list[tuple[float, float, float]] = []
    for _ in range(5):
        model.tokenizer.forget()
        model.tokenizer.encode(before)
        started = time.thread_time()
        packed = model.tokenizer.encode(whole_text)
        step = time.thread_time() - started
        model.tokenizer.forget()
        started = time.thread_time()
        assert model.tokenizer.encode(whole_text) == packed
        whole = time.thread_time() - started
        shares.append((step / whole, step, whole))
    share, step, whole = sorted(shares)[len(shares) // 2]
    expected = tokenizer.encode(whole_text, add_special_tokens=False)
    assert len(packed) // TOKEN_BYTES == len(expected.ids)
    print(
        f"  ids at {len(expected.ids)} tokens: whole {whole * 1e3:.0f} ms, step {step * 1e3:.2f} ms = {share:.1%}; "
        f"at most 5 %: {goal(share <= 0.05)}"
    )


async def heartbeat(gaps: list[Gap]) -> None:
    """Notes each turn of the loop, until cancelled."""
    last = time.perf_counter(), time.thread_time(), time.process_time()
    while True:
        await asyncio.sleep(0)
        now = time.perf_counter(), time.thread_time(), time.process_time()
        gaps.append(Gap(*(b - a for a, b in zip(last, now, strict=True))))
        last = now


async def watched(work: Awaitable[Any]) -> tuple[float, list[Gap]]:
    gaps: list[Gap] = []
    beat = asyncio.create_task(heartbeat(gaps))
    await asyncio.sleep(0)
    started = time.perf_counter()
    await work
    took = time.perf_counter() - started
    beat.cancel()
    return took, gaps


async def stalls(model: ChatModel, name: str, path: str, bodies: list[bytes]) -> None:
    model.tokenizer.forget()
    stage = PromptStage({"m": ModelSpec("m", model)})

    async def arrive(body: bytes) -> int:
        request = await stage.parse(path, body)
        await stage.check_ids(request, "m")
        return (await stage.prepare(request)).tokens

    gc.collect()
    gc.freeze()  # as the router does when it has started
    tokens = 0

    async def all_of_them() -> None:
        nonlocal tokens
        tokens = sum(await asyncio.gather(*map(arrive, bodies)))

    took, gaps = await watched(all_of_them())
    _, idle = await watched(asyncio.sleep(took))
    own, most, wall = (max(one) * 1e3 for one in zip(*((g.own, g.most, g.wall) for g in gaps), strict=True))
    quiet = max(gap.wall for gap in idle) * 1e3
    print(
        f"  {name}, {tokens} tokens in {took:.2f} s: longest stall {own:.1f} ms of the loop's CPU, at most "
        f"{most:.1f} ms; "
        f"wall {wall:.1f} ms, with an idle loop {quiet:.1f} ms; under 5 ms: {goal(own < 5)}"
    )
    gc.unfreeze()
    stage.close()


async def arrivals(model: ChatModel) -> None:
    chat = "/v1/chat/completions"
    long = [body_of(session(115_000, 2000, seed=1_000_000 * (i + 1))) for i in range(4)]
    await stalls(model, "4 new prompts at once", chat, long)
    short = [[{"role": ("user", "assistant")[i % 2], "content": f"{j} {i}"} for i in range(7500)] for j in range(2)]
    await stalls(model, "2 new histories of 7,500 short messages", chat, [body_of(one) for one in short])
    texts = [f"prompt {i}: {SOURCE[i * 7 : i * 7 + 60]}" for i in range(20_000)]
    await stalls(model, "20,000 prompts", "/v1/completions", [json.dumps({"model": "m", "prompt": texts}).encode()])
    await stalls(model, "20,000 inputs", "/v1/embeddings", [json.dumps({"model": "m", "input": texts}).encode()])
    ids = json.dumps({"model": "m", "prompt": [list(range(i % 7, 20)) for i in range(20_000)]}).encode()
    await stalls(model, "20,000 lists of ids", "/v1/completions", [ids])


def main() -> None:
    directories = [Path(name) for name in sys.argv[1:]] or [ROOT / ".cache" / "tokenizers" / "qwen3"]
    for directory in directories:
        for fast in (False, True):
            model = load_model(directory, fast=fast)
            if model.template_source is None:
                model = load_model(directory, fast=fast, chat_template=MARKED)
            if fast and not model.tokenizer.fast:
                print(f"{directory.name}: no fast backend")
                continue
            print(f"{directory.name}, {'tiktoken' if fast else 'tokenizers'}")
            asyncio.run(growing(model, 27_000, 1.5 if fast else 3.0))
            ids_of_step(model, Tokenizer.from_file(str(directory / "tokenizer.json")))
            asyncio.run(arrivals(model))


if __name__ == "__main__":
    main()
