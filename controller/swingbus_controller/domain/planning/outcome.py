"""What a packing of the fleet comes to: targets, moves with reasons, the value of one more kW, what is short.

Reads a finished packing and puts it in words and money; it decides nothing. Invariant: the moves lead exactly from the holdings
to the targets.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from swingbus_controller.domain.planning.packing import EPSILON_W, Demand, Group, Headroom, Packer
from swingbus_controller.domain.planning.plan import (
    PLANNABLE,
    BankTarget,
    BankView,
    FeederOutlook,
    FirmNeed,
    Move,
    PlanView,
    Reason,
    Shortfall,
)
from swingbus_controller.domain.planning.points import DeviceKind, Mode, OperatingPoint
from swingbus_controller.domain.planning.worth import Purpose, Worth, base_purpose

# What binds the devices of a group.
HOLD_NONE = ""
HOLD_MODE_DWELL = "mode dwell"
HOLD_DWELL = "dwell"
HOLD_ENTRY = "dwell since it came in"  # as a dwell, but for being raised
HOLD_PINNED = "pinned"
HOLD_SHED = "shed"


def rest_point(bank: BankView) -> OperatingPoint | None:
    """Return the point where unused devices of a bank go; None if it has none."""
    rests = [p for p in bank.points if p.mode is Mode.STANDBY]
    return min(rests, key=lambda p: (p.claim_w, p.name)) if rests else None


def bank_claim_w(bank: BankView) -> float:
    """Return what a bank is counted at now: holdings, flips at their larger side, and what is fixed."""
    if bank.availability not in PLANNABLE and bank.held_claim_w is not None:
        return bank.held_claim_w
    return bank.standing_claim_w + _transit_claim_w(bank) + bank.fixed_claim_w


def _transit_claim_w(bank: BankView) -> float:
    return sum(t.count * max(bank.point(t.from_point).claim_w, bank.point(t.to_point).claim_w) for t in bank.transits)


def claim_fixed(tree: Headroom, banks: tuple[BankView, ...]) -> None:
    """Claim what is not the planner's to change: devices in flips count where they go.

    A growing flip waits until what shrinks for it is proven gone. Counted at their larger sides, the two together would seem to
    break the limit that they are moving within, and every plan would shed once more for it; `admit` counts the larger sides.
    """
    for bank in banks:
        path = tree.path(bank.feeder, bank.bank)
        if bank.availability in PLANNABLE:
            tree.take(path, bank.fixed_claim_w + bank.arriving_claim_w)
        else:
            tree.take(path, bank_claim_w(bank))


def standing_room(view: PlanView, *, like: Headroom | None = None) -> Headroom:
    """Return what is left of each feeder beside everything that works where it is, devices in flips counted where they go."""
    room = Headroom(view.feeders, like=like)
    banks = tuple(sorted(view.banks, key=lambda bank: bank.bank))  # sums must not depend on the order of the view
    claim_fixed(room, banks)
    for bank in banks:
        if bank.availability in PLANNABLE:
            room.take(room.path(bank.feeder, bank.bank), bank.standing_claim_w)
    return room


@dataclass(slots=True)
class Outcome:
    """One packing of the fleet and what came of it."""

    banks: tuple[BankView, ...]
    needs: tuple[FirmNeed, ...]
    worth: Worth
    groups: list[Group]
    tree: Headroom
    demand: dict[str, Demand]
    packer: Packer
    now_s: float
    _targets: tuple[BankTarget, ...] | None = field(init=False, default=None, repr=False, compare=False)
    _margins_usd_per_h: dict[str, float] | None = field(init=False, default=None, repr=False, compare=False)

    @classmethod
    def run(
        cls, view: PlanView, banks: tuple[BankView, ...], needs: tuple[FirmNeed, ...], worth: Worth, groups: list[Group],
        now_s: float, like: Headroom,
    ) -> Outcome:  # fmt: skip
        tree = Headroom(view.feeders, worth.policy.plan_fill_ratio, like=like)
        claim_fixed(tree, banks)
        demand = _demand(banks, needs, worth)
        packer = Packer(worth=worth, headroom=tree, demand=demand, askers=view.askers, groups=groups)
        packer.pack()
        return cls(
            banks=banks, needs=needs, worth=worth, groups=groups, tree=tree, demand=demand, packer=packer, now_s=now_s
        )

    @property
    def fits(self) -> bool:
        """Whether no feeder is over."""
        return min(self.tree.free_w, default=0.0) >= -EPSILON_W

    @property
    def margin(self) -> float:
        """USD/h of all plannable devices and what is fixed."""
        return sum(self._margins().values())

    def serves_more_firm_than(self, other: Outcome) -> bool:
        """Whether less firm demand stays unserved here."""
        return any(d.firm < other.demand[name].firm - 1e-9 for name, d in self.demand.items())

    def _share(self, bank: BankView, purpose: Purpose) -> float:
        if purpose is not Purpose.SPOT_PART:
            return 1.0
        return self.demand[bank.inference_class or ""].part_ratio.get(bank.unit_size, 0.0)

    def _unit_margin(self, bank: BankView, point: OperatingPoint, purpose: Purpose) -> float:
        return bank.unit_size * self.worth.values_usd_per_h(bank, point, point, purpose, self._share(bank, purpose))[1]

    def targets(self) -> tuple[BankTarget, ...]:
        """Return where every bank's devices end up."""
        if self._targets is None:
            self._targets = self._add_up()
        return self._targets

    def _margins(self) -> dict[str, float]:
        """Return USD/h by bank."""
        if self._margins_usd_per_h is None:
            margins = {b.bank: -self.worth.energy_usd_per_h(b.fixed_draw_w) for b in self.banks}
            for bank in self.banks:
                for transit in bank.transits:
                    aim = bank.point(transit.to_point)
                    margins[bank.bank] += transit.count * self.worth.margin_usd_per_h(bank, aim, base_purpose(aim))
            for group in self.groups:
                for purpose, point, units in group.placements():
                    margins[group.bank.bank] += units * self._unit_margin(group.bank, point, purpose)
            self._margins_usd_per_h = margins
        return self._margins_usd_per_h

    def _add_up(self) -> tuple[BankTarget, ...]:
        counts: dict[str, dict[str, int]] = {b.bank: {} for b in self.banks}
        for bank in self.banks:
            into = counts[bank.bank]
            for transit in bank.transits:
                into[transit.to_point] = into.get(transit.to_point, 0) + transit.count
            if bank.availability not in PLANNABLE:
                for holding in bank.holdings:
                    into[holding.point] = into.get(holding.point, 0) + holding.count
        for group in self.groups:
            into = counts[group.bank.bank]
            for _, point, units in group.placements():
                into[point.name] = into.get(point.name, 0) + units * group.bank.unit_size
        margins, targets = self._margins(), []
        for bank in self.banks:
            at = {name: n for name, n in sorted(counts[bank.bank].items()) if n}
            if bank.availability in PLANNABLE:
                claim = sum(n * bank.point(name).claim_w for name, n in at.items()) + bank.fixed_claim_w
            else:
                claim = bank_claim_w(bank)
            targets.append(
                BankTarget(bank=bank.bank, counts=tuple(at.items()), claim_w=claim, margin_usd_per_h=margins[bank.bank])
            )
        return tuple(targets)

    def moves(self, stay: Outcome) -> tuple[Move, ...]:
        """Return what has to move, each with its reason; `stay` is the packing in which nobody moves."""
        is_forced = not stay.fits
        moving = [
            group for group in self.groups if any(point.name != group.origin.name for _, point, _ in group.placements())
        ]
        left_behind = {(group.bank.bank, group.origin.name) for group in moving}
        served_now: dict[tuple[str, str], list[Purpose]] = {}
        for group in stay.groups:
            if (key := (group.bank.bank, group.origin.name)) in left_behind:
                purposes = [p for p, _, n in sorted(group.placements(), key=_leaves_first) for _ in range(n)]
                served_now.setdefault(key, []).extend(purposes)
        for purposes in served_now.values():
            purposes.sort(key=_LEAVE_ORDER.index)
        moves: list[Move] = []
        for group in moving:
            bank, origin = group.bank, group.origin
            ids = list(group.unit_ids)
            leaving: dict[str, tuple[OperatingPoint, list[tuple[Purpose, int]]]] = {}
            for purpose, point, units in group.placements():
                if point.name != origin.name:
                    leaving.setdefault(point.name, (point, []))[1].append((purpose, units))
            for name in sorted(leaving):
                aim, parts = leaving[name]
                units = sum(n for _, n in parts)
                left = served_now[(bank.bank, origin.name)]
                before = left[:units]
                del left[:units]
                gain = sum(n * self._unit_margin(bank, aim, p) for p, n in parts)
                gain -= sum(n * self._unit_margin(bank, origin, p) for p, n in sorted(Counter(before).items()))
                for_whom = {p for p, _ in parts}
                reason = self._reason(group, aim, for_whom, before, gain, is_forced)
                count = units * bank.unit_size
                moves.append(
                    Move(
                        bank=bank.bank, kind=bank.kind, from_point=origin.name, to_point=aim.name, from_mode=origin.mode,
                        to_mode=aim.mode, count=count, unit_ids=tuple(sorted(ids[:units])), reason=reason,
                        detail=self._detail(bank, origin, aim, reason, stay), gain_usd_per_h=gain,
                        cost_usd=count * self.worth.cost_usd(bank, origin, aim),
                        claim_delta_w=count * (aim.claim_w - origin.claim_w),
                    )
                )  # fmt: skip
                ids = ids[units:]
        return tuple(sorted(moves, key=lambda m: (m.bank, m.from_point, m.to_point, m.unit_ids, m.count)))

    def _reason(
        self,
        group: Group,
        aim: OperatingPoint,
        purposes: set[Purpose],
        before: list[Purpose],
        gain: float,
        is_forced: bool,
    ) -> Reason:
        bank, origin = group.bank, group.origin
        shrinks = aim.claim_w <= origin.claim_w
        if group.hold == HOLD_SHED or (is_forced and shrinks and aim.claim_w < origin.claim_w and gain <= 0):
            return Reason.LIMIT
        if origin.mode is aim.mode:
            if bank.kind is DeviceKind.ASIC:
                return Reason.EFFICIENCY if gain > 0 else Reason.MAKES_ROOM
            return Reason.CAP_TO_FIT if shrinks else Reason.UNCAP
        if aim.mode is Mode.INFERENCE:
            return Reason.FIRM if Purpose.FIRM in purposes else Reason.DEMAND
        if aim.mode is Mode.MINING:
            return Reason.BELOW_STRIKE if bank.kind is DeviceKind.ASIC else Reason.FILLER
        if origin.mode is Mode.INFERENCE:
            return Reason.NO_DEMAND if set(before) <= {Purpose.IDLE} else Reason.MAKES_ROOM
        return Reason.ABOVE_STRIKE if gain > 0 else Reason.MAKES_ROOM

    def _detail(
        self, bank: BankView, origin: OperatingPoint, aim: OperatingPoint, reason: Reason, stay: Outcome
    ) -> str:
        price = self.worth.power_price
        priced = "power price unknown" if price is None else f"power costs {price:.0f} USD/MWh"
        match reason:
            case Reason.LIMIT:
                over = [
                    f"{self.tree.names[i]} would be {-stay.tree.free_w[i] / 1000:.1f} kW over its {self.tree.views[i].limit_reason} limit"
                    for i, _ in self.tree.path(bank.feeder, bank.bank)
                    if stay.tree.free_w[i] < -EPSILON_W
                ]
                return "; ".join(over) or "another feeder's limit moves the plan"
            case Reason.FIRM:
                return f"reserved {bank.inference_class} capacity is owed"
            case Reason.DEMAND:
                quote = self.worth.market.inference_price_usd_per_gpu_h.get(bank.inference_class or "")
                return f"{bank.inference_class} inference pays {0.0 if quote is None else quote.value:.2f} USD/GPU-h, {priced}"
            case Reason.NO_DEMAND:
                return f"no demand for {bank.inference_class} inference"
            case Reason.BELOW_STRIKE | Reason.ABOVE_STRIKE | Reason.FILLER:
                working = aim if aim.mode is Mode.MINING else origin
                resting = rest_point(bank) or (origin if working is aim else aim)
                strike = self.worth.strike_usd_per_mwh(bank, working, resting, Purpose.MINE)
                earns = (
                    "mining's worth is unknown"
                    if strike is None
                    else f"mining earns {strike:.0f} USD/MWh at the strike"
                )
                return f"{earns}, {priced}"
            case Reason.MAKES_ROOM:
                return "its watts earn more elsewhere under the same feeder"
            case Reason.CAP_TO_FIT:
                return "capped rather than stopped: the watts are needed elsewhere"
            case Reason.UNCAP | Reason.EFFICIENCY:
                return f"{aim.name} earns more than {origin.name} at this price"

    def outlook(self) -> tuple[FeederOutlook, ...]:
        """Return how full each feeder is and what one more kW there would earn."""
        n = len(self.tree.names)
        marginal = [0.0] * n
        blocker: list[tuple[float, int] | None] = [None] * n
        for blocked in self.packer.blocked:
            if blocked.added_w <= 0 or blocked.raw_value <= 0:
                continue
            full = self.tree.full_for(blocked.path, blocked.added_w)
            for i, multiplier in blocked.path:
                worth = blocked.raw_value / (blocked.added_w * multiplier) * 1e6
                if full == (i,):
                    marginal[i] = max(marginal[i], worth)
                others = [f for f in full if f != i]
                if others and (blocker[i] is None or worth > (blocker[i] or (0.0, 0))[0]):
                    blocker[i] = (worth, others[-1])
        result = []
        for i, name in enumerate(self.tree.names):
            view = self.tree.views[i]
            found = blocker[i]
            result.append(
                FeederOutlook(
                    feeder=name, available_w=view.available_w, claimed_w=self.tree.claimed_w[i],
                    marginal_usd_per_mwh=marginal[i],
                    blocked_by=self.tree.names[found[1]] if found is not None and not marginal[i] else None,
                )
            )  # fmt: skip
        return tuple(result)

    def over_limit_w(self) -> Mapping[str, float]:
        """Return watts that even this plan leaves over, by feeder: what planning cannot mend."""
        return MappingProxyType(
            {name: -free for name, free in zip(self.tree.names, self.tree.free_w, strict=True) if free < -EPSILON_W}
        )

    def shortfalls(self) -> tuple[Shortfall, ...]:
        """Return inference wanted and not given, the cheapest reservation short first."""
        found: list[Shortfall] = []
        for name, demand in sorted(self.demand.items()):
            missing = demand.firm
            for need in reversed([n for n in self.needs if n.inference_class == name]):
                short = min(missing, float(need.device_count))
                if short > 1e-9:
                    missing -= short
                    found.append(
                        Shortfall(
                            inference_class=name,
                            reservation=need.reservation,
                            device_count=short,
                            reason=self._short_why(name),
                        )
                    )
            if demand.spot > 1e-6:
                found.append(
                    Shortfall(
                        inference_class=name, reservation=None, device_count=demand.spot, reason=self._short_why(name)
                    )
                )
        return tuple(found)

    def _short_why(self, name: str) -> str:
        for blocked in self.packer.blocked:
            bank = next(b for b in self.banks if b.bank == blocked.bank)
            full = self.tree.full_for(blocked.path, blocked.added_w)
            if bank.inference_class == name and full:
                return f"feeder {self.tree.names[full[-1]]} is full"
        serving = [b for b in self.banks if b.inference_class == name]
        if not serving:
            return f"no bank serves class {name}"
        idle = [g for g in self.groups if g.bank.inference_class == name and g.origin.mode is not Mode.INFERENCE]
        if not idle:
            return f"all usable GPUs of class {name} serve already"
        if any(g.hold in (HOLD_DWELL, HOLD_MODE_DWELL) for g in idle):
            return "the other GPUs are inside their minimum dwell"
        if any(g.hold == HOLD_PINNED for g in idle):
            return "the other GPUs are pinned"
        why = self.worth.why_not_enter(
            idle[0].bank, next((p for p in idle[0].bank.points if p.mode is Mode.INFERENCE), idle[0].origin)
        )
        return why or "the price does not pay for the flip"


_LEAVE_ORDER = (Purpose.REST, Purpose.IDLE, Purpose.MINE, Purpose.SPOT_PART, Purpose.SPOT, Purpose.FIRM)


def _leaves_first(placement: tuple[Purpose, OperatingPoint, int]) -> int:
    return _LEAVE_ORDER.index(placement[0])


def _demand(banks: tuple[BankView, ...], needs: tuple[FirmNeed, ...], worth: Worth) -> dict[str, Demand]:
    """Return the inference still wanted per class, less what open flips will serve.

    Where the spot demand is unknown, what runs is kept: neither more nor less.
    """
    classes = sorted(
        {b.inference_class for b in banks if b.inference_class is not None} | {n.inference_class for n in needs}
    )
    found: dict[str, Demand] = {}
    for name in classes:
        firm = float(sum(n.device_count for n in needs if n.inference_class == name))
        serving = [b for b in banks if b.inference_class == name and b.availability in PLANNABLE]
        coming = sum(t.count for b in serving for t in b.transits if b.point(t.to_point).mode is Mode.INFERENCE)
        quote = worth.market.inference_demand_gpus.get(name)
        if quote is None:
            running = sum(h.count for b in serving for h in b.holdings if b.point(h.point).mode is Mode.INFERENCE)
            spot, spare = max(0.0, running + coming - firm), float(running)
        else:
            spot = quote.value * (1.0 + worth.policy.demand_headroom_ratio)
            # What is sold firm is kept ready too while nobody uses it.
            spare = quote.value * worth.policy.demand_headroom_ratio + max(0.0, firm - quote.value)
        demand = Demand(firm=firm, spot=spot, spare=spare)
        by_flips_firm = min(demand.firm, float(coming))
        demand.firm -= by_flips_firm
        demand.spot = max(0.0, demand.spot - (coming - by_flips_firm))
        sizes = {b.unit_size for b in serving}
        # A firm unit that is not filled serves spot with the rest, so the last unit is reckoned on both together.
        demand.part_ratio = {u: math.fmod(demand.firm + demand.spot, u) / u for u in sizes}
        found[name] = demand
    return found
