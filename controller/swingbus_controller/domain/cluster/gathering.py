"""When waiting pods are worth a plan of their own: one that comes alone at once, those that come with or right after it together.

A deployment's pods come one after the other, and a plan for each would keep the site from everything else. A reducer with time passed in;
knows nothing of pods but what they add up to. Invariants: a plan is due at the latest at the first look that is `GATHER_S` after the one
which showed the news; the same news make one plan due.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

# While more come, a plan waits for them this long, and then is made once for all.
GATHER_S = 0.25
# Whoever comes after so long a silence is taken for one that comes alone.
QUIET_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a plan is made for: places by inference class, and the most by bank; and how many pods wait, which by itself is no news."""

    places: Mapping[str, int] = field(default_factory=dict)
    at_most: Mapping[str, int] = field(default_factory=dict)
    waiting_count: int = field(default=0, compare=False)

    def is_within(self, planned_for: Wanted) -> bool:
        """Tell whether it is as much, and nowhere more: who was planned for has left the line, or a bank has less room."""
        if self.places != planned_for.places:
            return False
        return all(count <= planned_for.at_most.get(bank, 0) for bank, count in self.at_most.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathering:
    """What is wanted, what was planned for, and since when the two differ.

    Attributes:
        looked_s: the last look.
        changed_s: the last look with other news than the one before it.
        unplanned_since_s: while something is new that no plan was made for: the first look that showed it.
        began_s: the last look at which news came after a silence.
        is_changing: whether the last look's news were others than those of a look before.
        is_burst: whether several pods came between the last two looks: more are most likely on their way.
    """

    wanted: Wanted = Wanted()
    planned_for: Wanted = Wanted()
    looked_s: float = float("-inf")
    changed_s: float = float("-inf")
    unplanned_since_s: float = float("-inf")
    began_s: float = float("-inf")
    is_changing: bool = False
    is_burst: bool = False

    def look(self, wanted: Wanted, now_s: float) -> Gathering:
        """Take in what is wanted now."""
        if wanted.is_within(self.planned_for):
            # What a plan has brought about is no news, nor is a bank that closes to who still waits: the next plan in turn will see to it.
            return replace(self, wanted=wanted, planned_for=wanted, looked_s=now_s, is_changing=False)
        is_changing = wanted != self.wanted
        return replace(
            self,
            wanted=wanted,
            looked_s=now_s,
            changed_s=now_s if is_changing else self.changed_s,
            unplanned_since_s=now_s if self.wanted == self.planned_for else self.unplanned_since_s,
            began_s=now_s if is_changing and now_s - self.changed_s >= QUIET_S else self.began_s,
            is_changing=is_changing,
            is_burst=wanted.waiting_count - self.wanted.waiting_count > 1,
        )

    @property
    def is_due(self) -> bool:
        """Tell whether a plan is due for what is wanted."""
        is_first = self.looked_s == self.began_s and not self.is_burst
        has_waited = self.looked_s - self.unplanned_since_s >= GATHER_S
        return self.wanted != self.planned_for and (is_first or not self.is_changing or has_waited)

    def is_young(self, now_s: float) -> bool:
        """Tell whether the first came a moment ago: those that come right after it are looked for more often, this long and no longer."""
        return now_s - self.began_s < GATHER_S

    def planned(self) -> Gathering:
        """Note that a plan is made for what is wanted now."""
        return replace(self, planned_for=self.wanted)
