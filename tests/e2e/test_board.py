"""The memory that workers share: what a reader sees while another process writes is whole or not there."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.board import LARGEST_MESSAGE, RING_BYTES, STATE_BYTES, Board, make_board

WRITER = """
import sys
from router.board import Board
reader, row = Board(int(sys.argv[1]), 2).rows
count = 0
while reader.heard() != b"enough":
    count += 1
    row.tell(b"%06d" % count * (1 + count % 5000))
    row.say(b"%06d" % count * (1 + count % 700))
row.tell(b"done")
"""


@pytest.fixture
def board() -> Iterator[int]:
    made = make_board(2)
    yield made
    os.close(made)


def test_nothing_torn_is_read_while_another_process_writes(board: int) -> None:
    own, row = Board(board, 2).rows
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(board)], pass_fds=(board,))
    states, messages, last = 0, 0, -1
    state: bytes | None = b""
    while state != b"done":
        state = row.heard()
        if state not in (None, b"", b"done"):
            assert state == state[:6] * (1 + int(state[:6]) % 5000)
            states += 1
        for message in row.said():
            count = int(message[:6])
            assert message == message[:6] * (1 + count % 700)
            assert count > last, "in the order in which they were said"
            last, messages = count, messages + 1
        if states > 200 and messages > 200:
            own.tell(b"enough")
    assert writer.wait() == 0
    row.clear()
    assert row.heard() == b"" and row.heard() is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, RING_BYTES // 5), max_size=40), st.randoms(use_true_random=False))
def test_messages_come_whole_and_in_order_or_are_lost_when_overrun(sizes: list[int], chance: random.Random) -> None:
    made = make_board(1)
    try:
        writer, reader = Board(made, 1).rows[0], Board(made, 1).rows[0]
        waiting: list[bytes] = []
        for number, size in enumerate(sizes):
            message = b"%d" % number * (size // 2)
            writer.say(message)
            if len(message) <= LARGEST_MESSAGE:
                waiting.append(message)
            if chance.random() < 0.4:
                held = sum(len(each) + 16 for each in waiting)
                assert list(reader.said()) == (waiting if held <= RING_BYTES else [])
                waiting.clear()
    finally:
        os.close(made)


def test_what_does_not_fit_is_refused(board: int) -> None:
    row = Board(board, 2).rows[0]
    with pytest.raises(ValueError, match="larger than"):
        row.tell(b"x" * (STATE_BYTES + 1))
