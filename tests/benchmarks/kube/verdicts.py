"""What the figures mean: who is best at what in each row, and which of our own aims were met. What a rival wins is told like all else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.benchmarks.kube.rows import Result

OURS = "Swingbus"
ONE_P50_S, ONE_P99_S = 4.0, 8.0
BURST_S = 15.0
DECISION_P99_S = 0.5

Measure = Callable[[Result], float | None]
# Lower is better, but for those whose name ends with a plus.
MEASURES: tuple[tuple[str, Measure], ...] = (
    ("POST to bound p50", lambda r: r.bound.p50_s),
    ("POST to bound p99", lambda r: r.bound.p99_s),
    ("pods not bound", lambda r: float(r.unbound)),
    ("W*s over the limit", lambda r: r.totals.over_limit_ws),
    ("peak", lambda r: r.totals.peak_w),
    ("ramp", lambda r: r.totals.ramp_w_per_s),
    ("miners killed per GPU", lambda r: r.killed_per_gpu),
    ("kills inside dwell", lambda r: float(r.killed_in_dwell)),
    ("idle GPU*s", lambda r: r.totals.idle_gpu_s),
    ("mining GPU*h+", lambda r: r.totals.mining_gpu_s / 3600.0),
    ("inference GPU*h at full speed+", lambda r: r.totals.inference_full_gpu_s / 3600.0),
    ("API writes", lambda r: float(sum(r.api_writes.values()))),
    ("CPU of everything", lambda r: sum(used.cpu_s for used in r.used.values())),
)
_ALIKE_RATIO = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One aim in one row."""

    aim: str
    seen: str
    is_met: bool


def winners(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Return for each measure of one row who is best; nobody where all are alike (within 2 %)."""
    found: list[tuple[str, str]] = []
    for name, measure in MEASURES:
        values = {r.contender: value for r in results if (value := measure(r)) is not None}
        if len(values) < 2:
            continue
        order = sorted(values, key=lambda contender: values[contender], reverse=name.endswith("+"))
        best, last = values[order[0]], values[order[-1]]
        if abs(best - last) <= _ALIKE_RATIO * max(abs(best), abs(last)):
            continue
        alike = [c for c in order if abs(values[c] - best) <= _ALIKE_RATIO * max(abs(best), abs(values[c]))]
        found.append((name.removesuffix("+"), ", ".join(alike)))
    return found


def verdicts(result: Result) -> list[Verdict]:
    """Return which of our aims this row bears on, and whether they were met; none for a rival's."""
    if result.contender != OURS:
        return []
    found = [
        Verdict(
            aim="0 W*s over the limit",
            seen=f"{result.totals.over_limit_ws:.0f} W*s",
            is_met=result.totals.over_limit_ws == 0.0,
        )
    ]
    if not result.row.has_free_watts:
        return found  # another bank has to shrink and be proven first: that takes what its meter takes, and has no bar
    if result.row.arrivals == 1:
        found += [
            _at_most("one pod, POST to bound p50", result.bound.p50_s, ONE_P50_S),
            _at_most("one pod, POST to bound p99", result.bound.p99_s, ONE_P99_S),
        ]
    if result.row.arrivals <= 64:
        slowest = None if None in result.all_bound_s else max(s for s in result.all_bound_s if s is not None)
        found.append(_at_most(f"{result.row.arrivals} at once, all bound", slowest, BURST_S))
        found.append(_at_most("decision (POST to the miner told to go) p99", result.victim_told.p99_s, DECISION_P99_S))
    return found


def sentences(results: Sequence[Result]) -> list[str]:
    """Return what a person wants to know of one row's results."""
    judged = [verdict for result in results for verdict in verdicts(result)]
    lines = [f"  aim: {v.aim}: {v.seen} ({'met' if v.is_met else 'NOT met'})" for v in judged]
    best: dict[str, list[str]] = {}
    for name, who in winners(results):
        best.setdefault(who, []).append(name)
    lines += [f"  best: {who}: {', '.join(names)}" for who, names in best.items()]
    return lines


def _at_most(aim: str, seen_s: float | None, most_s: float) -> Verdict:
    return Verdict(
        aim=f"{aim} at most {most_s:g} s",
        seen="never" if seen_s is None else f"{seen_s:.2f} s",
        is_met=seen_s is not None and seen_s <= most_s,
    )
