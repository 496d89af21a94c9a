"""Where a bank's devices stand, what the open flips make of that, and the watts and orders that follow.

Decides: the complete order of a bank (every device at one point) and the grant it needs. Refuses to know: whether the watts are
there (the ledger's business) and why a flip exists (the planner's). Invariants: devices in an open flip stay placed at its origin
until it is over and are counted at the larger of both points until their watts are given back; a device is in exactly one place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from swingbus.faults import InvalidInput
from swingbus_controller.domain.fleet import orders
from swingbus_controller.domain.flips.flip import Flip, Phase, WattState, desired_of
from swingbus_controller.domain.flips.flip_events import Tenancy
from swingbus_controller.domain.planning.points import DeviceKind, Mode, OperatingPoint
from swingbus_controller.domain.power.bank import BankSpec, feeder_w, rest_w
from swingbus_controller.domain.site.sitefile import ClassPoint, DeviceClass, SiteBank

ORDER_MODES = {
    Mode.MINING: orders.Mode.MINING,
    Mode.INFERENCE: orders.Mode.INFERENCE,
    Mode.STANDBY: orders.Mode.STANDBY,
    Mode.OFF: orders.Mode.OFF,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BankModel:
    """One managed bank: what the ledger counts with and what the planner chooses from, made once from the site file.

    `points` carry watts at the feeder per device, so that fixed + sum of points is exactly what `bank.grant_w` says.
    """

    name: str
    declared: SiteBank
    device_class: DeviceClass
    points: Mapping[str, OperatingPoint]
    rest: OperatingPoint
    fixed_claim_w: float

    @property
    def spec(self) -> BankSpec:
        """Return what the ledger counts with."""
        return self.declared.spec

    @property
    def kind(self) -> DeviceKind:
        """Return ASIC or GPU."""
        return self.device_class.kind

    @property
    def unit_count(self) -> int:
        """Return how many units move separately."""
        return self.declared.device_count // self.device_class.unit_size

    def class_point(self, name: str) -> ClassPoint:
        """Return the site file's point; KeyError for a name it does not know."""
        point = self.device_class.point(name)
        if point is None:
            raise KeyError(name)
        return point


def bank_model(
    declared: SiteBank, device_class: DeviceClass, *, shared: dict[OperatingPoint, OperatingPoint] | None = None
) -> BankModel:
    """Build the model; raise InvalidInput where the class has no resting point.

    Args:
        shared: points of other banks: equal ones are the same object then, and a plan works out once what they are worth.
    """
    spec = declared.spec
    fixed_w = feeder_w(spec, 0.0, is_starting=True)
    factor = (1.0 + spec.cooling_ratio) * (1.0 + spec.losses_ratio)
    points = {
        p.name: OperatingPoint(
            name=p.name,
            mode=p.mode,
            claim_w=p.counted_w * factor,
            draw_w=p.draw_w * factor,
            output=(p.hashrate_ths if p.hashrate_ths is not None else p.throughput_ratio) or 0.0,
            workload=p.workload or device_class.workloads.get(p.mode) or None,
        )
        for p in device_class.points
    }
    if shared is not None:
        points = {name: shared.setdefault(point, point) for name, point in points.items()}
    resting = [p for p in points.values() if p.mode is Mode.STANDBY]
    if not resting:
        raise InvalidInput(
            f"class {device_class.name!r} has no point with mode standby: write one, it is where unused devices go.",
            reason="NO_RESTING_POINT",
        )
    rest = min(resting, key=lambda p: p.claim_w)
    return BankModel(
        name=declared.name,
        declared=declared,
        device_class=device_class,
        points=points,
        rest=rest,
        fixed_claim_w=fixed_w,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Devices of a bank at one point.

    Attributes:
        units: the units, in a bank of GPUs; `count` is then units x unit size.
        since_s, mode_since_s: Unix seconds, for dwell.
    """

    point: str
    count: int
    units: tuple[int, ...] = ()
    since_s: float
    mode_since_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """Devices of a failed flip: told to rest, counted at `claim_w` in all until evidence shows better."""

    flip: str
    point: str
    count: int
    claim_w: float
    units: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """All devices of one bank, open flips not yet subtracted."""

    bank: str
    placements: tuple[Placement, ...]
    charges: tuple[Charge, ...] = ()

    def count_at(self, point: str) -> int:
        """Return devices placed at a point."""
        return sum(p.count for p in self.placements if p.point == point)

    def charged_units(self) -> frozenset[int]:
        """Return units of failed flips: not to be used before evidence shows better."""
        return frozenset(unit for charge in self.charges for unit in charge.units)


def nearest_point(model: BankModel, mode: Mode, power_w: float) -> OperatingPoint:
    """Return the point of a mode whose enforced watts are nearest; the resting point for a mode the class lacks."""
    of_mode = [p for p in model.device_class.points if p.mode is mode]
    if not of_mode:
        return model.rest
    return model.points[min(of_mode, key=lambda p: (abs(p.power_w - power_w), p.name)).name]


def adopt(model: BankModel, observed: Sequence[orders.PointOrder], now_unix_s: float) -> Holdings:
    """Return holdings as an agent reports them; devices it cannot place are taken to rest (their watts are the ledger's).

    A GPU unit that reports no tenant rests; unknown devices are ordered to rest, which can only lower what they draw.
    """
    total = model.declared.device_count
    seen_count = sum(seen.count for seen in observed)
    named = {unit for seen in observed for unit in seen.units}
    if seen_count > total or (model.kind is DeviceKind.GPU and not named <= set(range(model.unit_count))):
        raise InvalidInput(
            f"{model.name} reports {seen_count} devices{f' in units up to {max(named)}' if named else ''}, the site file declares "
            f"{total}{f' in {model.unit_count} units' if model.kind is DeviceKind.GPU else ''}: correct one of them.",
            reason="TOO_MANY_DEVICES",
        )
    counts: Counter[str] = Counter()
    units: dict[str, list[int]] = {}
    if model.kind is DeviceKind.GPU:
        # A unit between two points, its devices apart: it counts where it needs most.
        at: dict[int, OperatingPoint] = dict.fromkeys(range(model.unit_count), model.rest)
        for seen in observed:
            point = _point_of(model, seen)
            for unit in seen.units:
                at[unit] = max(at[unit], point, key=lambda p: p.claim_w)
        for unit, point in at.items():
            units.setdefault(point.name, []).append(unit)
            counts[point.name] += model.device_class.unit_size
    else:
        for seen in observed:
            counts[_point_of(model, seen).name] += seen.count
        counts[model.rest.name] += total - seen_count
    placements = tuple(
        Placement(
            point=name,
            count=count,
            units=tuple(units.get(name, ())),
            since_s=now_unix_s,
            mode_since_s=now_unix_s,
        )
        for name, count in sorted(counts.items())
        if count
    )
    return Holdings(bank=model.name, placements=placements)


def _point_of(model: BankModel, seen: orders.PointOrder) -> OperatingPoint:
    mode = next((m for m, wire in ORDER_MODES.items() if wire is seen.mode), None)
    point = model.points.get(seen.point)
    if point is not None and point.mode is mode:
        return point
    return model.rest if mode is None else nearest_point(model, mode, seen.power_w)


def finish(model: BankModel, holdings: Holdings, flip: Flip, now_unix_s: float) -> Holdings:
    """Return holdings after a flip is over: moved if ACTIVE, as before if ROLLED_BACK, resting and charged if FAILED."""
    units = tuple(int(u) for u in flip.unit_ids)
    match flip.phase:
        case Phase.ACTIVE:
            return _move(model, holdings, flip.origin.name, flip.aim.name, flip.count, units, now_unix_s)
        case Phase.FAILED:
            point, tenancy = desired_of(flip)
            target = point.name if tenancy is Tenancy.RUN else model.rest.name
            moved = _move(model, holdings, flip.origin.name, target, flip.count, units, now_unix_s)
            charge = Charge(flip=flip.id, point=target, count=flip.count, claim_w=flip.claim_w, units=units)
            return replace(moved, charges=(*moved.charges, charge))
        case _:
            return holdings


def _move(
    model: BankModel, holdings: Holdings, origin: str, aim: str, count: int, units: tuple[int, ...], now_unix_s: float
) -> Holdings:
    same_mode = model.points[origin].mode is model.points[aim].mode
    kept: list[Placement] = []
    left = count
    mode_since_s = now_unix_s
    for placement in holdings.placements:
        takes = min(left, placement.count) if placement.point == origin else 0
        if units and takes:
            takes = len(set(units) & set(placement.units)) * model.device_class.unit_size
        if not takes:
            kept.append(placement)
            continue
        left -= takes
        if same_mode:
            mode_since_s = min(mode_since_s, placement.mode_since_s)
        if placement.count > takes:
            rest_units = tuple(u for u in placement.units if u not in units)
            kept.append(replace(placement, count=placement.count - takes, units=rest_units))
    moved = Placement(point=aim, count=count - left, units=units, since_s=now_unix_s, mode_since_s=mode_since_s)
    return replace(holdings, placements=tuple([*kept, moved] if moved.count else kept))


def held_claim_w(flip: Flip) -> float:
    """Return the watts at the feeder that an open flip's devices count now.

    A shed for safety counts at its aim from the start: its grant was cut before it began, and nothing may grow into the difference.
    """
    if flip.is_safety and flip.claim_delta_w <= 0.0:
        at_aim = True
    elif flip.claim_delta_w > 0.0:
        at_aim = flip.watts is WattState.HELD
    else:
        at_aim = flip.watts is WattState.GIVEN_BACK
    return flip.count * (flip.aim.claim_w if at_aim else flip.origin.claim_w)


def wanted_claim_w(flip: Flip) -> float:
    """Return the watts that an open flip asks for now: its aim once it has asked."""
    if flip.claim_delta_w > 0.0 and flip.watts in (WattState.ASKED, WattState.HELD):
        return flip.count * flip.aim.claim_w
    return held_claim_w(flip)


def needed_w(model: BankModel, holdings: Holdings, flips: Iterable[Flip], *, with_asked: bool = False) -> float:
    """Return the grant that holdings, open flips and charges need; `with_asked` includes growth not yet granted."""
    open_flips = [f for f in flips if not f.is_over]
    settled: Counter[str] = Counter()
    for placement in holdings.placements:
        settled[placement.point] += placement.count
    flips_w = 0.0
    for flip in open_flips:
        settled[flip.origin.name] -= flip.count
        flips_w += wanted_claim_w(flip) if with_asked else held_claim_w(flip)
    devices_w = sum(max(0, count) * model.points[name].claim_w for name, count in settled.items())
    return model.fixed_claim_w + devices_w + flips_w + charged_w(model, holdings)


def resting_w(model: BankModel) -> float:
    """Return the grant of a bank whose devices all rest."""
    return model.fixed_claim_w + model.declared.device_count * model.rest.claim_w


def charged_w(model: BankModel, holdings: Holdings) -> float:
    """Return what failed flips are charged beyond the points where their devices are told to be."""
    return max(0.0, sum(c.claim_w - c.count * model.points[c.point].claim_w for c in holdings.charges))


def point_orders(
    model: BankModel, holdings: Holdings, flips: Iterable[Flip], *, is_locked_out: bool = False
) -> tuple[orders.PointOrder, ...]:
    """Return every device of the bank at the point where it shall be now."""
    if is_locked_out:
        units = tuple(range(model.unit_count)) if model.kind is DeviceKind.GPU else ()
        return (_order(model, model.rest, model.declared.device_count, units, runs=False),)
    counts: Counter[tuple[str, bool]] = Counter()
    unit_sets: dict[tuple[str, bool], set[int]] = {}
    for placement in holdings.placements:
        key = (placement.point, True)
        counts[key] += placement.count
        unit_sets.setdefault(key, set()).update(placement.units)
    for flip in flips:
        if flip.is_over:
            continue
        point, tenancy = desired_of(flip)
        units_moved = {int(u) for u in flip.unit_ids}
        old = (flip.origin.name, True)
        new = (model.rest.name if tenancy is Tenancy.STOP else point.name, True)
        counts[old] -= flip.count
        unit_sets.setdefault(old, set()).difference_update(units_moved)
        counts[new] += flip.count
        unit_sets.setdefault(new, set()).update(units_moved)
    return tuple(
        _order(model, model.points[name], count, tuple(sorted(unit_sets.get((name, runs), ()))), runs=runs)
        for (name, runs), count in sorted(counts.items())
        if count > 0
    )


def _order(
    model: BankModel, point: OperatingPoint, count: int, units: tuple[int, ...], *, runs: bool
) -> orders.PointOrder:
    return orders.PointOrder(
        point=point.name,
        mode=ORDER_MODES[point.mode],
        power_w=model.class_point(point.name).power_w,
        count=count,
        workload=(point.workload or "") if runs else "",
        units=units if model.kind is DeviceKind.GPU else (),
    )


def counting(model: BankModel) -> orders.BankCounting:
    """Return what the agent needs to count its own devices as the ledger does."""
    spec = model.spec
    return orders.BankCounting(
        bank=model.declared.bank,
        gpu_limit_ratio=spec.factors.gpu_limit_ratio,
        asic_target_ratio=spec.factors.asic_target_ratio,
        asic_boot_w=spec.factors.asic_boot_w,
        rest_w=rest_w(spec),
        device_ceiling_w=spec.device_ceiling_w,
        cooling_ratio=spec.cooling_ratio,
        losses_ratio=spec.losses_ratio,
        fixed_w=spec.host_w + spec.cooling_w + spec.start_peak_w,
    )


def stuck_counts(model: BankModel, mining: Mapping[str, int], ignoring_count: int) -> dict[str, int]:
    """Return how many of the machines at each mining point cannot be put to rest, so many ignoring it.

    Which machine is at which point is the agent's business, so they count where they hold the most watts.

    Args:
        mining: machines by mining point.
    """
    stuck: dict[str, int] = {}
    for name in sorted(mining, key=lambda point: -model.points[point].claim_w):
        stuck[name] = min(mining[name], ignoring_count)
        ignoring_count -= stuck[name]
    return stuck
