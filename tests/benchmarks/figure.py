"""One measured figure and how it stands to its aim and its bound.

Invariant: a figure is made only after the result behind it was asserted; `asserted` says what. `ratio` is always "how much of the bound
was reached": 1 is as good as the bound, above 1 is better, whichever way the unit runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from swingbus.faults import SwingbusError


class WrongResult(SwingbusError):
    """What was measured did not do what it should: there is no figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure: the median of its runs.

    Attributes:
        bound: the best that was seen of anything doing this job on such a machine; None where none is known.
        bound_source: what `bound` is.
        aim: what this project wants; None where it wants nothing in particular.
        is_lower_better: for seconds, bytes and shares.
        asserted: what was checked before the figure was believed.
        notes: what a reader must know to compare it.
    """

    name: str
    unit: str
    runs: tuple[float, ...]
    asserted: tuple[str, ...]
    bound: float | None = None
    bound_source: str = ""
    aim: float | None = None
    is_lower_better: bool = False
    notes: tuple[str, ...] = ()
    details: dict[str, object] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """Return the median of the runs."""
        return statistics.median(self.runs)

    @property
    def ratio(self) -> float | None:
        """Return the share of the bound that was reached, None without a bound."""
        return None if self.bound is None else self._share(self.bound)

    @property
    def aim_ratio(self) -> float | None:
        """Return the share of the aim that was reached, None without an aim."""
        return None if self.aim is None else self._share(self.aim)

    def record(self) -> dict[str, object]:
        """Return the figure as it is written to the file."""
        return {
            "name": self.name,
            "value": _round(self.value),
            "unit": self.unit,
            "runs": [_round(run) for run in self.runs],
            "bound": self.bound,
            "bound_source": self.bound_source,
            "ratio": None if self.ratio is None else _round(self.ratio),
            "aim": self.aim,
            "aim_ratio": None if self.aim_ratio is None else _round(self.aim_ratio),
            "meets_aim": None if self.aim_ratio is None else self.aim_ratio >= 1.0,
            "asserted": list(self.asserted),
            "notes": list(self.notes),
            **({"details": self.details} if self.details else {}),
        }

    def line(self) -> str:
        """Return one line for a terminal."""
        parts = [f"{self.name:36} {_short(self.value):>12} {self.unit}"]
        if self.aim is not None:
            parts.append(f"aim {_short(self.aim)} ({'met' if (self.aim_ratio or 0.0) >= 1.0 else 'NOT met'})")
        if self.bound is not None:
            parts.append(f"{self.ratio:.2f} of the bound {_short(self.bound)}")
        return ", ".join(parts)

    def _share(self, wanted: float) -> float:
        if self.is_lower_better:
            return wanted / self.value if self.value > 0.0 else float("inf")
        return self.value / wanted


def check(is_right: bool, what: str) -> None:
    """Raise WrongResult where something that a figure rests on is not so (unlike `assert`, also under -O)."""
    if not is_right:
        raise WrongResult(f"the measured result is wrong: {what}", reason="WRONG_RESULT")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * round(share * 1000) // 1000))
    return ordered[min(rank, len(ordered)) - 1]


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def _short(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:.2f} M"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
