"""What sessions usually do next, learnt from those seen: whether they come back, how much longer, and when.

Kept by kind of session, so that single questions and long agent runs on one fleet don't blur into an average that fits
neither. A kind is the power of two of the first prompt's length and whether others' prompts began with it too.
Remaining steps are taken as memoryless: a session that came back ten times is as likely to come back as at first.
"""

from __future__ import annotations

FADE = 0.995
"""Weight an observation keeps with each newer one of its kind: about the last 200 count."""
_PRIOR = 4.0
"""Imagined sessions with which a kind starts, of the whole fleet's habits (before any: one more step each)."""
MAX_STEPS_LEFT = 16.0
"""Further than this nobody plans: a wrong guess about the future must not outweigh what is known now."""


class _Kind:
    __slots__ = ("began", "continued", "grown")

    def __init__(self) -> None:
        self.began = 0.0
        self.continued = 0.0
        self.grown = 0.0

    def note(self, began: float, continued: float, grown: float, fade: float) -> None:
        self.began = self.began * fade + began
        self.continued = self.continued * fade + continued
        self.grown = self.grown * fade + grown


class Habits:
    """`gap_s`: mean time between a step's end and the next step."""

    def __init__(self) -> None:
        self._kinds: dict[int, _Kind] = {}
        self._all = _Kind()
        self.gap_s = 5.0

    @staticmethod
    def kind(prompt_tokens: int, shared_tokens: int) -> int:
        """The kind of a session that begins so; a small integer."""
        return max(0, prompt_tokens - shared_tokens).bit_length() * 2 + (shared_tokens > 0)

    def began(self, kind: int) -> None:
        """A session's first step."""
        self._kinds.setdefault(kind, _Kind()).note(1, 0, 0, FADE)
        self._all.note(1, 0, 0, 0.999)

    def continued(self, kind: int, grown: int, gap_s: float | None) -> None:
        """A later step, `grown` tokens longer than the one before, `gap_s` after its end (None: before it)."""
        self._kinds.setdefault(kind, _Kind()).note(0, 1, grown, FADE)
        self._all.note(0, 1, grown, 0.999)
        if gap_s is not None:
            self.gap_s += 0.02 * (gap_s - self.gap_s)

    def steps_left(self, kind: int) -> float:
        """Steps a session of this kind is expected to make yet, whatever it made so far."""
        known = self._kinds.get(kind)
        usual = self._usual()
        if known is None:
            return usual
        return min(MAX_STEPS_LEFT, (known.continued + _PRIOR * usual) / (known.began + _PRIOR))

    def growth(self, kind: int) -> float:
        """Tokens by which a later prompt is longer than the one before."""
        known = self._kinds.get(kind)
        usual = (self._all.grown + 1024) / (self._all.continued + 4)
        if known is None:
            return usual
        return (known.grown + _PRIOR * usual) / (known.continued + _PRIOR)

    def returns(self, kind: int) -> float:
        """Probability that a session of this kind comes back."""
        left = self.steps_left(kind)
        return left / (1 + left)

    def _usual(self) -> float:
        return min(MAX_STEPS_LEFT, (self._all.continued + 4.0) / (self._all.began + 4.0))
