"""What each unit of a bank shall hold, and how roles change places where kubelet chose another GPU than we had in mind.

Decides: the wish of every unit, from placements and open flips; which units swap roles, also so that the lower limit is where nobody
serves. Refuses to know the API and how many watts there are: two units of one bank that swap roles leave what the bank counts as it was.
Invariants: a role is never lost or doubled; a unit that a failed flip is charged for keeps its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from swingbus_controller.domain.cluster.facts import PodRef
from swingbus_controller.domain.cluster.pod_moves import UnitWish
from swingbus_controller.domain.flips.flip import Flip, desired_of
from swingbus_controller.domain.flips.flip_events import Tenancy
from swingbus_controller.domain.flips.placement import BankModel, Holdings
from swingbus_controller.domain.planning.points import WORKING_MODES, Mode, OperatingPoint

Swap = tuple[int, int]


def unit_wishes(
    model: BankModel,
    holdings: Holdings,
    flips: Iterable[Flip],
    *,
    free_units: Collection[int] = (),
    vacancies: Mapping[int, PodRef] | None = None,
    is_locked_out: bool = False,
) -> list[UnitWish]:
    """Return the wish of every unit of a bank of GPUs, in order.

    Args:
        free_units: units that evidence shows free now.
        vacancies: who is let into which unit of inference that stands empty.
    """
    if is_locked_out:
        return [UnitWish(unit=unit, tenant=Mode.STANDBY, is_freed=True) for unit in range(model.unit_count)]
    wishes: dict[int, UnitWish] = {}
    let_in = vacancies or {}
    for placement in holdings.placements:
        mode = model.points[placement.point].mode
        tenant = mode if mode in WORKING_MODES else Mode.STANDBY
        for unit in placement.units:
            pod = let_in.get(unit) if tenant is Mode.INFERENCE else None
            wishes[unit] = UnitWish(unit=unit, tenant=tenant, may_start=unit in free_units, pod=pod)
    for flip in flips:
        if flip.is_over or not flip.is_mode_flip:
            continue
        point, tenancy = desired_of(flip)
        runs = tenancy is Tenancy.RUN and point.mode in WORKING_MODES
        # Who is to leave is named on the way out of inference, who may come on the way in.
        is_leaving = tenancy is not Tenancy.RUN and flip.source.mode is Mode.INFERENCE
        is_named = is_leaving or (runs and flip.destination.mode is point.mode is Mode.INFERENCE)
        for unit in map(int, flip.unit_ids):
            wishes[unit] = UnitWish(
                unit=unit,
                tenant=point.mode if runs else Mode.STANDBY,
                may_start=unit in free_units,
                is_freed=tenancy is not Tenancy.RUN,
                flip=flip.id,
                pod=flip.pod if is_named else None,
                brings=flip.pod if not runs and flip.destination.mode is Mode.INFERENCE else None,
            )
    return [wishes.get(unit, UnitWish(unit=unit, tenant=Mode.STANDBY)) for unit in range(model.unit_count)]


def find_swaps(
    wishes: Sequence[UnitWish],
    seen: Mapping[int, Mode],
    *,
    held_units: Collection[int],
    fixed_units: Collection[int] = (),
    pods: Mapping[int, PodRef] | None = None,
) -> list[Swap]:
    """Return which units have to swap roles so that who stays is where it shall be; no unit is in two of them.

    Args:
        seen: the tenant of each unit that somebody holds who stays.
        held_units: units that anybody holds, those who leave among them; all others stand empty.
        fixed_units: units that keep their roles.
        pods: who it is that stays on a unit: a pod that is named gets the places that name it, not another's.

    >>> wishes = [UnitWish(unit=0, tenant=Mode.INFERENCE, flip="f"), UnitWish(unit=1, tenant=Mode.STANDBY)]
    >>> find_swaps(wishes, {1: Mode.INFERENCE}, held_units={1})
    [(1, 0)]
    """
    swaps: list[Swap] = []
    open_wishes = {wish.unit: wish for wish in wishes if wish.unit not in fixed_units}

    def swap(one: int, two: int) -> None:
        swaps.append((one, two))
        del open_wishes[one], open_wishes[two]

    for unit, pod in sorted((pods or {}).items()):
        wish = open_wishes.get(unit)
        if wish is None or wish.pod == pod or unit not in seen:
            continue
        own = (
            other.unit
            for other in sorted(open_wishes.values(), key=lambda each: (each.unit in held_units, each.unit))
            if other.pod == pod
            and (pods or {}).get(other.unit) != pod
            # Whoever is there instead must not come into a wrong place for it.
            and (other.unit not in held_units or seen.get(other.unit) is wish.tenant)
        )
        if (place := next(own, None)) is not None:
            swap(unit, place)
    named = {wish.pod for wish in wishes}
    for unit, pod in sorted((pods or {}).items()):
        wish = open_wishes.get(unit)
        # Kubelet gave somebody who was let into an empty place the unit that is kept for another: that one gets the empty place instead.
        if wish is None or wish.pod in (None, pod) or pod in named or seen.get(unit) is not wish.tenant:
            continue
        empty = (
            other.unit
            for other in sorted(open_wishes.values(), key=lambda each: each.unit)
            if other.pod is None and other.tenant is wish.tenant and other.unit not in held_units
        )
        if (place := next(empty, None)) is not None:
            swap(unit, place)
    present = {None, *(pods or {}).values()}
    for wish in list(open_wishes.values()):
        tenant = seen.get(wish.unit)
        if tenant is None or tenant is wish.tenant or wish.unit not in open_wishes:
            continue
        # Two who are each in the other's kind of place; what is kept for somebody who is not here yet is left alone.
        crossed = (
            other.unit
            for other in open_wishes.values()
            if other.tenant is tenant and seen.get(other.unit) is wish.tenant and {wish.pod, other.pod} <= present
        )
        if (place := next(crossed, None)) is not None:
            swap(wish.unit, place)
    vacant: dict[Mode, list[UnitWish]] = {}
    for wish in open_wishes.values():
        # What is kept for somebody with a name is nobody else's.
        if wish.unit not in held_units and wish.tenant in WORKING_MODES and wish.pod is None:
            vacant.setdefault(wish.tenant, []).append(wish)
    # A place that a flip waits to see filled comes before one that merely stands empty.
    for places in vacant.values():
        places.sort(key=lambda wish: (not wish.flip, wish.unit))
    for wish in list(open_wishes.values()):
        tenant = seen.get(wish.unit)
        if tenant is not None and tenant is not wish.tenant and (places := vacant.get(tenant, [])):
            swap(wish.unit, places.pop(0).unit)
    return swaps


def find_limit_swaps(
    points: Mapping[str, OperatingPoint],
    holdings: Holdings,
    *,
    empty_units: Collection[int],
    serving_units: Collection[int],
    fixed_units: Collection[int] = (),
) -> list[Swap]:
    """Return which units swap roles so that a place that stands empty has the lower limit, not one where somebody serves.

    Args:
        empty_units: places of inference that are free by evidence and kept for nobody.
        serving_units: units that somebody has who stays.
        fixed_units: units that keep their roles: flips are under way there, or failed.
    """
    claims_w = {
        unit: points[placement.point].claim_w
        for placement in holdings.placements
        if points[placement.point].mode is Mode.INFERENCE
        for unit in placement.units
        if unit not in fixed_units
    }
    low = sorted((unit for unit in serving_units if unit in claims_w), key=lambda unit: (claims_w[unit], unit))
    high = sorted((unit for unit in empty_units if unit in claims_w), key=lambda unit: (-claims_w[unit], unit))
    return [(one, two) for one, two in zip(low, high, strict=False) if claims_w[one] < claims_w[two]]


def swap_roles(holdings: Holdings, flips: Sequence[Flip], swaps: Iterable[Swap]) -> tuple[Holdings, list[Flip]]:
    """Return holdings and those flips that change, with the roles of units swapped; what a changed flip was shown is to be shown anew."""
    other: dict[int, int] = {}
    for one, two in swaps:
        other[one], other[two] = two, one
    placements = tuple(
        replace(p, units=tuple(sorted(other.get(unit, unit) for unit in p.units))) for p in holdings.placements
    )
    changed: list[Flip] = []
    for flip in flips:
        units = tuple(str(other.get(int(unit), int(unit))) for unit in flip.unit_ids)
        if units != flip.unit_ids:
            changed.append(replace(flip, unit_ids=units, evidence=frozenset()))
    return replace(holdings, placements=placements), changed
