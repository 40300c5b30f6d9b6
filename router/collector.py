"""How the garbage collector is set in a process that serves requests."""

from __future__ import annotations

import gc


def settle_collector() -> None:
    """What was loaded so far stays for ever; look for cycles seldom. Call it once, when the process is ready to serve.

    A full collection would stop the loop for 10 ms to find that what was loaded stays. A request leaves no cycles, only
    a connection does: the default looks for them after every few requests, and a look at everything holds up the loop
    for hundreds of milliseconds. So that is rare, and the young are looked at in small portions.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 2, 1_000)
