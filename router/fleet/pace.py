"""How much answers slow each other down, learnt from the answers themselves.

A step of an engine gives every running answer one token, and reads the KV cache of all of them for that:

    seconds a token = slowness x (step_s + token_s x context)

`context`: tokens of the prompts of all requests there, its own included. With contexts of 20,000 tokens 20
answers take three times as long as one; how long is the engine's matter: its GPUs, the model's heads, the attention
kernel. So both are learnt, of the whole fleet: the line through what finished answers took a token, least wrong in
proportion, older ones fading. Prompts that were computed in between made their answer wait: their time is taken off
before.
"""

from __future__ import annotations

FADE = 0.998
PRIOR_STEP_S = 0.02
STEPS = 1.5
"""Steps that a prompt waits for before its first token: the rest of the one under way, and its own."""
_PRIOR_CONTEXT = 100_000.0
_PRIOR_WEIGHT = 4.0
_SHORTEST = 8
"""Answers of fewer tokens say little of a step."""
_OUTLIER = 4.0
"""An answer that took more than this many times longer than usual counts as that: a stall is no pace."""
_LEAST_S = 1e-4


class FleetPace:
    """The line of the whole fleet: `step_s` in seconds, `token_s` in seconds for each token of context.

    Workers and routers that share a fleet each see a part of its contexts, and learn as much more of each token.
    """

    __slots__ = ("_n", "_sc", "_scc", "_sct", "_st", "step_s", "token_s")

    def __init__(self) -> None:
        self.step_s, self.token_s = PRIOR_STEP_S, 0.0
        self._n = self._sc = self._st = self._scc = self._sct = 0.0
        for context in (0.0, _PRIOR_CONTEXT):
            self._note(context, PRIOR_STEP_S, _PRIOR_WEIGHT)

    def wait(self, context: float) -> float:
        """Seconds by which a first token comes later among so much context."""
        return STEPS * self.token_s * context

    def observe(self, tokens: int, seconds: float, context: float) -> None:
        """An answer of so many tokens took so long after its first one, among `context` tokens on average."""
        if tokens < _SHORTEST:
            return
        usual = self.step_s + self.token_s * context
        self._note(context, min(max(seconds / (tokens - 1), usual / _OUTLIER), usual * _OUTLIER))
        n, sc, st = self._n, self._sc, self._st
        spread = n * self._scc - sc * sc
        slope = (n * self._sct - sc * st) / spread if spread > 0 else 0.0
        self.token_s = max(0.0, slope)
        self.step_s = max(_LEAST_S, (st - sc * self.token_s) / n)

    def _note(self, context: float, seconds: float, weight: float = 1.0) -> None:
        weight /= max(_LEAST_S, self.step_s + self.token_s * context) ** 2
        self._n = self._n * FADE + weight
        self._sc = self._sc * FADE + weight * context
        self._st = self._st * FADE + weight * seconds
        self._scc = self._scc * FADE + weight * context * context
        self._sct = self._sct * FADE + weight * context * seconds
