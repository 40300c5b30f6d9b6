"""What the prompt stage costs: `python tests/bench/bench_prompt.py MODEL_DIR...` (default: downloaded Qwen3).

1. A growing agent session: CPU of the whole stage (parse, prepare) at about 32k tokens with about 500 new ones.
2. Ids of a step of a 100k-token session, against tokenizing it whole.
3. The longest stall of the event loop while 100k-token prompts arrive, never seen before.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from router.blocks import TOKEN_BYTES
from router.prompt.model import ChatModel, load_model
from router.prompt.requests import parse_request
from router.prompt.stage import ModelSpec, PromptStage
from router.prompt.tokenizer import SegmentTokenizer

ROOT = Path(__file__).parents[2]
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "router").rglob("*.py")))
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


def stage_for(model: ChatModel) -> PromptStage:
    fresh = ChatModel(SegmentTokenizer(model.tokenizer._tokenizer), *_parts(model))
    return PromptStage({"m": ModelSpec("m", fresh)})


def _parts(model: ChatModel) -> tuple[dict[str, str], dict[str, str]]:
    return {name: one.source for name, one in model._templates.items()}, model.special_tokens


async def growing(model: ChatModel, tokens: int) -> None:
    stage = stage_for(model)
    messages = session(tokens + 20 * 500, 500)
    base = len(messages) - 40
    await stage.prepare(parse_request("/v1/chat/completions", body_of(messages[:base])))
    cpu: list[float] = []
    parts: list[float] = []
    length = 0
    for k in range(20):
        body = body_of(messages[: base + 2 * (k + 1)])
        gc.collect()
        started = time.process_time()
        request = parse_request("/v1/chat/completions", body)
        parsed = time.process_time()
        prompt = await stage.prepare(request)
        cpu.append(time.process_time() - started)
        parts.append(parsed - started)
        length = prompt.tokens
        assert prompt.exact, prompt.reason
    print(
        f"  step at {length} tokens ({len(body) >> 10} kB, {len(messages)} messages): stage CPU median "
        f"{statistics.median(cpu) * 1e3:.2f} ms, max {max(cpu) * 1e3:.2f} ms, "
        f"of it parse {statistics.median(parts) * 1e3:.2f} ms"
    )
    stage.close()


def ids_of_step(model: ChatModel) -> None:
    messages = session(100_000, 500)
    whole_text = model.render(messages, TOOLS)
    fresh = SegmentTokenizer(model.tokenizer._tokenizer)
    started = time.perf_counter()
    expected = model.tokenizer._tokenizer.encode(whole_text, add_special_tokens=False)
    whole = time.perf_counter() - started
    fresh.encode(model.render(messages[:-2], TOOLS))
    started = time.perf_counter()
    packed = fresh.encode(whole_text)
    step = time.perf_counter() - started
    assert len(packed) // TOKEN_BYTES == len(expected.ids)
    share = f"{step * 1e3:.2f} ms = {step / whole:.1%}"
    print(f"  ids at {len(expected.ids)} tokens: whole {whole * 1e3:.0f} ms, step {share}")


async def stalls(model: ChatModel) -> None:
    stage = stage_for(model)
    bodies = [body_of(session(100_000, 2000, seed=1_000_000 * (i + 1))) for i in range(4)]
    gaps: list[float] = []
    running = True

    async def heartbeat() -> None:
        last = time.perf_counter()
        while running:
            await asyncio.sleep(0)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    beat = asyncio.create_task(heartbeat())
    started = time.perf_counter()
    for body in bodies:
        request = parse_request("/v1/chat/completions", body)
        prompt = await stage.prepare(request)
    took = time.perf_counter() - started
    running = False
    await beat
    gaps.sort()
    print(
        f"  4 new prompts of {prompt.tokens} tokens in {took:.2f} s: longest stall {gaps[-1] * 1e3:.2f} ms, "
        f"then {', '.join(f'{gap * 1e3:.2f}' for gap in gaps[-6:-1])} ms"
    )
    stage.close()


def main() -> None:
    directories = [Path(name) for name in sys.argv[1:]] or [ROOT / ".cache" / "tokenizers" / "qwen3"]
    for directory in directories:
        model = load_model(directory)
        print(directory.name)
        asyncio.run(growing(model, 32_000))
        ids_of_step(model)
        asyncio.run(stalls(model))


if __name__ == "__main__":
    main()
