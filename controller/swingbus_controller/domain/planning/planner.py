"""The strike-price planner: how many devices of each bank should be at which operating point, and why.

It decides by value per counted watt: firm reservations first (at their lowest cap, so that caps come before stops), then whatever
earns most above its strike, inference by its price and mining by its joules per terahash, GPU mining as a filler if it is switched
on, rest otherwise; a point that devices are not at yet must beat the present one by the hysteresis of `worth`. It knows no agent,
no ledger and no device by name; it plans counts and may be wrong about watts, which is why `admission` checks each move again.
A pure function: no clock, no chance, no memory but what the view says. Invariants: the claims of a plan fit every feeder that its
fixed claims fit; nothing moves inside its dwell or under a pin unless a limit forces it; the order of the input never matters.
"""

from __future__ import annotations

import math
from dataclasses import replace

from swingbus.faults import InvalidInput
from swingbus_controller.domain.planning.market import MarketView
from swingbus_controller.domain.planning.outcome import (
    HOLD_DWELL,
    HOLD_ENTRY,
    HOLD_MODE_DWELL,
    HOLD_NONE,
    HOLD_PINNED,
    HOLD_SHED,
    Outcome,
    bank_claim_w,
    rest_point,
    standing_room,
)
from swingbus_controller.domain.planning.packing import EPSILON_W, Group, Headroom
from swingbus_controller.domain.planning.plan import (
    PLANNABLE,
    AtPoint,
    Availability,
    BankView,
    FirmNeed,
    Holding,
    Plan,
    PlanView,
)
from swingbus_controller.domain.planning.points import DeviceKind, Mode, OperatingPoint
from swingbus_controller.domain.planning.policy import Policy
from swingbus_controller.domain.planning.worth import SECONDS_PER_HOUR, Purpose, Worth


def plan(view: PlanView, market: MarketView, policy: Policy, now_s: float) -> Plan:
    """Plan a site for now.

    Args:
        view: the fleet at one revision.
        market: quotes now; unknown ones are None or absent.
        policy: dwell, costs and switches.
        now_s: wall clock, the same as the view's `since_s`.

    Raises:
        InvalidInput: the view contradicts itself (a bank on an unknown feeder, broken units, a point without a name).
    """
    banks = tuple(sorted(view.banks, key=lambda b: b.bank))
    _check(banks)
    needs = tuple(sorted(view.firm_needs, key=lambda n: (-n.price_usd_per_device_h, n.reservation)))
    worth = Worth(market=market, policy=policy, firm_price=_firm_prices(needs))

    tree = Headroom(view.feeders)
    groups = _groups(tree, banks, policy, now_s)
    stay = Outcome.run(view, banks, needs, worth, [_frozen(g) for g in groups], now_s, tree)
    forced = _shed(view, groups, worth, tree)
    barred = {bank.bank: bank.barred_points for bank in banks}
    # Room for more is made beside what is in doubt, if that pays. Who has to go goes for what is known.
    is_free = stay.fits and not any(group.origin.name in barred[group.bank.bank] for group in groups)
    best = Outcome.run(view.wary() if is_free else view, banks, needs, worth, forced, now_s, tree)

    moves = best.moves(stay)
    has_to_leave = any(move.from_point in barred[move.bank] for move in moves)
    if stay.fits and not has_to_leave and not best.serves_more_firm_than(stay) and moves:
        gain = (best.margin - stay.margin) * policy.expected_hold_s / SECONDS_PER_HOUR
        if gain <= sum(m.cost_usd for m in moves):
            best, moves = stay, ()  # rounding ate the gain: nothing is worth moving for (S4)
    return Plan(
        basis_revision=view.revision,
        made_at_s=now_s,
        site=view.site,
        targets=best.targets(),
        moves=moves,
        feeders=best.outlook(),
        shortfalls=best.shortfalls(),
        margin_usd_per_h=best.margin,
        over_limit_w=best.over_limit_w(),
        view=view,
        market=market,
        policy=policy,
    )


def dwell_left_s(bank: BankView, holding: Holding, policy: Policy, now_s: float) -> float:
    """Return how long these devices must still stay in their mode (for an ASIC: at their profile) before money may move them."""
    return _dwell_left_s(bank, bank.point(holding.point), holding.since_s, holding.in_mode_since_s, policy, now_s)


def _dwell_left_s(
    bank: BankView, point: OperatingPoint, since_s: float, in_mode_since_s: float, policy: Policy, now_s: float
) -> float:
    if bank.kind is DeviceKind.ASIC:
        return max(0.0, policy.asic_dwell_s - (now_s - since_s))
    least_s = policy.gpu_dwell_s if bank.dwell_s is None else bank.dwell_s.get(point.mode, 0.0)
    return max(0.0, least_s - (now_s - in_mode_since_s))


def _check(banks: tuple[BankView, ...]) -> None:
    seen: set[str] = set()
    for bank in banks:
        where = {"bank": bank.bank}
        if bank.bank in seen:
            raise InvalidInput(f"bank {bank.bank!r} appears twice in the view", metadata=where)
        seen.add(bank.bank)
        if bank.contradiction is not None:
            raise InvalidInput(f"bank {bank.bank!r}: {bank.contradiction}", metadata=where)


def _firm_prices(needs: tuple[FirmNeed, ...]) -> dict[str, float]:
    """Mean price of the firm devices of each class."""
    total: dict[str, tuple[float, int]] = {}
    for need in needs:
        money, count = total.get(need.inference_class, (0.0, 0))
        total[need.inference_class] = (
            money + need.device_count * need.price_usd_per_device_h,
            count + need.device_count,
        )
    return {name: money / count for name, (money, count) in total.items() if count}


def _groups(tree: Headroom, banks: tuple[BankView, ...], policy: Policy, now_s: float) -> list[Group]:
    groups: list[Group] = []
    for bank in banks:
        path = tree.path(bank.feeder, bank.bank)
        if bank.availability not in PLANNABLE:
            continue
        for at in bank.at_points:
            for hold, part in _by_hold(bank, at, policy, now_s):
                groups.append(
                    Group(
                        bank=bank, path=path, origin=at.point, hold=hold, allowed=_allowed(bank, at.point, hold, policy),
                        units=part.count // bank.unit_size, unit_ids=part.unit_ids,
                    )
                )  # fmt: skip
    return groups


def _by_hold(bank: BankView, at: AtPoint, policy: Policy, now_s: float) -> list[tuple[str, AtPoint]]:
    """Return the devices of a point by what holds them: mostly one thing, or nothing, holds all."""
    if bank.pinned_reason is not None:
        return [(HOLD_PINNED, at)]
    if _dwell_left_s(bank, at.point, at.since_s, at.in_mode_since_s, policy, now_s) <= 0:
        return [(HOLD_NONE, at)]
    found: dict[str, list[Holding]] = {}
    for holding in at.holdings:
        found.setdefault(_hold(bank, holding, policy, now_s), []).append(holding)
    return [(hold, AtPoint.of(at.point, holdings)) for hold, holdings in sorted(found.items())]


def _hold(bank: BankView, holding: Holding, policy: Policy, now_s: float) -> str:
    if dwell_left_s(bank, holding, policy, now_s) <= 0:
        return HOLD_NONE
    if bank.kind is DeviceKind.GPU and now_s - holding.since_s >= policy.cap_dwell_s:
        return HOLD_MODE_DWELL
    if bank.raises_after_entry(holding):
        return HOLD_ENTRY
    return HOLD_DWELL


def _allowed(bank: BankView, origin: OperatingPoint, hold: str, policy: Policy) -> tuple[OperatingPoint, ...]:
    if hold in (HOLD_PINNED, HOLD_DWELL) or origin.mode is Mode.OFF:
        return (origin,)
    if hold == HOLD_ENTRY:
        higher = bank.points_above(origin) if bank.availability is Availability.HELD else []
        return (origin, *(p for p in higher if p.name not in bank.barred_points))
    found = [p for p in bank.points if p.mode is not Mode.OFF]
    if hold == HOLD_MODE_DWELL:
        found = [p for p in found if p.mode is origin.mode]
    if hold == HOLD_SHED:
        found = [
            p
            for p in found
            if p.name == origin.name or (p.claim_w <= origin.claim_w and p.mode in (origin.mode, Mode.STANDBY))
        ]
    if bank.availability is Availability.SHRINK_ONLY:
        found = [p for p in found if p.name == origin.name or p.claim_w <= origin.claim_w]
    if bank.kind is DeviceKind.GPU and not policy.gpu_mining_allowed and hold != HOLD_MODE_DWELL:
        without = [p for p in found if p.mode is not Mode.MINING]
        found = without or found
    return tuple([p for p in found if p.name not in bank.barred_points] or found)


def _frozen(group: Group) -> Group:
    return replace(group, allowed=(group.origin,), placed={})


def _shed(view: PlanView, groups: list[Group], worth: Worth, like: Headroom) -> list[Group]:
    """Free devices from dwell and pins, as many as a lowered limit needs: mining first, then caps, then stops, firm last.

    Where everything fits as it is, nothing is freed. Devices that no dwell holds are counted as shed first, since the packing
    will move them anyway.
    """
    tree = standing_room(view, like=like)
    if min(tree.free_w, default=0.0) >= -EPSILON_W:
        return groups
    freed: dict[int, int] = {}
    left = {id(g): g.units for g in groups}
    at_w = {id(g): g.origin.claim_w for g in groups}

    def reduce(group: Group, to: OperatingPoint, units: int, *, ends: bool) -> None:
        less_w = (at_w[id(group)] - to.claim_w) * group.bank.unit_size
        if less_w <= 0 or units <= 0:
            return
        over = [(-tree.free_w[i], m) for i, m in group.path if tree.free_w[i] < -EPSILON_W]
        if not over:
            return
        count = min(units, max(math.ceil(w / (less_w * m) - 1e-9) for w, m in over))
        tree.take(group.path, -count * less_w)
        if group.hold in (HOLD_PINNED, HOLD_DWELL, HOLD_ENTRY, HOLD_MODE_DWELL):
            freed[id(group)] = min(group.units, max(freed.get(id(group), 0), count + (group.units - left[id(group)])))
        if ends:
            left[id(group)] -= count

    def value(group: Group) -> float:
        point = group.origin
        worth_of = worth.margin_usd_per_h(
            group.bank, point, Purpose.MINE if point.mode is Mode.MINING else Purpose.SPOT
        )
        return worth_of / point.claim_w if point.claim_w > 0 else math.inf

    held_last = {HOLD_NONE: 0, HOLD_SHED: 0, HOLD_MODE_DWELL: 1, HOLD_DWELL: 1, HOLD_ENTRY: 1, HOLD_PINNED: 2}
    order = sorted(groups, key=lambda g: (held_last[g.hold], value(g), g.bank.bank, g.origin.name, g.hold))
    for group in order:
        rest = rest_point(group.bank)
        if group.origin.mode is Mode.MINING and rest is not None:
            reduce(group, rest, left[id(group)], ends=True)
    for group in order:
        caps = [p for p in group.bank.points if p.mode is Mode.INFERENCE]
        if group.origin.mode is Mode.INFERENCE and caps:
            lowest = min(caps, key=lambda p: (p.claim_w, p.name))
            before_w = at_w[id(group)]
            reduce(group, lowest, left[id(group)], ends=False)
            at_w[id(group)] = min(before_w, lowest.claim_w)
    for group in order:
        rest = rest_point(group.bank)
        if group.origin.mode is Mode.INFERENCE and rest is not None:
            reduce(group, rest, left[id(group)], ends=True)

    result: list[Group] = []
    for group in groups:
        count = freed.get(id(group), 0)
        if not count:
            result.append(group)
            continue
        free_allowed = _allowed(group.bank, group.origin, HOLD_SHED, worth.policy)
        result.append(
            replace(
                group, units=count, hold=HOLD_SHED, allowed=free_allowed, unit_ids=group.unit_ids[:count], placed={}
            )
        )
        if count < group.units:
            result.append(replace(group, units=group.units - count, unit_ids=group.unit_ids[count:], placed={}))
    return result


__all__ = ["bank_claim_w", "dwell_left_s", "plan", "rest_point"]
