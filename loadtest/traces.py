"""Hash-id traces: Mooncake's format and the Bailian format (`chat_id`, `parent_chat_id`, `turn`).

| field | meaning |
|---|---|
| `timestamp` | arrival: milliseconds (Mooncake) or seconds (rows with `chat_id`) |
| `input_length`, `output_length` | tokens |
| `hash_ids` | one per block of the prompt, the last may be partly filled; names the block and all before it |
| `chat_id`, `parent_chat_id` | request and the one it continues, -1: first; absent: every row is a session of its own |

Blocks are 512 tokens in Mooncake and 16 in Bailian's format. Fewer `tokens_per_block` make a cheap replay with the same
sharing structure: lengths shrink in proportion.
"""

from __future__ import annotations

from array import array
from pathlib import Path

from loadtest.files import Row, read_lines
from loadtest.prompts import HashPrompt
from loadtest.types import COMPLETIONS, Session, Step, Workload, WorkloadError

MOONCAKE_BLOCK = 512
BAILIAN_BLOCK = 16


def load_hash_trace(
    path: str | Path,
    *,
    block_size: int | None = None,
    tokens_per_block: int | None = None,
    max_tokens: int | None = None,
    vocabulary: int | None = None,
    endpoint: str = COMPLETIONS,
    seed: int = 0,
) -> Workload:
    """Sessions of a trace, with its arrival times.

    block_size: tokens per hash id in the file; None: 16 where rows have `chat_id`, else 512.
    tokens_per_block: tokens per hash id to send; None: as in the file.
    max_tokens: output tokens per request; None: as recorded.
    vocabulary: send token ids below this number (exact lengths; needs completions); None: send words.
    Raises WorkloadError naming file, line and field.
    """
    rows = list(read_lines(path))
    linked = "chat_id" in rows[0].fields
    block = block_size or (BAILIAN_BLOCK if linked else MOONCAKE_BLOCK)
    sent = tokens_per_block or block
    if vocabulary is not None and endpoint != COMPLETIONS:
        raise WorkloadError(f"token-id prompts need --endpoint {COMPLETIONS}: chat messages cannot carry token ids")
    chains: dict[int, list[tuple[float, Step]]] = {}
    session_of: dict[int, list[tuple[float, Step]]] = {}
    for number, row in enumerate(rows):
        time_s, step = _step(row, block, sent, max_tokens, vocabulary, endpoint, seed, 1.0 if linked else 1000.0)
        chat = row.get("chat_id", int) if linked else number
        parent = row.get("parent_chat_id", int, -1) if linked else -1
        # A request whose parent was cut off with the trace's head starts a session of its own.
        steps = session_of.get(parent)
        if steps is None:
            steps = chains[number] = []
        steps.append((time_s, step))
        session_of[chat] = steps
    first = min(steps[0][0] for steps in chains.values())
    sessions = [
        Session(
            f"trace-{number}",
            [Step(step.prompt, step.max_tokens, offset_s=max(time_s - steps[0][0], 0.0)) for time_s, step in steps],
            steps[0][0] - first,
        )
        for number, steps in chains.items()
    ]
    sessions.sort(key=lambda session: session.start_s or 0.0)
    settings = {
        "file": Path(path).name,
        "block_size": block,
        "tokens_per_block": sent,
        "token_ids": vocabulary is not None,
    }
    return Workload("hash-trace", sessions, settings)


def _step(
    row: Row,
    block: int,
    sent: int,
    max_tokens: int | None,
    vocabulary: int | None,
    endpoint: str,
    seed: int,
    ticks_per_s: float,
) -> tuple[float, Step]:
    tokens = row.count("input_length", 1)
    output = row.count("output_length", 0)
    ids = row.get("hash_ids", list)
    needed = -(-tokens // block)
    if not needed - 1 <= len(ids) <= needed:
        raise row.error(
            "hash_ids",
            f"has {len(ids)} ids, but {tokens} tokens in blocks of {block} need {needed}; set --block-size",
        )
    try:
        packed = array("q", ids)
    except (TypeError, OverflowError):
        raise row.error("hash_ids", "must hold integers of at most 64 bits") from None
    full, rest = divmod(tokens, block)
    length = full * sent + (-(-rest * sent // block) if len(ids) > full else 0)
    time_s = row.get("timestamp", (int, float)) / ticks_per_s
    prompt = HashPrompt(packed, max(length, 1), sent, seed, vocabulary, endpoint)
    return time_s, Step(prompt, max_tokens or max(output, 1))
