"""The work this router has given a replica and has not seen the end of."""

from __future__ import annotations


class Load:
    """Counters of one replica's unfinished work; all are zero when nothing is under way.

    `pending_prefill`: uncached prompt tokens sent whose first answer byte has not come.
    `running`: sequences sent and not ended.
    `other_prefill`, `other_running`: the same of the other routers, where an index is shared (else 0).
    `turn`: a number that grows with every dispatch over the whole fleet; the least recently chosen replica has the
    smallest.
    """

    __slots__ = ("other_prefill", "other_running", "pending_prefill", "running", "turn")

    def __init__(self) -> None:
        self.pending_prefill = 0
        self.running = 0
        self.other_prefill = 0
        self.other_running = 0
        self.turn = 0

    @property
    def queued_tokens(self) -> int:
        """Uncached prompt tokens waiting there, of all routers."""
        return self.pending_prefill + self.other_prefill

    @property
    def sequences(self) -> int:
        """Sequences sent there and not ended, of all routers."""
        return self.running + self.other_running

    def begin(self, uncached_tokens: int, sequences: int = 1) -> Ticket:
        """Count a dispatch at once, before the bytes are sent."""
        return Ticket(self, uncached_tokens, sequences)


class Ticket:
    """One dispatch. Whatever happens to the request, `end` is called once or more; only the first call counts."""

    __slots__ = ("_load", "_prefill", "_sequences")

    def __init__(self, load: Load, uncached_tokens: int, sequences: int) -> None:
        self._load = load
        self._prefill = uncached_tokens
        self._sequences = sequences
        load.pending_prefill += uncached_tokens
        load.running += sequences

    def first_byte(self) -> None:
        """The prompt is prefilled: its tokens are no longer queued work."""
        self._load.pending_prefill -= self._prefill
        self._prefill = 0

    def end(self) -> None:
        """The request is over, well or badly."""
        self.first_byte()
        self._load.running -= self._sequences
        self._sequences = 0
