"""What sessions usually do next, learnt from those seen: whether they come back, how much longer, and when.

Kept by kind of session, so that single questions and long agent runs on one fleet don't blur into an average that fits
neither. A kind is the power of two of the first prompt's length and whether others' prompts began with it too.
Remaining steps are taken as memoryless: a session that came back ten times is as likely to come back as at first. Then
later steps over sessions *ended* is what is left of any (the estimate for a geometric law whose longest samples are
cut off): sessions that are under way count with the steps they made, not as if they would never come back.
"""

from __future__ import annotations

FADE = 0.995
"""Weight an observation keeps with each newer one of its kind: about the last 200 count."""
_PRIOR = 4.0
"""Imagined sessions with which a kind starts, of the whole fleet's habits."""
_PRIOR_STEPS = 4.0
"""Further steps of a session before any was seen: agents. Too many spread first prompts over a few more replicas than
they need, too few put the sessions of a fleet's first seconds where they have no room to grow."""
_PRIOR_GROWTH = 256.0
MAX_STEPS_LEFT = 16.0
"""Further than this nobody plans: a wrong guess about the future must not outweigh what is known now."""


class _Kind:
    __slots__ = ("continued", "ended", "grown")

    def __init__(self) -> None:
        self.ended = 0.0
        self.continued = 0.0
        self.grown = 0.0

    def note(self, ended: float, continued: float, grown: float, fade: float) -> None:
        self.ended = self.ended * fade + ended
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

    def ended(self, kind: int) -> None:
        """A session stayed away for so long that it is taken to be over."""
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
        return min(MAX_STEPS_LEFT, (known.continued + _PRIOR * usual) / (known.ended + _PRIOR))

    def growth(self, kind: int) -> float:
        """Tokens by which a later prompt is longer than the one before."""
        known = self._kinds.get(kind)
        usual = (self._all.grown + _PRIOR * _PRIOR_GROWTH) / (self._all.continued + _PRIOR)
        if known is None:
            return usual
        return (known.grown + _PRIOR * usual) / (known.continued + _PRIOR)

    def returns(self, kind: int) -> float:
        """Probability that a session of this kind comes back."""
        left = self.steps_left(kind)
        return left / (1 + left)

    def _usual(self) -> float:
        return min(MAX_STEPS_LEFT, (self._all.continued + _PRIOR * _PRIOR_STEPS) / (self._all.ended + _PRIOR))
