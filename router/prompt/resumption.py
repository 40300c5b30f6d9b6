"""What a compiled chat template calls where its loops resume (see `resume`, `compared`, `scans`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jinja2.runtime import Macro, StrictUndefined
from jinja2.utils import Namespace

from router.prompt.resume import Run
from router.prompt.scans import Idle, Scan
from router.prompt.snapshots import PASSED, Answer, Snapshots, Unkeyable, compare_numbers, keyed

_REVERSED: type[Iterator[Any]] = type(reversed([]))
_PLAIN = (int, float, bool, str)
_MOST_ANSWERS = 512


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
        except (Unkeyable, RecursionError):
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
        except (Unkeyable, RecursionError):
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
        result = compare_numbers(operator, flipped, other, number)
        if run is not None:
            if type(other) in _PLAIN and type(result) is bool and len(run.answers) < _MOST_ANSWERS:
                run.answers.append(Answer(place, operator, flipped, other, result))
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
