"""How far what was expected and what was seen agree, over the recent past. No I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Agreement:
    """Pairs (expected, seen) of token or block counts; a pair's weight halves every `half_life` further pairs.

    `samples`: pairs noted, ones of two zeros left out, since they say nothing.
    """

    half_life: float = 20.0
    samples: int = 0
    _apart: float = 0.0
    _whole: float = 0.0

    def note(self, expected: int, seen: int) -> None:
        """Another pair; both at least 0."""
        if not expected and not seen:
            return
        keep = 0.5 ** (1 / self.half_life)
        self._apart = self._apart * keep + abs(expected - seen)
        self._whole = self._whole * keep + max(expected, seen)
        self.samples += 1

    @property
    def drift(self) -> float:
        """0: always equal; 1: nothing in common. The sum of differences over the sum of the larger of each pair."""
        return self._apart / self._whole if self._whole else 0.0
