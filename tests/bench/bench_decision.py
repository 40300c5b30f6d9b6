"""What one decision costs: session lookup and policy, over 8 to 512 replicas. CPU time of this thread."""

from __future__ import annotations

from collections.abc import Callable
from time import thread_time

from router.engines import EngineInfo
from router.fleet.replica import Replica
from router.routing.placement import Facts, Placement
from router.routing.policies import LeastLoad, Prefix
from router.routing.types import Candidate

BLOCK = 16
INFO = EngineInfo("vllm", ("m",), block_size=BLOCK, kv_tokens=400_000)


def microseconds(act: Callable[[], object], seconds: float = 0.3) -> float:
    count, began = 0, thread_time()
    while (spent := thread_time() - began) < seconds:
        act()
        count += 1
    return spent / count * 1e6


def main() -> None:
    print("replicas   look    prefix  least_load   sent+ended   (us, prompt of 2,048 blocks, 10,000 sessions)")
    for replicas in (8, 64, 512):
        clock = [0.0]
        placement = Placement(Prefix(), lambda clock=clock: clock[0])  # type: ignore[misc]
        candidates = [Candidate(Replica(f"r{n}", f"http://r{n}:1", info=INFO)) for n in range(replicas)]
        head = list(range(1, 1500))
        for session in range(10_000):
            clock[0] += 0.01
            chain = [*head, *range(session * 1000 + 10_000, session * 1000 + 10_500)]
            past = placement.look(Facts(chain, None, BLOCK, len(chain) * BLOCK), 1500 * BLOCK)
            sent = placement.sent(past, candidates[session % replicas])
            sent.first_byte(clock[0])
            sent.ended(clock[0])
        facts = Facts([*chain, *range(-48, 0)], None, BLOCK, 2048 * BLOCK)
        past = placement.look(facts, 1500 * BLOCK)
        held = [Candidate(c.replica, n % 3 * 8000) for n, c in enumerate(candidates)]
        least = LeastLoad()

        def book(placement: Placement = placement, past: object = past, held: list[Candidate] = held) -> None:
            placement.sent(past, held[0]).ended(200.0)  # type: ignore[arg-type]

        print(
            f"{replicas:8} {microseconds(lambda: placement.look(facts, 24_000)):6.1f} "  # noqa: B023
            f"{microseconds(lambda: placement.decide(past, held)):9.1f} "  # noqa: B023
            f"{microseconds(lambda: least.select(past.ask, held)):11.1f} {microseconds(book):12.1f}"  # noqa: B023
        )


if __name__ == "__main__":
    main()
