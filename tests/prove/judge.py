"""The judge: true watts against limits, on the model's own physics; it never sees the ledger, its readings or margin.

Every watt over a limit is *authorised*, and the protocol guilty, unless the fault ledger explains it: a device made to
lie or wake (judged by what an obedient one would draw), or an outside event (a lowered limit, a jump of uncontrolled
load). After such an event every bank is excused only up to what it could already have reached without any new decision,
and that excuse only ever shrinks: a bank that rises beyond it while the site is over its limit is a decision's work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.prove.site import HOMES, LOSSES, PARENTS, STEP_S

TOLERANCE_W = 1e-3


def _paths() -> dict[str, dict[str, float]]:
    """Return per feeder the factor of each bank below it."""
    paths: dict[str, dict[str, float]] = {name: {} for name in PARENTS}
    for bank, home in HOMES.items():
        factor, here = 1.0, home
        while True:
            paths[here][bank] = factor
            above = PARENTS[here]
            if above is None:
                break
            factor *= 1.0 + LOSSES[here]
            here = above
    return paths


PATHS = _paths()


@dataclass(slots=True)
class Judge:
    """Counts what passed a limit and why."""

    authorised_ws: float = 0.0
    outside_ws: float = 0.0
    disobedient_ws: float = 0.0
    first: str | None = None
    _excuses: dict[str, dict[str, float]] = field(default_factory=dict)

    def outside_event(self, feeder: str, potential_w: Mapping[str, float]) -> None:
        """Open an excuse at a feeder: up to what each bank could reach by itself at this moment."""
        now = {bank: potential_w[bank] for bank in PATHS[feeder]}
        have = self._excuses.get(feeder)
        # A second event while the first lasts cannot widen the excuse of a bank.
        self._excuses[feeder] = now if have is None else {bank: min(now[bank], have[bank]) for bank in now}

    def step(
        self,
        now_s: float,
        *,
        obedient_w: Mapping[str, float],
        true_w: Mapping[str, float],
        loads_w: Mapping[str, float],
        ratings_w: Mapping[str, float],
        limits_w: Mapping[str, float],
        potential_w: Callable[[], Mapping[str, float]],
    ) -> None:
        """Judge one step; `ratings_w` is what the uncontrolled loads at a feeder may rise to by themselves."""
        for feeder, limit_w in limits_w.items():
            factors = PATHS[feeder]
            load_w = loads_w[feeder]
            over_w = sum(obedient_w[bank] * loss for bank, loss in factors.items()) + load_w - limit_w
            true_over_w = sum(true_w[bank] * loss for bank, loss in factors.items()) + load_w - limit_w
            excuse = self._excuses.get(feeder)
            if excuse is not None:
                reach_w = potential_w()
                for bank in excuse:
                    excuse[bank] = min(excuse[bank], max(reach_w[bank], 0.0))
                # The event is over once nothing can pass the limit any more, whatever the uncontrolled loads do.
                reach_feeder_w = sum(reach_w[bank] * loss for bank, loss in factors.items())
                if reach_feeder_w + ratings_w[feeder] <= limit_w:
                    del self._excuses[feeder]
                    excuse = None
            if over_w > TOLERANCE_W:
                guilty_w = over_w
                if excuse is not None:
                    beyond_w = sum(max(0.0, obedient_w[b] - excuse[b]) * loss for b, loss in factors.items())
                    guilty_w = min(over_w, beyond_w)
                if guilty_w > TOLERANCE_W:
                    self.authorised_ws += guilty_w * STEP_S
                    if self.first is None:
                        self.first = f"{now_s:.0f} s: {feeder} {guilty_w:.0f} W over {limit_w:.0f} W by decision"
                self.outside_ws += max(0.0, over_w - guilty_w) * STEP_S
            if true_over_w > max(0.0, over_w):
                self.disobedient_ws += (true_over_w - max(0.0, over_w)) * STEP_S
