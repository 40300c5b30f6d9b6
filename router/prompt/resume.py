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

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from operator import eq, ge, gt, is_, le, lt, ne
from typing import Any, NamedTuple

from jinja2.exceptions import UndefinedError
from jinja2.runtime import LoopContext, Macro, StrictUndefined, Undefined
from jinja2.utils import Namespace, missing

from router.prompt.history import Message, SharedList
from router.prompt.scans import Idle, Scan

STEP = 8
_OVERHEAD = 1500  # a snapshot's own objects, and the messages it keeps alive beyond their texts
_SMALL = 32
PASSED = frozenset({"messages", "tools", "documents"})


_Key = tuple[int, int, bool, int]
"""(loop, first of its last items, whether that is all of the list, hash of everything before)"""


class _Answer(NamedTuple):
    """`result` of comparing `other` with the loop's number of that `place`; `flipped`: the number came first."""

    place: int
    operator: str
    flipped: bool
    other: Any
    result: bool

    def holds(self, numbers: Sequence[Any]) -> bool:
        """Would the answer be the same now?"""
        try:
            return _compare(self.operator, self.flipped, self.other, numbers[self.place]) is self.result
        except (TypeError, UndefinedError):
            return False


_REVERSED: type[Iterator[Any]] = type(reversed([]))
_OPERATORS = {"gt": gt, "gteq": ge, "lt": lt, "lteq": le, "eq": eq, "ne": ne}
_PLAIN = (int, float, bool, str)
_MOST_ANSWERS = 512


def _compare(operator: str, flipped: bool, other: Any, number: Any) -> Any:
    return _OPERATORS[operator](number, other) if flipped else _OPERATORS[operator](other, number)


class _Unkeyable(Exception):
    """A value that can't be compared between renders."""


class Snapshot:
    """After so many iterations. `chunk`: the items since `parent`; `ahead`: those looked up beyond; all kept alive.

    `inputs`: what the loop began with; its descendants share it. `answers`: what its iterations were told when they
    compared their places.
    """

    __slots__ = ("ahead", "answers", "chunk", "inputs", "parent", "pins", "size", "state", "text")

    def __init__(
        self,
        parent: Snapshot | None,
        inputs: tuple[Any, ...],
        text: str,
        chunk: tuple[Any, ...],
        ahead: tuple[Any, ...],
        answers: tuple[_Answer, ...],
        state: list[dict[str, Any]],
        pins: list[Any],
    ) -> None:
        self.parent = parent
        self.inputs = inputs
        self.text = text
        self.chunk = chunk
        self.ahead = ahead
        self.answers = answers
        self.state = state
        self.pins = pins
        self.size = _OVERHEAD + (2 if text.isascii() else 5) * len(text)


class Snapshots:
    """The snapshots of one template, least recently used out first, bounded in bytes. For one thread at a time."""

    def __init__(self, max_bytes: int = 32 << 20) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.resumed = 0
        """Iterations that were not rendered again."""
        self._known: OrderedDict[_Key, Snapshot] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: _Key) -> Snapshot | None:
        return self._known.get(key)

    def used(self, keys: Sequence[_Key]) -> None:
        """Refresh a chain, first to last: a snapshot goes no later than those that grew out of it."""
        for key in reversed(keys):
            if key in self._known:
                self._known.move_to_end(key)

    def keep(self, key: _Key, snapshot: Snapshot) -> None:
        if snapshot.size > self.max_bytes >> 3:
            return
        old = self._known.pop(key, None)
        if old is not None:
            self.bytes -= old.size
        self._known[key] = snapshot
        self.bytes += snapshot.size
        while self.bytes > self.max_bytes:
            self.bytes -= self._known.popitem(last=False)[1].size


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
        self.answers: list[_Answer] = []
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
        self._keys: list[_Key] = []
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
        except (_Unkeyable, RecursionError):
            self.lost = True
            return
        text = "".join(self._pieces[self._mark :])
        self._mark = len(self._pieces)
        answers, self.answers = tuple(self.answers), []
        snapshot = Snapshot(self._parent, self._inputs, text, chunk, ahead, answers, state, pins)
        key = self._key(begin, chunk, closing)
        self._snapshots.keep(key, snapshot)
        self._went(key, snapshot)

    def _went(self, key: _Key, snapshot: Snapshot) -> None:
        self._parent = snapshot
        self._keys.append(key)
        self._hash = key[-1]

    def _key(self, begin: int, chunk: tuple[Any, ...], closing: bool) -> _Key:
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


def keyed(value: Any, pins: list[Any]) -> Any:
    """What a value is compared by between renders; objects compared by identity are added to `pins`.

    Raises RecursionError for what is nested too deeply.
    """
    kind = type(value)
    if value is None or kind in (str, int, bool):
        return (kind, value)
    if kind is float:
        return (kind, repr(value))  # 0.0 == -0.0
    if kind in (Message, SharedList):
        pins.append(value)
        return ("same", id(value))
    if isinstance(value, Undefined):
        return ("undefined",)
    if kind in (list, tuple) and len(value) <= _SMALL:
        return (kind, *(keyed(item, pins) for item in value))
    if kind is dict and len(value) <= _SMALL:
        return (kind, *((keyed(key, pins), keyed(item, pins)) for key, item in value.items()))
    raise _Unkeyable


class Resumption:
    """What the compiled template calls, for the render that runs now."""

    def __init__(self, max_bytes: int, getitem: Callable[[Any, Any], Any], flat: Callable[[Any], Any]) -> None:
        """`max_bytes`: of what is remembered. `getitem`, `flat`: the environment's."""
        self._idle = Idle(max_bytes // 8)
        self.snapshots = Snapshots(max_bytes - max_bytes // 8)
        self._getitem = getitem
        self._flat = flat
        self._scan: Scan | None = None
        self._numbers: Sequence[Any] = ()
        self._pieces: list[str] = []
        self._base: tuple[Any, ...] | None = None
        self._pins: list[Any] = []
        self._tail: Any = ()
        self._run: Run | None = None

    def begin(self, pieces: list[str], variables: dict[str, Any]) -> None:
        """A render starts. Its plain variables are part of every comparison."""
        self._pieces = pieces
        self._pins = []
        self._run = None
        try:
            rest = ((name, value) for name, value in variables.items() if name not in PASSED)
            self._base = tuple((name, keyed(value, self._pins)) for name, value in rest)
        except (_Unkeyable, RecursionError):
            self._base = None

    def end(self) -> None:
        """The render is over; nothing of it is kept here."""
        self.begin([], {})
        self._tail, self._scan, self._numbers = (), None, ()

    def enter(
        self,
        number: int,
        iterable: Any,
        watched: list[Any],
        inputs: list[Any],
        macros: list[tuple[Any, str]],
        numbers: list[Any],
        spared: list[tuple[Any, str]],
    ) -> str:
        """A loop starts: the text of the iterations that need not be run.

        `macros`: each with its name. `numbers`: what places are compared with. `spared`: (namespace, attribute) of
        those that are not read else.
        """
        self._tail, self._run, self._numbers = iterable, None, numbers
        if self._base is None or not isinstance(iterable, list | tuple) or not iterable:
            return ""
        sequences: list[Sequence[Any]] = [iterable]
        kinds = ""  # which of those that are watched is what
        for value in watched:
            if value is iterable:
                kinds += "i"
            elif isinstance(value, list | tuple):
                kinds += "s"
                sequences.append(value)
            else:
                kinds += "v"
                inputs = [*inputs, value]
        namespaces: list[tuple[dict[str, Any], frozenset[str]]] = []
        pins = list(self._pins)
        key: list[Any] = [self._base, kinds]
        spaces = [value for value in inputs if isinstance(value, Namespace)]
        # Two names may be one namespace's: which ones are is part of the key, and all of its attributes are.
        names = [[one is value for one in spaces] for value in spaces]
        try:
            for value in inputs:
                if isinstance(value, Namespace):
                    attributes = object.__getattribute__(value, "_Namespace__attrs")
                    same = names[len(namespaces)]
                    apart = frozenset(name for space, name in spared if space is value and sum(same) == 1)
                    namespaces.append((attributes, apart))
                    read = ((name, item) for name, item in attributes.items() if name not in apart)
                    key.append((same.index(True), *((name, keyed(item, pins)) for name, item in read)))
                else:
                    key.append(keyed(value, pins))
            for value, name in macros:
                if isinstance(value, Macro) and value.name == name:
                    key.append(name)
                else:
                    key.append(keyed(value, pins))
        except (_Unkeyable, RecursionError):
            return ""
        run = Run(self.snapshots, self._pieces, number, tuple(key), pins, sequences, namespaces, numbers)
        self._tail = self._run = run
        return run.resume()

    def tail(self) -> Any:
        """What the loop iterates over."""
        return self._tail

    def item(self, sequence: Any, index: Any) -> tuple[Any]:
        """`sequence[index]`, in a tuple, for an iteration that asks for an item by its place."""
        run = self._run
        if run is not None:
            run.asks(sequence, index)
        return (self._getitem(sequence, index),)

    def upto(self, sequence: Any, every: Any) -> Any:
        """`every`: `range(begin, sequence|length)`, for an iteration that mostly doesn't get to the end."""
        run = self._run
        if run is None:
            return every
        if type(every) is range:
            return run.counting(sequence, every)
        run.lost = True  # the name means something else
        return every

    def compared(self, place: int, operator: str, flipped: bool, other: Any) -> Any:
        """`other > number`, or the like, for an iteration that compares its place."""
        number, run = self._numbers[place], self._run
        if type(other) not in _PLAIN:
            other, number = self._flat(other), self._flat(number)
        result = _compare(operator, flipped, other, number)
        if run is not None:
            if type(other) in _PLAIN and type(result) is bool and len(run.answers) < _MOST_ANSWERS:
                run.answers.append(_Answer(place, operator, flipped, other, result))
            else:
                run.lost = True
        return result

    def counted(self) -> bool:
        """Is the loop's length known to be its list's?"""
        return self._run is not None

    def length(self, value: Any, less: int) -> Any:
        """`value|length - less`, a number that places are compared with; without a length comparisons fail."""
        try:
            return len(value) - less
        except TypeError:
            return StrictUndefined()

    def scan(self, number: int, iterable: Any, *flag: Any) -> Any:
        """What a loop that looks for something iterates over. `flag`: what has the flag that ends it."""
        if isinstance(iterable, _REVERSED):
            iterable = list(iterable)
        able = isinstance(iterable, list | tuple) and all(type(one) is Namespace for one in flag)
        self._scan = Scan(iterable, self._idle, number) if able else None
        return iterable if self._scan is None else self._scan

    def places(self, number: int, indexes: Any, sequence: Any) -> Any:
        """The same where it goes by the items' places."""
        if type(indexes) is not range or not isinstance(sequence, list | tuple):
            self._scan = None
            return indexes
        self._scan = Scan(sequence, self._idle, number, by_place=True)
        return self._scan.places(indexes)

    def telling(self, item: Any, result: Any) -> Any:
        """The condition of such a loop, for an item."""
        return result if self._scan is None else self._scan.tested(item, result)
