"""Requests that only one replica can answer, because it keeps state that no other has.

vLLM and SGLang keep the responses of /v1/responses in one process's memory, and SGLang keeps an open session's KV
outside its cache. Such a request goes to the replica that has its state, or nowhere: another would answer that it knows
nothing of it. The table is bounded; what was forgotten is routed as if it had no state.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

Key = tuple[str, str, str]
"""(tenant, kind of state, its id as clients name it)."""


class StickyTable:
    """State -> the id of the replica that keeps it, least recently used out first."""

    def __init__(self, max_entries: int = 100_000) -> None:
        self.max_entries = max_entries
        self._homes: OrderedDict[Key, str] = OrderedDict()
        self.tell: Callable[[Key, str], None] | None = None
        """Called for each new state, for those who tell other routers."""

    def __len__(self) -> int:
        return len(self._homes)

    def home(self, key: Key | None) -> str | None:
        """The replica that keeps the state, if that is known."""
        if key is None:
            return None
        home = self._homes.get(key)
        if home is not None:
            self._homes.move_to_end(key)
        return home

    def keep(self, key: Key, replica_id: str) -> None:
        """The state is at that replica now."""
        if self.tell is not None:
            self.tell(key, replica_id)
        self.learn(key, replica_id)

    def learn(self, key: Key, replica_id: str) -> None:
        """Another router says where a state is."""
        self._homes[key] = replica_id
        self._homes.move_to_end(key)
        if len(self._homes) > self.max_entries:
            self._homes.popitem(last=False)
