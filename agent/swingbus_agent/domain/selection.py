"""Choose which machines stand at which operating point. Pure: the same input gives the same choice, in any input order.

The controller orders counts; this room picks devices (or units of GPUs). Planned: the worst J/TH leaves first, the best comes
back first. Emergency: the most proven kW per second leaves first. Whoever already stands where an order wants somebody
stays. Invariants: a locked device keeps what it has and is never touched; a unit moves as a whole; nobody gets two targets; the
counts of the order are met exactly unless locked or stuck devices make that impossible, and then never with more watts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swingbus.faults import InvalidInput
from swingbus_agent.domain.counting import device_counted_w, feeder_w
from swingbus_agent.domain.orders import BankCounting, BankOrder, Mode, PointOrder, Urgency
from swingbus_agent.domain.readings import BankSpec, Kind

_UNKNOWN_EFFICIENCY = 1e9
_RUNNING = (Mode.MINING, Mode.INFERENCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What one device shall do."""

    point: str
    mode: Mode
    power_w: float
    workload: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One device (ASIC) or unit (GPUs) as the choice sees it; `name` is a device id or `unit-N`."""

    name: str
    unit: int
    current: Target | None  # what it was last ordered to do, else what it is seen doing; None: not known
    j_per_th: float | None = None
    shed_kw_per_s: float = 0.0
    is_answering: bool = True
    is_fixed: bool = False  # locked, or does not obey: keeps `current`


def check_order(order: BankOrder, spec: BankSpec) -> None:
    """Refuse an order that this bank cannot mean.

    Raises:
        InvalidInput: what is wrong and what would be right.
    """
    where = f"bank {spec.bank}"
    total = sum(point.count for point in order.points)
    if total != len(spec.devices) and not order.locked_out:
        raise InvalidInput(
            f"{where}: the points hold {total} devices, the bank has {len(spec.devices)}; order all of them",
            reason="BAD_ORDER",
        )
    modes = (Mode.MINING, Mode.STANDBY) if spec.kind is Kind.ASIC else (*_RUNNING, Mode.STANDBY)
    for point in order.points:
        if point.mode not in modes:
            names = ", ".join(mode.name.lower() for mode in modes)
            raise InvalidInput(
                f"{where}: point {point.point!r} wants {point.mode.name.lower()}, which this agent cannot do here; it can {names}",
                reason="MODE_UNSUPPORTED",
            )
        if point.workload and point.workload not in spec.workloads:
            raise InvalidInput(
                f"{where}: point {point.point!r} names workload {point.workload!r}; the agent's file allows here: "
                f"{', '.join(spec.workloads) or 'none'}",
                reason="UNKNOWN_WORKLOAD",
            )
        if spec.kind is Kind.GPU and point.mode in _RUNNING and point.count and not point.workload:
            raise InvalidInput(f"{where}: point {point.point!r} needs a workload's name", reason="BAD_ORDER")
        if point.count % spec.unit_size:
            raise InvalidInput(
                f"{where}: point {point.point!r} has {point.count} devices, no multiple of the unit of {spec.unit_size}",
                reason="BAD_ORDER",
            )
        if len(set(point.units)) * spec.unit_size > point.count:
            raise InvalidInput(f"{where}: point {point.point!r} names more units than it counts", reason="BAD_ORDER")
    if spec.kind is Kind.ASIC and any(point.units for point in order.points):
        raise InvalidInput(f"{where}: miners have no units; order by count", reason="BAD_ORDER")
    named = [unit for point in order.points for unit in point.units]
    if len(named) != len(set(named)):
        raise InvalidInput(f"{where}: a unit is named at two points", reason="BAD_ORDER")
    unknown = sorted(set(named) - {device.unit for device in spec.devices})
    if unknown:
        raise InvalidInput(f"{where}: there is no unit {unknown[0]}", reason="BAD_ORDER")


def target_of(point: PointOrder) -> Target:
    """Return what one device of this point shall do."""
    return Target(point=point.point, mode=point.mode, power_w=point.power_w, workload=point.workload)


def choose(
    points: Sequence[PointOrder], candidates: Sequence[Candidate], *, unit_size: int, urgency: Urgency
) -> dict[str, Target]:
    """Return a target for each candidate that is not fixed.

    Args:
        points: counts of devices, together `unit_size` x candidates.
        candidates: all devices or units of the bank.
        unit_size: devices of one candidate.
        urgency: how to choose who leaves.
    """
    room = {target_of(point): 0 for point in points}
    pinned: dict[int, Target] = {}
    for point in points:
        room[target_of(point)] += point.count // unit_size
        pinned.update(dict.fromkeys(point.units, target_of(point)))
    chosen: dict[str, Target] = {}
    pool: list[Candidate] = []
    fixed = [candidate for candidate in candidates if candidate.is_fixed]
    for candidate in sorted(fixed, key=lambda each: (-_held_w(each), each.name)):
        _take(room, candidate.current)
    for candidate in sorted(candidates, key=lambda each: (each.unit, each.name)):
        if candidate.is_fixed:
            continue
        if candidate.unit in pinned:
            chosen[candidate.name] = pinned[candidate.unit]
            room[pinned[candidate.unit]] -= 1
        else:
            pool.append(candidate)
    # Greatest watts first, so that the best machines get the points that are worth most.
    order = sorted(room, key=lambda target: (target.mode not in _RUNNING, -target.power_w, target.point))
    for target in order:
        holders = sorted((c for c in pool if c.current == target), key=lambda c: _staying(c, target, urgency))
        for candidate in holders[: max(0, room[target])]:
            chosen[candidate.name] = target
            room[target] -= 1
            pool.remove(candidate)
    for target in order:
        while pool and room[target] > 0:
            best = min(pool, key=lambda c: (not _is_near(c, target), *_rank(c, urgency)))
            chosen[best.name] = target
            room[target] -= 1
            pool.remove(best)
    # More devices than places (a fixed one sits elsewhere): the rest goes where it draws least.
    if pool:
        least = min(order, key=lambda target: (target.mode in _RUNNING, target.power_w, target.point))
        chosen.update({candidate.name: least for candidate in pool})
    return chosen


def _held_w(candidate: Candidate) -> float:
    """Return the watts of a fixed device; one of which nothing is known comes first."""
    return float("inf") if candidate.current is None else candidate.current.power_w


def _take(room: dict[Target, int], current: Target | None) -> None:
    """Let a fixed device use up the place that it sits on, or the most alike one; watts are never handed out twice."""
    open_places = [target for target, count in room.items() if count > 0]
    if not open_places:
        return
    if current is None:  # not known what it does: it uses up the place with the most watts
        place = max(open_places, key=lambda target: (target.mode in _RUNNING, target.power_w))
    elif current in open_places:
        place = current
    else:
        by_watts = sorted(open_places, key=lambda target: (target.mode in _RUNNING, target.power_w))
        enough = [target for target in by_watts if target.power_w >= current.power_w]
        same = [target for target in enough if target.mode is current.mode]
        # The least place that covers it; where none does, the most that is left.
        place = (same or enough or by_watts[-1:])[0]
    room[place] -= 1


def _is_near(candidate: Candidate, target: Target) -> bool:
    """Whoever already does the same at other watts, or runs the same workload, moves least."""
    current = candidate.current
    return current is not None and current.mode is target.mode and current.workload == target.workload


def _rank(candidate: Candidate, urgency: Urgency) -> tuple[bool, float, str]:
    """Least first stays in place: the ones that answer, then the most efficient (or the slowest to shed), then by name."""
    if urgency is Urgency.EMERGENCY:
        worth = candidate.shed_kw_per_s
    else:
        worth = _UNKNOWN_EFFICIENCY if candidate.j_per_th is None else candidate.j_per_th
    # One that does not answer cannot be put to rest either: it keeps its place.
    return candidate.is_answering, worth, candidate.name


def _staying(candidate: Candidate, target: Target, urgency: Urgency) -> tuple[bool, float, str]:
    """Among those who rest the worst stay, so that the best come back first."""
    answers, worth, name = _rank(candidate, urgency)
    return answers, worth if target.mode in _RUNNING else -worth, name


def fit(
    targets: Mapping[str, Target],
    candidates: Sequence[Candidate],
    *,
    spec: BankSpec,
    counting: BankCounting,
    allowed_w: float,
    floor_w: float,
    fixed_devices_w: float = 0.0,
) -> dict[str, Target]:
    """Return targets whose counted watts at the feeder are at most `allowed_w`, as far as resting and capping can do it.

    Mining rests first, worst J/TH first; then inference is capped, evenly and to no less than `floor_w` a GPU; it is never
    stopped. Nothing ever rises.

    Args:
        targets: what is wanted, by candidate name.
        candidates: all devices or units.
        spec: the bank.
        counting: the site's factors.
        allowed_w: what the governor allows at the feeder.
        floor_w: the least limit that a GPU takes; not used for ASICs.
        fixed_devices_w: what devices without a target count at.
    """
    fitted = dict(targets)
    ranks = {candidate.name: candidate for candidate in candidates}

    def total_w() -> float:
        sums = [
            spec.unit_size * device_counted_w(counting, spec.kind, target.mode, target.power_w)
            for target in fitted.values()
        ]
        return feeder_w(counting, [*sums, fixed_devices_w])

    miners = sorted(
        (name for name, target in fitted.items() if target.mode is Mode.MINING),
        key=lambda name: _rank(ranks[name], Urgency.PLANNED),
        reverse=True,
    )
    excess_w = total_w() - allowed_w
    for name in miners:
        if excess_w <= 1e-6:
            return fitted
        before = fitted[name]
        rest = Target(
            point="", mode=Mode.STANDBY, power_w=min(floor_w, before.power_w) if spec.kind is Kind.GPU else 0.0
        )
        fitted[name] = rest
        excess_w -= feeder_w(
            counting,
            [
                spec.unit_size
                * (
                    device_counted_w(counting, spec.kind, before.mode, before.power_w)
                    - device_counted_w(counting, spec.kind, rest.mode, rest.power_w)
                )
            ],
        ) - feeder_w(counting, [])
    if excess_w <= 1e-6 or spec.kind is Kind.ASIC:
        return fitted
    serving = [name for name, target in fitted.items() if target.power_w > floor_w]
    if serving:
        # The greatest even cap that fits; watts above the floor are what there is to give.
        per_w = (
            counting.gpu_limit_ratio * (1.0 + counting.cooling_ratio) * (1.0 + counting.losses_ratio) * spec.unit_size
        )
        limits = {name: fitted[name].power_w for name in serving}
        cap_w = _even_cap(list(limits.values()), floor_w, excess_w / per_w)
        for name in serving:
            before = fitted[name]
            if before.power_w > cap_w:
                fitted[name] = Target(point="", mode=before.mode, power_w=cap_w, workload=before.workload)
    return fitted


def _even_cap(limits_w: Sequence[float], floor_w: float, give_w: float) -> float:
    """Return the cap that takes `give_w` off these limits, at least `floor_w`.

    >>> _even_cap([300.0, 200.0], 100.0, 120.0)
    190.0
    """
    ordered = sorted(limits_w, reverse=True)
    cap_w = ordered[0]
    for index, _ in enumerate(ordered):
        following = ordered[index + 1] if index + 1 < len(ordered) else floor_w
        following = max(following, floor_w)
        step_w = (cap_w - following) * (index + 1)
        if step_w >= give_w:
            return max(floor_w, cap_w - give_w / (index + 1))
        give_w -= step_w
        cap_w = following
    return floor_w
