"""Protection: what gives way first, and how a bank's devices are made to fit a grant that was cut.

`guard` says which banks are cut; this room says in which order they are asked and turns each cut into recorded safety flips, so that
every device that is shed is on the record and comes back only by plan.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from swingbus_controller.domain.flips.boot_axis import axis_at
from swingbus_controller.domain.flips.flip import Direction, Flip, WattState, new_flip
from swingbus_controller.domain.flips.placement import BankModel, Holdings, charged_w, needed_w, stuck_counts
from swingbus_controller.domain.planning.points import DeviceKind, Mode, OperatingPoint
from swingbus_controller.domain.power.guard import ShedStep
from swingbus_controller.domain.site_state import SiteState

TOLERANCE_W = 1.0
# Ranks up to this one are mining: ASICs 0, GPUs 1; caps and spot inference come after.
LAST_MINING_RANK = 1
LAST_RANK = 3


@dataclass(frozen=True, slots=True)
class _Rung:
    """One thing that a bank can give: devices at one point go to another. Devices in flips and charged ones are not there to give."""

    rank: tuple[int, float]
    origin: OperatingPoint
    to: OperatingPoint
    count: int
    units: tuple[int, ...]

    @property
    def per_device_w(self) -> float:
        """Return what one device frees."""
        return self.origin.claim_w - self.to.claim_w


def _efficiency_rank(model: BankModel, point: OperatingPoint) -> float:
    """Return joules per unit of output; the worst gives way first."""
    return math.inf if point.output <= 0.0 else model.class_point(point.name).draw_w / point.output


def _rungs(
    model: BankModel,
    holdings: Holdings,
    open_flips: Sequence[Flip],
    reserved_classes: frozenset[str],
    *,
    is_locked_out: bool,
) -> list[_Rung]:
    """Return what a bank can give, in the order of giving way: mining, then caps, then spot inference; reserved GPUs are only capped.

    With hands inside everything rests, whoever it was promised to.
    """
    rungs: list[_Rung] = []
    capped = min((p for p in model.points.values() if p.mode is Mode.INFERENCE), key=lambda p: p.claim_w, default=None)
    for name, (count, units) in sorted(free_devices(model, holdings, open_flips).items()):
        origin = model.points[name]
        if origin.mode is Mode.MINING:
            kind_rank = 0 if model.kind is DeviceKind.ASIC else 1
            rungs.append(_Rung((kind_rank, -_efficiency_rank(model, origin)), origin, model.rest, count, units))
        elif origin.mode is Mode.INFERENCE:
            if capped is not None and capped.claim_w < origin.claim_w and not is_locked_out:
                rungs.append(_Rung((2, 0.0), origin, capped, count, units))
            if is_locked_out or model.device_class.inference_class not in reserved_classes:
                rungs.append(_Rung((3, 0.0), origin, model.rest, count, units))
    return sorted((r for r in rungs if r.per_device_w > 0.0), key=lambda r: (r.rank, r.origin.name, r.to.name))


def free_devices(
    model: BankModel, holdings: Holdings, open_flips: Sequence[Flip]
) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Return how many devices (and which units) of each point no flip has and no charge holds."""
    counts: Counter[str] = Counter()
    units: dict[str, list[int]] = {}
    taken = {int(u) for f in open_flips for u in f.unit_ids} | holdings.charged_units()
    for placement in holdings.placements:
        counts[placement.point] += placement.count
        units.setdefault(placement.point, []).extend(u for u in placement.units if u not in taken)
    if model.kind is DeviceKind.GPU:
        size = model.device_class.unit_size
        return {name: (len(ids) * size, tuple(sorted(ids))) for name, ids in units.items() if ids}
    for flip in open_flips:
        counts[flip.origin.name] -= flip.count
    for charge in holdings.charges:
        counts[charge.point] -= charge.count
    return {name: (count, ()) for name, count in counts.items() if count > 0}


def unshed_w(model: BankModel, holdings: Holdings, open_flips: Iterable[Flip]) -> float:
    """Return watts of a bank's need for which no other device of it should rest.

    Growth on its way back frees them by itself; what failed flips are charged is not freed by resting others: it is the ledger that
    finds other banks where a cut is not proven in time.
    """
    undone_w = sum(
        f.claim_delta_w
        for f in open_flips
        if f.claim_delta_w > 0.0 and f.watts is WattState.HELD and f.direction is Direction.UNDO
    )
    return undone_w + charged_w(model, holdings)


def is_retractable(flip: Flip) -> bool:
    """Tell whether an open flip is growth that can be called back when watts are short."""
    is_growth = flip.claim_delta_w > 0.0 and flip.watts in (WattState.ASKED, WattState.HELD)
    return is_growth and flip.direction is Direction.FORWARD and not flip.is_safety


def shed_steps(state: SiteState, now_unix_s: float) -> tuple[ShedStep, ...]:
    """Return in which order banks are cut: growth to mining, mining worst J/TH first, GPU mining, growth to
    inference, caps, spot inference last.

    The last step of a bank leaves it what resting devices, flips and charges need, and its machines that are known to ignore sleep: a
    deeper cut could never be obeyed, so it would never be proven, and other banks would have to give the same watts once more.
    """
    reserved = reserved_classes(state, now_unix_s)
    steps: list[tuple[tuple[int, float], str, ShedStep]] = []
    for name, holdings in state.holdings.items():
        model = state.models[name]
        open_flips = state.open_flips(name)
        left_w = needed_w(model, holdings, open_flips)
        gives = _gives(
            model,
            holdings,
            open_flips,
            reserved,
            ignoring_count=state.ignoring_count(name),
            is_locked_out=name in state.lockouts,
        )
        for rank, freed_w, step_w in sorted(gives, key=lambda give: give[0]):
            left_w -= freed_w
            steps.append((rank, name, ShedStep(bank=name, to_w=left_w, step_w=step_w)))
    return tuple(step for _, _, step in sorted(steps, key=lambda s: (s[0], s[1])))


def _gives(
    model: BankModel,
    holdings: Holdings,
    open_flips: Sequence[Flip],
    reserved: frozenset[str],
    *,
    ignoring_count: int,
    is_locked_out: bool,
) -> Iterator[tuple[tuple[int, float], float, float]]:
    """Yield (rank, watts in all, watts of one step) of everything that a bank can give."""
    coming_w = unshed_w(model, holdings, open_flips)
    if coming_w > 0.0:
        yield (-2, 0.0), coming_w, coming_w
    for flip in open_flips:
        if is_retractable(flip) and flip.watts is WattState.HELD:
            yield growth_rank(flip), flip.claim_delta_w, flip.claim_delta_w
    size = _unit_size(model)
    capped: set[str] = set()
    rungs = _rungs(model, holdings, open_flips, reserved, is_locked_out=is_locked_out)
    mining = {r.origin.name: r.count for r in rungs if r.origin.mode is Mode.MINING}
    stuck = stuck_counts(model, mining, ignoring_count)
    for rung in rungs:
        per_device_w = rung.per_device_w
        if rung.to.mode is Mode.INFERENCE:
            capped.add(rung.origin.name)
        elif rung.origin.name in capped:
            # What its cap frees is counted already.
            per_device_w -= rung.origin.claim_w - _lowest_serving_w(model)
        yield rung.rank, (rung.count - stuck.get(rung.origin.name, 0)) * per_device_w, size * per_device_w


def growth_rank(flip: Flip) -> tuple[int, float]:
    """Return when growth under way is called back: to mining before anything rests, to inference after all mining."""
    return (LAST_MINING_RANK, math.inf) if flip.aim.mode is Mode.INFERENCE else (-1, 0.0)


def _lowest_serving_w(model: BankModel) -> float:
    return min(p.claim_w for p in model.points.values() if p.mode is Mode.INFERENCE)


def reserved_classes(state: SiteState, now_unix_s: float) -> frozenset[str]:
    """Return inference classes that a reservation is owed now."""
    return frozenset(r.inference_class for r in state.reservations.values() if r.is_owed(now_unix_s))


def fitting_flips(
    state: SiteState,
    bank: str,
    granted_w: float,
    *,
    flip_id: str,
    reason: str,
    now_s: float,
    now_unix_s: float,
    up_to: int = LAST_RANK,
) -> list[Flip]:
    """Return safety flips (still PLANNED) that bring a bank's need within what it was granted; none where it fits.

    Open flips are left to the caller: growth under way is to be cancelled. `flip_id` is a prefix, `up_to` the last rank to be touched.
    """
    model = state.models[bank]
    holdings = state.holdings[bank]
    open_flips = state.open_flips(bank)
    over_w = needed_w(model, holdings, open_flips) - unshed_w(model, holdings, open_flips) - granted_w
    flips: list[Flip] = []
    used: set[str] = set()
    reserved = reserved_classes(state, now_unix_s)
    for rung in _rungs(model, holdings, open_flips, reserved, is_locked_out=bank in state.lockouts):
        if over_w <= TOLERANCE_W:
            break
        if rung.origin.name in used or rung.rank[0] > up_to:
            continue
        size = _unit_size(model)
        count = min(rung.count, math.ceil(over_w / rung.per_device_w / size - 1e-9) * size)
        used.add(rung.origin.name)
        flips.append(
            new_flip(
                id=f"{flip_id}{len(flips)}",
                bank=bank,
                kind=model.kind,
                count=count,
                origin=rung.origin,
                aim=rung.to,
                reason=reason,
                author="guard",
                now_s=now_s,
                axis=axis_at(state.ledger.boot_id, now_s=now_s, now_unix_s=now_unix_s),
                times=state.site.policy.times,
                unit_ids=tuple(str(u) for u in rung.units[: count // size]),
                is_safety=True,
            )
        )
        over_w -= count * rung.per_device_w
    return flips


def _unit_size(model: BankModel) -> int:
    return model.device_class.unit_size if model.kind is DeviceKind.GPU else 1
