"""The index backends that must pass the conformance suite."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from router.index.memory import MemoryIndex
from router.index.types import BlockIndex

MakeIndex = Callable[[int], BlockIndex]


def memory(max_blocks: int) -> BlockIndex:
    return MemoryIndex(max_blocks)


@pytest.fixture(params=[memory], ids=lambda make: make.__name__)
def make_index(request: pytest.FixtureRequest) -> MakeIndex:
    """max_blocks -> a new, empty index."""
    make: MakeIndex = request.param
    return make
