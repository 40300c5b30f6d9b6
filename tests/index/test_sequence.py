"""The sequencer against a model publisher: whatever is lost, the ledger never names a block that is not there."""

from __future__ import annotations

import random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from router.index.sequence import Action, Apply, Clear, RequestReplay, Sequencer


def test_the_next_batch_is_applied_and_a_duplicate_is_not() -> None:
    sequencer = Sequencer(can_replay=False)
    assert sequencer.on_live(0, b"a") == [Apply(0, b"a")]
    assert sequencer.on_live(1, b"b") == [Apply(1, b"b")]
    assert sequencer.on_live(1, b"b") == []
    assert sequencer.on_live(0, b"a") == []


def test_live_batches_wait_for_the_replay() -> None:
    sequencer = Sequencer(can_replay=True)
    assert sequencer.on_connect() == [RequestReplay(0)]
    assert sequencer.on_live(2, b"c") == []
    assert sequencer.on_live(3, b"d") == []
    assert sequencer.on_replay(0, b"a") == [Apply(0, b"a")]
    assert sequencer.on_replay(1, b"b") == [Apply(1, b"b")]
    assert sequencer.on_replay(2, b"c") == [Apply(2, b"c")]
    assert sequencer.on_replay_end() == [Apply(3, b"d")]


def connected(*payloads: bytes) -> Sequencer:
    sequencer = Sequencer(can_replay=True)
    sequencer.on_connect()
    sequencer.on_replay_end()
    for seq, payload in enumerate(payloads):
        assert sequencer.on_live(seq, payload) == [Apply(seq, payload)]
    return sequencer


def test_a_restarted_publisher_that_passed_the_last_number_is_found_out() -> None:
    sequencer = connected(b"a", b"b")
    assert sequencer.on_connect() == [RequestReplay(1)]
    actions = sequencer.on_replay(1, b"other b")
    assert isinstance(actions[0], Clear)
    assert actions[1:] == [RequestReplay(0)]


def test_a_restarted_publisher_behind_the_last_number_is_found_out() -> None:
    sequencer = connected(b"a", b"b")
    sequencer.on_connect()
    actions = sequencer.on_replay_end()
    assert isinstance(actions[0], Clear)
    assert actions[1:] == [RequestReplay(0)]


def test_the_same_publisher_goes_on_after_a_reconnect() -> None:
    sequencer = connected(b"a", b"b")
    sequencer.on_connect()
    assert sequencer.on_replay(1, b"b") == []
    assert sequencer.on_replay(2, b"c") == [Apply(2, b"c")]
    assert sequencer.on_replay_end() == []
    assert sequencer.on_live(3, b"d") == [Apply(3, b"d")]


def test_a_sequence_that_goes_back_is_a_restart() -> None:
    sequencer = connected(b"a", b"b")
    actions = sequencer.on_live(0, b"x")
    assert isinstance(actions[0], Clear)
    assert actions[1:] == [RequestReplay(0)]
    assert sequencer.on_replay(0, b"x") == [Apply(0, b"x")]
    assert sequencer.on_replay_end() == []


def test_a_replay_that_does_not_reach_back_clears() -> None:
    sequencer = connected(b"a")
    assert sequencer.on_live(5, b"f") == [RequestReplay(0)]
    actions = sequencer.on_replay(3, b"d")
    assert isinstance(actions[0], Clear)
    assert actions[1:] == [Apply(3, b"d")]


def test_a_batch_lost_between_the_replay_and_the_first_live_one_is_asked_for() -> None:
    sequencer = Sequencer(can_replay=True)
    assert sequencer.on_connect() == [RequestReplay(0)]
    # The answer is empty. Batch 0 is published before the subscription arrives at the publisher, batch 1 after it.
    assert sequencer.on_live(1, b"b") == []
    assert sequencer.on_replay_end() == [RequestReplay(0)]
    assert sequencer.on_replay(0, b"a") == [Apply(0, b"a")]
    assert sequencer.on_replay_end() == [Apply(1, b"b")]


def test_a_hole_that_a_replay_cannot_fill_is_asked_for_once() -> None:
    sequencer = Sequencer(can_replay=True)
    sequencer.on_connect()
    sequencer.on_live(1, b"b")
    assert sequencer.on_replay_end() == [RequestReplay(0)]
    assert sequencer.on_replay_end() == [Apply(1, b"b")]
    assert not sequencer.replaying


def test_held_batches_are_bounded_and_asked_for_again() -> None:
    sequencer = Sequencer(can_replay=True, max_held=2)
    sequencer.on_connect()
    for seq in range(5):
        assert sequencer.on_live(seq, b"%d" % seq) == []
    assert sequencer.on_replay_end() == [Apply(0, b"0"), Apply(1, b"1"), RequestReplay(1)]


class Engine:
    """Publishes adds and removes of small numbers; knows what it holds. Its payloads are unique, as time stamps are."""

    def __init__(self, epoch: int, buffer_steps: int) -> None:
        self.epoch, self.buffer_steps = epoch, buffer_steps
        self.seq = 0
        self.held: set[int] = set()
        self.buffer: list[tuple[int, bytes]] = []

    def step(self, number: int) -> tuple[int, bytes]:
        sign = "-" if number in self.held else "+"
        self.held ^= {number}
        message = (self.seq, f"{sign}{number}@{self.epoch}.{self.seq}".encode())
        self.seq += 1
        self.buffer = [*self.buffer, message][-self.buffer_steps :]
        return message


class Follower:
    """The sequencer with a network around it that the test's random source controls."""

    def __init__(self, engine: Engine, chance: random.Random, *, can_replay: bool) -> None:
        self.engine, self.chance = engine, chance
        self.sequencer = Sequencer(can_replay=can_replay, max_held=chance.choice([1, 3, 100]))
        self.known: set[int] = set()
        self.owner: dict[int, int] = {}
        self.live: list[tuple[int, bytes]] = []
        self.replay: list[tuple[int, bytes] | None] | None = None
        self.unanswered = False
        self.timed_out = False
        self.act(self.sequencer.on_connect())

    def act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Clear):
                self.known.clear()
            elif isinstance(action, RequestReplay):
                self.replay, self.unanswered = [], True
                self.start = action.start
            else:
                change = action.payload.split(b"@")[0]
                number = int(change[1:])
                (self.known.add if change[:1] == b"+" else self.known.discard)(number)

    def pump(self, steps: int | None = None) -> None:
        while steps is None or steps > 0:
            steps = None if steps is None else steps - 1
            if self.unanswered:  # the ROUTER answers in one go, at a moment of its own
                self.unanswered = False
                self.replay = [message for message in self.engine.buffer if message[0] >= self.start]
                self.replay.append(None)
            elif self.replay and (not self.live or self.chance.random() < 0.5):
                message = self.replay.pop(0)
                self.act(self.sequencer.on_replay_end() if message is None else self.sequencer.on_replay(*message))
            elif self.live:
                self.act(self.sequencer.on_live(*self.live.pop(0)))
            else:
                return

    def reconnect(self, engine: Engine) -> None:
        self.engine = engine
        self.live.clear()
        if (self.unanswered or self.replay) and self.chance.random() < 0.5:  # the answer may also never come
            self.unanswered, self.replay, self.timed_out = False, None, True
            self.act(self.sequencer.on_replay_failed())
        self.act(self.sequencer.on_connect())


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["step"] * 8 + ["lose"] * 2 + ["pump"] * 3 + ["restart", "reconnect", "duplicate"]),
        st.integers(0, 5),
    ),
    max_size=60,
)


@settings(max_examples=400)
@example(operations=[("pump", 1), ("lose", 1)], seed=0, can_replay=True, buffer_steps=1000)
@given(
    operations=OPERATIONS,
    seed=st.integers(0, 2**32),
    can_replay=st.booleans(),
    buffer_steps=st.sampled_from([1, 2, 5, 1000]),
)
def test_any_interleaving_ends_with_no_stale_block(
    operations: list[tuple[str, int]], seed: int, can_replay: bool, buffer_steps: int
) -> None:
    chance = random.Random(seed)
    engine = Engine(0, buffer_steps)
    follower = Follower(engine, chance, can_replay=can_replay)
    clean = buffer_steps == 1000 and can_replay
    for name, number in operations:
        if name == "step":
            follower.live.append(engine.step(number))
        elif name == "lose":
            engine.step(number)
        elif name == "pump":
            follower.pump(number)
        elif name == "duplicate" and follower.live:
            follower.live.append(follower.live[-1])
        elif name == "reconnect":
            follower.reconnect(engine)
        elif name == "restart":
            engine = Engine(engine.epoch + 1, buffer_steps)
            for _ in range(chance.choice([0, 1, number, 12])):
                engine.step(chance.randrange(6))
            follower.reconnect(engine)
    # One more batch that arrives: only then can a loss be seen at all.
    follower.live.append(engine.step(0))
    follower.pump()
    assert not follower.sequencer.replaying
    assert follower.known <= engine.held, "a stale block"
    if clean and not follower.timed_out:  # a replay that was given up costs what it would have brought
        assert follower.known == engine.held, "everything could be replayed, so everything must be known"
