"""What sessions, breaks and attribution cost: `python tests/bench/bench_observe.py [MODEL_DIR]`.

A growing agent session at about 32k tokens, 250 messages, 500 new tokens a step: CPU of the prompt stage and of what
the observer does with the same request, in pairs; and the same where every step breaks the prefix in the system prompt.
Fails if finding the session's step and its break takes 5 % of the stage or more.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from bench_prompt import body_of, session, text_of

from router.fleet.replica import Replica
from router.observe.digest import Digester
from router.observe.metrics import Metrics
from router.observe.observer import Dispatch, Observer
from router.observe.past import Past, Standing
from router.observe.sessions import Asked, Session, Sessions, Step
from router.prompt.model import load_model
from router.prompt.requests import parse_request
from router.prompt.stage import ModelSpec, PromptStage
from router.proxy.plan import Outcome
from router.proxy.watch import Usage

ROOT = Path(__file__).parents[2]
STEPS = 40


def observer() -> Observer:
    return Observer(
        Metrics(lambda: iter(())), Sessions(Digester()), Past(lambda entry: Standing()), rate=lambda replica: 8000.0
    )


async def run(name: str, files: Path, broken: bool) -> float:
    stage = PromptStage({"m": ModelSpec("m", load_model(str(files), fast=False))})
    watching = observer()
    messages = session(32_000 + STEPS * 500, 500)
    base = len(messages) - 2 * STEPS
    replica = Replica("r", "http://r")
    stages: list[float] = []
    whole: list[float] = []
    steps: list[float] = []
    found = watching.sessions.step

    def timed(asked: Asked) -> tuple[Session, Step]:
        started = time.process_time()
        session_and_step = found(asked)
        steps.append(time.process_time() - started)
        return session_and_step

    watching.sessions.step = timed  # type: ignore[method-assign]
    for k in range(STEPS):
        sent: list[dict[str, Any]] = messages[: base + 2 * k]
        if broken:
            sent = [{"role": "system", "content": f"It is 10:00:{k:02d}. " + text_of(6000, 0)}, *sent[1:]]
        body = body_of(sent)
        gc.collect()
        started = time.process_time()
        request = parse_request("/v1/chat/completions", body)
        prompt = await stage.prepare(request)
        prepared = time.process_time()
        dispatch = Dispatch(
            request, "/v1/chat/completions", f"id{k}", "", "m", prompt, replica, "r", "prefix",
            prompt.tokens // 2, prompt.tokens // 2, True, [], "s", True, seconds={"parse": 0.001},
        )  # fmt: skip
        begun = time.process_time()
        seen = watching.sent(dispatch)
        seen.headers()
        outcome = Outcome("r", 200, ttft_s=0.1, total_s=0.2, usage=Usage(prompt.tokens, 4, prompt.tokens // 2))
        watching.done(seen, outcome, 200)
        ended = time.process_time()
        assert (seen.broken is not None) is (broken and k > 0)
        stages.append(prepared - started)
        whole.append(ended - begun)
    shares = [statistics.median(a / b for a, b in zip(part[1:], stages[1:], strict=True)) for part in (steps, whole)]
    print(
        f"  {name}, {prompt.tokens} tokens, {len(sent)} messages: stage {statistics.median(stages[1:]) * 1e3:.2f} ms; "
        f"session and break {statistics.median(steps[1:]) * 1e6:.0f} us ({shares[0]:.1%} of it), whole observer "
        f"{statistics.median(whole[1:]) * 1e6:.0f} us ({shares[1]:.1%}); record {watching.sessions.bytes >> 10} kB"
    )
    stage.close()
    return shares[0]


def main() -> None:
    given = [Path(argument) for argument in sys.argv[1:]]
    cached = ROOT / ".cache" / "tokenizers" / "qwen3"
    files = given[0] if given else cached if cached.exists() else ROOT / "replica" / "simulator" / "model"
    print(files.name)
    shares = [
        asyncio.run(run("extending", files, broken=False)),
        asyncio.run(run("breaking every step", files, broken=True)),
    ]
    sys.exit(max(shares) >= 0.05)


if __name__ == "__main__":
    main()
