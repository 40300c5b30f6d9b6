"""What a replayed request costs, counted in executed lines: the same on every machine, busy or not."""

from __future__ import annotations

import sys
from collections import defaultdict
from functools import cache
from types import CodeType, FrameType
from typing import Any

from loadtest.replay.engine import Replay, Settings
from loadtest.replay.generate import WORKLOADS
from router.routing.policies import Prefix

REPLICAS, REQUESTS, WINDOW = 4, 1700, 250
EARLY, LATE = 500, 1400


@cache
def lines() -> dict[int, dict[str, float]]:
    """First request of a window -> function -> lines executed there per request of that window."""
    workload = WORKLOADS["agents"](REPLICAS, REQUESTS, block=64, mean_steps=4, system_tokens=1000)
    replay = Replay(workload, Prefix(), Settings(replicas=REPLICAS, kv_blocks=250))
    executed: defaultdict[CodeType, int] = defaultdict(int)
    told: dict[int, dict[str, float]] = {}
    before, add = sys.gettrace(), replay.outcome.add

    def count(frame: FrameType, _event: str, _arg: object) -> Any:
        executed[frame.f_code] += 1
        return count

    def added(*args: Any) -> None:
        add(*args)
        done = replay.outcome.requests
        if done in (EARLY, LATE):
            executed.clear()
            sys.settrace(count)
        elif done in (EARLY + WINDOW, LATE + WINDOW):
            sys.settrace(before)
            told[done - WINDOW] = {f"{code.co_qualname} {code}": n / WINDOW for code, n in executed.items()}

    replay.outcome.add = added  # type: ignore[method-assign]
    try:
        outcome = replay.run()
    finally:
        sys.settrace(before)
    assert outcome.evicted > 2 * REQUESTS, "the caches were never full"
    return told


def test_a_request_costs_no_more_the_more_there_were_before_it() -> None:
    """Tables grow; who looks through one of them for each request is told here long before the millionth."""
    early, late = lines()[EARLY], lines()[LATE]
    assert not {name: (early.get(name, 0), n) for name, n in late.items() if n > 1.3 * early.get(name, 0) + 80}


def test_a_request_costs_what_it_did() -> None:
    """4,100 lines when this was written."""
    assert sum(lines()[LATE].values()) <= 5_000
