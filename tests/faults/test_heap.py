"""Threads of a serving process share one heap (see router.heap)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, threading
from router.heap import one_heap

if sys.argv[1] == "one":
    one_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
found = []
thread = threading.Thread(target=lambda: found.append(libc.malloc(64)))
thread.start()
thread.join()
(heap,) = [line.split()[0] for line in open("/proc/self/maps") if line.rstrip().endswith("[heap]")]
begin, end = (int(bound, 16) for bound in heap.split("-"))
print(begin <= found[0] < end)
"""


@pytest.mark.parametrize(
    ("how", "given", "shared"),
    [("one", {}, "True"), ("many", {}, "False"), ("one", {"MALLOC_ARENA_MAX": "8"}, "False")],
)
def test_threads_share_the_heap_unless_the_system_is_told_otherwise(
    how: str, given: dict[str, str], shared: str
) -> None:
    env = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"} | given
    ran = subprocess.run([sys.executable, "-c", PROGRAM, how], env=env, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == shared
