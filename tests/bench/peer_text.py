"""Bodies for peers.py: chats of a given size, half of it a shared system prompt, made of the router's own text."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "router").rglob("*.py")))
CHARS_PER_TOKEN = 4.2
"""Of SOURCE under Qwen3's tokenizer, about."""
STEP_TOKENS = 500


def text_of(chars: int, seed: int) -> str:
    """Code-like text that no other seed gives."""
    at = random.Random(seed).randrange(len(SOURCE) - chars)
    return f"# {seed}\n{SOURCE[at : at + chars]}"


def chat(size: int, seed: int, stream: int = 0) -> bytes:
    """A body of about `size` bytes; with `stream`, for so many events."""
    half = int((size - 150) * 0.47)
    body: dict[str, Any] = {
        "model": "m",
        "messages": [
            {"role": "system", "content": text_of(half, 0)},
            {"role": "user", "content": text_of(half, seed + 1)},
        ],
    }
    if stream:
        body |= {"stream": True, "max_tokens": stream}
    return json.dumps(body, separators=(",", ":")).encode()


def session_bodies(size: int, seed: int, steps: int = 8) -> list[bytes]:
    """One growing session: its first body (to warm up) and `steps` more, of `size` bytes on average."""
    grown = int(STEP_TOKENS * CHARS_PER_TOKEN)
    first = max(int(size / 1.06 - grown * steps / 2), 200)
    messages = [{"role": "user", "content": text_of(first, 1000 + seed)}]
    bodies = []
    for step in range(steps + 1):
        bodies.append(json.dumps({"model": "m", "messages": messages}, separators=(",", ":")).encode())
        messages += [
            {"role": role, "content": text_of(grown // 2, 100_000 * (seed + 1) + 10 * step + len(role))}
            for role in ("assistant", "user")
        ]
        if size < grown * steps:  # a short session is many first steps: always the same two lengths
            messages = messages[:1] if step % 2 else messages
    return bodies
