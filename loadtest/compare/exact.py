"""Exact prefix chains for workloads that go to simulated replicas, whose tokenizer is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from loadtest.compare.fleet import BLOCK
from loadtest.types import CHAT, PrefixChain, Prompt, Session, Workload
from replica.simulator.config import MODEL_DIR
from replica.simulator.tokens import EngineTokenizer, load_tokenizer
from router.blocks import chain, root


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt whose chain was computed from its token ids, as the engine sees them."""

    prompt: Prompt
    known: PrefixChain

    @property
    def endpoint(self) -> str:
        return self.prompt.endpoint

    def body(self) -> dict[str, Any]:
        return self.prompt.body()

    def chain(self) -> PrefixChain:
        return self.known


def tokenized(workload: Workload) -> Workload:
    """The same requests, with chains over the simulated engine's blocks."""
    tokenizer = load_tokenizer(MODEL_DIR, "vllm")
    start = root("sim", block_size=BLOCK)
    sessions = [
        Session(
            session.id,
            [replace(step, prompt=_known(step.prompt, tokenizer, start)) for step in session.steps],
            session.start_s,
        )
        for session in workload.sessions
    ]
    return replace(workload, sessions=sessions)


def _known(prompt: Prompt, tokenizer: EngineTokenizer, start: int) -> TokenizedPrompt:
    body: Mapping[str, Any] = prompt.body()
    ids = tokenizer.chat(dict(body)) if prompt.endpoint == CHAT else tokenizer.encode(body["prompt"])
    return TokenizedPrompt(prompt, PrefixChain(chain(start, ids.tobytes(), BLOCK), BLOCK, len(ids), exact=True))


def distinct_blocks(workload: Workload) -> int:
    """Blocks of all prompts together, each once: the working set."""
    return len({key for session in workload.sessions for step in session.steps for key in step.prompt.chain().keys})


def largest_request(workload: Workload) -> int:
    """Blocks that the largest request needs, answer included."""
    return max(
        -(-(step.prompt.chain().total + step.max_tokens) // BLOCK)
        for session in workload.sessions
        for step in session.steps
    )
