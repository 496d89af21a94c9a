"""How long to wait before the next attempt: full jitter, so that a thousand agents do not come back at once."""

from __future__ import annotations

import random

_STABLE_S = 30.0


class Backoff:
    """Doubles from `first_s` to `max_s`; a session that lasted for 30 s starts over."""

    def __init__(self, random_: random.Random, *, first_s: float, max_s: float) -> None:
        self._random = random_
        self._first_s = first_s
        self._max_s = max_s
        self._ceiling_s = first_s

    def after(self, lasted_s: float, *, asked_s: float = 0.0) -> float:
        """Return the pause after an attempt that lasted `lasted_s`; never less than the other side asked for."""
        if lasted_s >= _STABLE_S:
            self._ceiling_s = self._first_s
        pause_s = self._random.uniform(0.0, self._ceiling_s)
        self._ceiling_s = min(self._max_s, self._ceiling_s * 2.0)
        return max(pause_s, asked_s * self._random.uniform(1.0, 1.25))
