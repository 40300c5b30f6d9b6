"""How the memory of a process that serves requests is managed: heap, cycles, what goes back to the system."""

from __future__ import annotations

import ctypes
import gc
import os

_M_ARENA_MAX = -8
"""glibc's malloc.h."""


def one_heap() -> None:
    """All threads allocate from one heap. Call it before there are threads; glibc only, else nothing.

    Else each thread that encodes prompts takes from a heap of its own, and what it left free there serves no other: 8
    MB with one model loaded. Few threads encode at a time, so they seldom wait for each other at the heap's lock. What
    `MALLOC_ARENA_MAX` says goes first.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None and "MALLOC_ARENA_MAX" not in os.environ:
        option(_M_ARENA_MAX, 1)


def settle_collector() -> None:
    """What was loaded so far stays for ever; look for cycles seldom. Call it once, when the process is ready to serve.

    A full collection would stop the loop for 10 ms to find that what was loaded stays. A request leaves no cycles, only
    a connection does: the default looks for them after every few requests, and a look at everything holds up the loop
    for hundreds of milliseconds. So that is rare, and the young are looked at in small portions.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 2, 1_000)


def give_back() -> None:
    """Free memory goes back to the system: reading a tokenizer leaves 40 to 100 MB of it. glibc only, else nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        gc.collect()
        trim(0)
