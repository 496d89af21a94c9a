"""What happens later, in order: the one queue of a simulated cluster's future."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

Action = Callable[[float], None]


class Timeline:
    """Actions with a due time; each is called once with the moment that it was due at."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Action]] = []
        self._numbers = count()

    def at(self, due_s: float, action: Action) -> None:
        """Let something happen at a moment; what is due at the same one happens in the order it was asked for."""
        heapq.heappush(self._due, (due_s, next(self._numbers), action))

    def run(self, now_s: float) -> int:
        """Let all happen that is due by now, also what follows from it; return how much that was."""
        done = 0
        while self._due and self._due[0][0] <= now_s:
            due_s, _, action = heapq.heappop(self._due)
            action(due_s)
            done += 1
        return done

    @property
    def next_s(self) -> float | None:
        """When the next thing is due, None where nothing is."""
        return self._due[0][0] if self._due else None
