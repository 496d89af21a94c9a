"""Protection: what gives way first, and how a bank's devices are made to fit a grant that was cut.

`guard` says which banks are cut; this room says in which order they are asked and turns each cut into recorded safety flips, so that
every device that is shed is on the record and comes back only by plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from swingbus_controller.domain.flip import Flip, new_flip
from swingbus_controller.domain.guard import ShedStep
from swingbus_controller.domain.placement import BankModel, Holdings, Placement, needed_w
from swingbus_controller.domain.points import DeviceKind, Mode, OperatingPoint
from swingbus_controller.domain.site_state import SiteState

TOLERANCE_W = 1.0


@dataclass(frozen=True, slots=True)
class _Rung:
    """One thing that a bank can give: devices of a placement go to another point."""

    rank: tuple[int, float]
    placement: Placement
    to: OperatingPoint


def _efficiency_rank(model: BankModel, point: OperatingPoint) -> float:
    """Return joules per unit of output; the worst gives way first."""
    return math.inf if point.output <= 0.0 else model.class_point(point.name).draw_w / point.output


def _rungs(model: BankModel, holdings: Holdings, reserved_classes: frozenset[str]) -> list[_Rung]:
    """Return what a bank can give, in the order of giving way: mining, then caps, then spot inference; reserved GPUs are only capped."""
    rungs: list[_Rung] = []
    capped = min((p for p in model.points.values() if p.mode is Mode.INFERENCE), key=lambda p: p.claim_w, default=None)
    for placement in holdings.placements:
        point = model.points[placement.point]
        if point.mode is Mode.MINING:
            kind_rank = 0 if model.kind is DeviceKind.ASIC else 1
            rungs.append(_Rung((kind_rank, -_efficiency_rank(model, point)), placement, model.rest))
        elif point.mode is Mode.INFERENCE:
            if capped is not None and capped.claim_w < point.claim_w:
                rungs.append(_Rung((2, 0.0), placement, capped))
            if model.device_class.inference_class not in reserved_classes:
                rungs.append(_Rung((3, 0.0), placement, model.rest))
    return sorted(rungs, key=lambda r: (r.rank, r.placement.point, r.to.name))


def shed_steps(state: SiteState, now_unix_s: float) -> tuple[ShedStep, ...]:
    """Return in which order banks are cut: mining worst J/TH first, GPU mining, inference to its caps, spot inference last."""
    reserved = reserved_classes(state, now_unix_s)
    steps: list[tuple[tuple[int, float], str, ShedStep]] = []
    for name, holdings in state.holdings.items():
        model = state.models[name]
        here_w = needed_w(model, holdings, state.open_flips(name))
        freed_w = 0.0
        for rung in _rungs(model, holdings, reserved):
            step_w = _unit_size(model) * (model.points[rung.placement.point].claim_w - rung.to.claim_w)
            freed_w += rung.placement.count * step_w / _unit_size(model)
            step = ShedStep(bank=name, to_w=max(model.fixed_claim_w, here_w - freed_w), step_w=step_w)
            steps.append((rung.rank, name, step))
    return tuple(step for _, _, step in sorted(steps, key=lambda s: (s[0], s[1])))


def reserved_classes(state: SiteState, now_unix_s: float) -> frozenset[str]:
    """Return inference classes that a reservation is owed now."""
    return frozenset(r.inference_class for r in state.reservations.values() if r.is_owed(now_unix_s))


def fitting_flips(
    state: SiteState, bank: str, granted_w: float, *, flip_id: str, reason: str, now_unix_s: float
) -> list[Flip]:
    """Return safety flips (still PLANNED) that bring a bank's need within what it was granted; none where it fits.

    Open flips are left to the caller: growth that has not started is to be cancelled first. `flip_id` is a prefix.
    """
    model = state.models[bank]
    holdings = state.holdings[bank]
    open_flips = state.open_flips(bank)
    over_w = needed_w(model, holdings, open_flips) - granted_w
    busy_units = {int(u) for f in open_flips for u in f.unit_ids}
    busy_count: dict[str, int] = {}
    for flip in open_flips:
        busy_count[flip.origin.name] = busy_count.get(flip.origin.name, 0) + flip.count
    flips: list[Flip] = []
    used: set[str] = set()
    for rung in _rungs(model, holdings, reserved_classes(state, now_unix_s)):
        if over_w <= TOLERANCE_W:
            break
        origin = model.points[rung.placement.point]
        per_device_w = origin.claim_w - rung.to.claim_w
        if per_device_w <= 0.0 or rung.placement.point in used:
            continue
        count, units = _how_many(model, rung.placement, busy_count, busy_units, over_w / per_device_w)
        if not count:
            continue
        used.add(rung.placement.point)
        flips.append(
            new_flip(
                id=f"{flip_id}{len(flips)}",
                bank=bank,
                kind=model.kind,
                count=count,
                origin=origin,
                aim=rung.to,
                reason=reason,
                author="guard",
                now_s=now_unix_s,
                times=state.site.policy.times,
                unit_ids=tuple(str(u) for u in units),
                is_safety=True,
            )
        )
        over_w -= count * per_device_w
    return flips


def _how_many(
    model: BankModel, placement: Placement, busy_count: dict[str, int], busy_units: set[int], wanted: float
) -> tuple[int, tuple[int, ...]]:
    if model.kind is DeviceKind.GPU:
        size = model.device_class.unit_size
        free = [u for u in placement.units if u not in busy_units]
        units = tuple(free[: math.ceil(wanted / size - 1e-9)])
        return len(units) * size, units
    free_count = max(0, placement.count - busy_count.get(placement.point, 0))
    return min(free_count, math.ceil(wanted - 1e-9)), ()


def _unit_size(model: BankModel) -> int:
    return model.device_class.unit_size if model.kind is DeviceKind.GPU else 1
