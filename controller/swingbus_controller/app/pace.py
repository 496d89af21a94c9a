"""How long the site rests between two rounds: pure, from how long rounds take.

Rounds cost more on a big site, most where thousands of flips are open. Four times their length is left for what comes in and for calls,
while that is not too long: else reports would wait behind rounds, and what is decided would be decided from old ones. Twice their length
has to do while pods may be coming.
"""

from __future__ import annotations

from dataclasses import dataclass

# After each round: every report asks for one, and a big site sends hundreds a second.
SHORTEST_REST_S, LONGEST_REST_S = 0.04, 0.4
_RESTS_PER_ROUND, _RESTS_WHILE_GATHERING = 4.0, 2.0
_ROUNDS_REMEMBERED = 5  # one that is long (a plan was made) is not yet a busy site


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The pace of one site.

    Attributes:
        round_s: how long a round takes, the newest counting most.
    """

    round_s: float = 0.0

    def after_round(self, took_s: float) -> Pace:
        """Take in how long a round took."""
        return Pace(round_s=self.round_s + (min(LONGEST_REST_S, took_s) - self.round_s) / _ROUNDS_REMEMBERED)

    def rest_s(self, *, is_gathering: bool) -> float:
        """Return how long to rest now.

        Args:
            is_gathering: whether a first pod came a moment ago; who comes with it shall not wait for a whole rest.
        """
        rests = _RESTS_WHILE_GATHERING if is_gathering else _RESTS_PER_ROUND
        return min(LONGEST_REST_S, max(SHORTEST_REST_S, rests * self.round_s))
