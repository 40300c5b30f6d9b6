"""Loops of a chat template that go on where an earlier render of the same beginning got to.

An agent's history grows at its end, so most of what a template's loop over the messages prints was printed before. What
an iteration prints depends on its item, on what it looks up ahead and behind, and on the variables it reads. A snapshot
is taken after every `STEP` iterations of a loop that prints at the top level: its text so far, the namespaces' values,
and how far ahead the iterations looked. A later render takes it if everything it depends on is *the same object* (or an
equal plain value), and renders the rest. `resumable` prepares the template.

Exactness: tests/prompt/test_resume.py compares with renders from the start. Messages have to be shared between requests
(see `history`), or there is nothing to resume; they are never changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import is_
from typing import Any

from jinja2.runtime import LoopContext
from jinja2.utils import missing

from router.prompt.scans import Scan
from router.prompt.snapshots import Answer, Key, Snapshot, Snapshots, Unkeyable, keyed

STEP = 8


class Run:
    """One render's way through one loop; what the loop iterates over."""

    __slots__ = (
        "_hash", "_inputs", "_keys", "_mark", "_namespaces", "_number", "_numbers", "_parent", "_pieces", "_pins",
        "_sequences", "_snapshots", "answers", "items", "lost", "need", "start", "tainted",
    )  # fmt: skip

    def __init__(
        self,
        snapshots: Snapshots,
        pieces: list[str],
        number: int,
        inputs: tuple[Any, ...],
        pins: list[Any],
        sequences: list[Sequence[Any]],
        namespaces: list[tuple[dict[str, Any], frozenset[str]]],
        numbers: Sequence[Any],
    ) -> None:
        """`sequences`: what is iterated over, then others of which single items are looked up. `namespaces`: their
        attributes, and the names of those that count by their `answers` only. `numbers`: that places are compared with.
        """
        self._snapshots = snapshots
        self._pieces = pieces
        self._number = number
        self._inputs = inputs
        self._pins = pins
        self._sequences = sequences
        self._namespaces = namespaces
        self._numbers = numbers
        self.answers: list[Answer] = []
        self.items = sequences[0]
        self.start = 0
        self.need = -1
        """The last item that an iteration looked up."""
        self.tainted = False
        """An iteration depends on more than the items up to `need`, but on nothing beyond what the loop began with."""
        self.lost = False
        """It depends on what is not followed."""
        self._hash = hash(inputs)
        self._parent: Snapshot | None = None
        self._keys: list[Key] = []
        self._mark = len(pieces) + 1  # the resumed text is the next piece

    def resume(self) -> str:
        """Find the longest known beginning; its text."""
        texts: list[str] = []
        total = len(self.items)
        while self.start < total:
            begin = self.start
            found = None
            if self._closes(begin):
                found = self._known(begin, self._chunk(begin, self._end()), closing=True)
                if found is not None:
                    self.start = total
            if found is None and begin + STEP <= total:
                found = self._known(begin, self._chunk(begin, begin + STEP), closing=False)
                if found is not None:
                    self.start = begin + STEP
            if found is None:
                break
            texts.append(found.text)
        if self._parent is not None:
            for (attributes, _), known in zip(self._namespaces, self._parent.state, strict=True):
                attributes.update(known)  # none is ever deleted
            self._snapshots.used(self._keys)
            self._snapshots.resumed += self.start
        return "".join(texts)

    def _known(self, begin: int, chunk: tuple[Any, ...], *, closing: bool) -> Snapshot | None:
        key = self._key(begin, chunk, closing)
        found = self._snapshots.find(key)
        if found is None or found.parent is not self._parent or not _same(found.chunk, chunk):
            return None
        if found.parent is None and found.inputs != self._inputs:
            return None
        if not all(answer.holds(self._numbers) for answer in found.answers):
            return None
        if found.ahead:
            at = begin + STEP
            last = at + len(found.ahead) // len(self._sequences)
            if not _same(found.ahead, self._chunk(at, last)):
                return None
            self.need = max(self.need, last - 1)
        self._went(key, found)
        return found

    def boundary(self, at: int) -> None:
        """`at` iterations are done and printed."""
        if at % STEP or at == self.start or self.tainted or self.lost:
            return
        ahead = self._chunk(at, self.need + 1) if self.need >= at else ()
        self._take(at - STEP, self._chunk(at - STEP, at), ahead, closing=False)

    def done(self) -> None:
        """All iterations are done and printed, without a break: what the whole list gives, whatever was looked at."""
        begin = STEP * len(self._keys)
        if self.lost:
            return
        if self.start < len(self.items) and begin < len(self.items) and self._closes(begin):
            self._take(begin, self._chunk(begin, self._end()), (), closing=True)

    def _closes(self, begin: int) -> bool:
        return begin == 0 or len(self.items) - begin <= STEP

    def _end(self) -> int:
        return max(map(len, self._sequences))

    def _take(self, begin: int, chunk: tuple[Any, ...], ahead: tuple[Any, ...], *, closing: bool) -> None:
        if begin != STEP * len(self._keys):
            return  # an earlier one is missing
        pins = list(self._pins)
        state = [
            {name: value for name, value in attributes.items() if name not in spared}
            for attributes, spared in self._namespaces
        ]
        try:
            for attributes in state:
                for value in attributes.values():
                    keyed(value, pins)
        except (Unkeyable, RecursionError):
            self.lost = True
            return
        text = "".join(self._pieces[self._mark :])
        self._mark = len(self._pieces)
        answers, self.answers = tuple(self.answers), []
        snapshot = Snapshot(self._parent, self._inputs, text, chunk, ahead, answers, state, pins)
        key = self._key(begin, chunk, closing)
        self._snapshots.keep(key, snapshot)
        self._went(key, snapshot)

    def _went(self, key: Key, snapshot: Snapshot) -> None:
        self._parent = snapshot
        self._keys.append(key)
        self._hash = key[-1]

    def _key(self, begin: int, chunk: tuple[Any, ...], closing: bool) -> Key:
        return self._number, begin, closing, hash((self._hash, *map(id, chunk)))

    def _chunk(self, begin: int, end: int) -> tuple[Any, ...]:
        if len(self._sequences) == 1:
            return tuple(self.items[begin:end])
        return tuple(item for sequence in self._sequences for item in _padded(sequence, begin, end))

    def asks(self, sequence: Any, index: Any) -> None:
        """An iteration depends on that item."""
        if not any(sequence is one for one in self._sequences):
            self.lost = True
        elif type(index) is int and 0 <= index < len(sequence):
            self.need = max(self.need, index)
        else:
            self.tainted = True

    def counting(self, sequence: Any, every: range) -> Iterator[int]:
        """An iteration counts up to the end of a sequence: it depends on each item's being there, as far as it goes."""
        for at in every:
            self.asks(sequence, at)
            yield at
        self.tainted = True

    def __iter__(self) -> Iterator[Any]:
        for at in range(self.start, len(self.items)):
            self.boundary(at)
            yield self.items[at]
        self.boundary(len(self.items))
        self.done()


_ABSENT = object()


def _padded(sequence: Sequence[Any], begin: int, end: int) -> list[Any]:
    found = list(sequence[begin:end])
    return found + [_ABSENT] * (end - begin - len(found))


def _same(some: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))


class Loop(LoopContext):
    """`loop` in a template; notes what an iteration asks about the items still to come."""

    _run: Run | None = None
    _scan: Scan | None = None

    def __init__(self, iterable: Any, *arguments: Any, **keywords: Any) -> None:
        if type(iterable) is Scan:
            super().__init__(iterable.items, *arguments, **keywords)
            self._scan = iterable
        elif type(iterable) is Run:
            super().__init__(iterable.items, *arguments, **keywords)
            start = iterable.start
            self._run = iterable
            self._iterator = iter(iterable.items[start:] if start else iterable.items)
            self.index0 = start - 1
            if start:
                self._current = iterable.items[start - 1]
        else:
            super().__init__(iterable, *arguments, **keywords)

    def __next__(self) -> tuple[Any, LoopContext]:
        run = self._run
        if run is not None:
            run.boundary(self.index0 + 1)
        item = self._after
        if item is not missing:
            self._after = missing
        else:
            item = next(self._iterator, missing)
        scan = self._scan
        if scan is not None:
            while item is not missing and scan.idle(item):
                self.index0 += 1
                self._current = item
                item = next(self._iterator, missing)
        if item is missing:
            if run is not None:
                run.done()
            raise StopIteration
        self.index0 += 1
        self._before = self._current
        self._current = item
        return item, self

    def _peek_next(self) -> Any:
        item = super()._peek_next()
        run = self._run
        if run is not None:
            if item is missing:
                run.tainted = True
            elif self.index0 + 1 > run.need:
                run.need = self.index0 + 1
        return item

    @property
    def length(self) -> int:
        if self._run is not None:
            self._run.tainted = True
        return super().length

    def changed(self, *value: Any) -> bool:
        if self._run is not None:
            self._run.tainted = True
        return super().changed(*value)
