"""What the planner is given and what it answers: plain values, no rules.

The engine fills `PlanView` from its fleet; banks appear as counts of devices at operating points, never device by device. The
planner answers with a `Plan`: counts wanted per bank, the moves that lead there, each with its reason in money, and what one
more kW is worth at each feeder. This room knows no ledger and no agent. Times are Unix seconds of the controller's wall clock,
used for dwell and for words, never for watts. Invariant: watts are counted claims, not draw, unless a name says `draw`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType

from swingbus_controller.domain.planning.market import MarketView
from swingbus_controller.domain.planning.points import DeviceKind, Mode, OperatingPoint
from swingbus_controller.domain.planning.policy import Policy


class Authority(StrEnum):
    """What Swingbus may do at the site."""

    OBSERVE = "observe"
    ADVISE = "advise"
    CONTROL = "control"


class Availability(StrEnum):
    """Whether the planner may use a bank, from the bank's state in the power protocol."""

    HELD = "held"
    SHRINK_ONLY = "shrink_only"  # ADOPTING, SHRINKING, a disturbance: may go down, not up
    DARK = "dark"
    DISOBEYING = "disobeying"
    ISOLATED = "isolated"
    LOCKED_OUT = "locked_out"


PLANNABLE = frozenset({Availability.HELD, Availability.SHRINK_ONLY})


@dataclass(frozen=True, slots=True, kw_only=True)
class FeederView:
    """A node of the power tree as the planner sees it.

    Args:
        feeder: its name.
        parent: name of the feeder above; None at the grid connection.
        available_w: what claims may fill: limit - uncontrolled load - margin (L - U - R). May be negative in an event.
        doubted_w: of it, what banks that have not reported since a start may hold beyond their claims: nobody may grow into it, and nobody
            has to rest for it.
        loss_ratio: losses between this feeder and its parent: 1 W here counts (1 + loss_ratio) W there.
        limit_reason: what sets the limit now ("contract", "curtailment ERCOT-7"), for words.
        limit_until_s: when that limit ends, if it is known.
    """

    feeder: str
    parent: str | None = None
    available_w: float
    doubted_w: float = 0.0
    loss_ratio: float = 0.0
    limit_reason: str = "contract"
    limit_until_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """Devices of a bank that are at one point now, on evidence.

    Args:
        point: name of the operating point.
        count: number of devices (not units).
        since_s: when they came to this point.
        mode_since_s: when they came to this mode, if that was earlier (a cap changed since).
        unit_ids: the units, if the controller names them (GPU banks); `count` is then len(unit_ids) * unit_size.
    """

    point: str
    count: int
    since_s: float
    mode_since_s: float | None = None
    unit_ids: tuple[str, ...] = ()

    @property
    def in_mode_since_s(self) -> float:
        """When these devices came to their mode."""
        return self.since_s if self.mode_since_s is None else min(self.since_s, self.mode_since_s)


@dataclass(frozen=True, kw_only=True)  # no slots, as with `BankView`
class AtPoint:
    """All devices of a bank that are at one point and in no flip.

    Args:
        holdings: longest in its mode first.
        since_s, in_mode_since_s: when the last of them came to the point, and to its mode.
    """

    point: OperatingPoint
    holdings: tuple[Holding, ...]
    since_s: float
    in_mode_since_s: float

    @classmethod
    def of(cls, point: OperatingPoint, holdings: Iterable[Holding]) -> AtPoint:
        """Put together what is at a point, in any order."""
        by_age = sorted(holdings, key=lambda h: (h.in_mode_since_s, h.unit_ids))
        return cls(
            point=point,
            holdings=tuple(by_age),
            since_s=max(h.since_s for h in by_age),
            in_mode_since_s=by_age[-1].in_mode_since_s,
        )

    @cached_property
    def count(self) -> int:
        """Devices."""
        return sum(holding.count for holding in self.holdings)

    @cached_property
    def unit_ids(self) -> tuple[str, ...]:
        """Units, longest in its mode first: those leave first."""
        return tuple(unit for holding in self.holdings for unit in sorted(holding.unit_ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class Transit:
    """Devices inside an open flip: planned as if they had arrived, admitted beside the larger of both points."""

    flip: str
    from_point: str
    to_point: str
    count: int
    unit_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """Devices of a bank that come or go together because somebody holds them together (a pod).

    Args:
        name: who, as one word; empty for a unit that nobody holds.
        count: devices.
        unit_ids: the units held now; empty for who has yet to come. Who came uninvited needs a place for these.
        goes_anyway: nobody has the units, or who has them leaves by itself: to give up its place costs nobody anything.
    """

    name: str
    count: int
    unit_ids: tuple[str, ...] = ()
    goes_anyway: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Askers:
    """Who would come into inference in one bank, where that is known by name.

    Args:
        at_most: devices that somebody would use here.
        parties: who waits to come in, first in line first.
    """

    at_most: int
    parties: tuple[Party, ...] = ()


# No slots: most plans meet most banks as they were, and what follows from a view is kept in it.
@dataclass(frozen=True, kw_only=True)
class BankView:
    """A bank: devices of one class behind one agent.

    Args:
        bank: its name.
        feeder: the feeder it hangs on.
        kind: ASIC or GPU.
        points: operating points it has; `standby` (or the point with the least claim) is where unused devices go.
        holdings: where its usable devices are; devices in flips are in `transits` only, lost or failed ones in neither.
        transits: devices in open flips.
        fixed_claim_w: counted watts that do not depend on the points (host, fans, lost devices at their ceiling).
        fixed_draw_w: expected draw of the same, for money.
        unit_size: devices that move together (1, 4 or 8 GPUs).
        inference_class: class of demand its GPUs can serve; None if none.
        mining_class: class of the GPU mining price; None for ASICs.
        availability: whether it may be planned.
        held_claim_w: what the whole bank is counted at while it may not be planned; None means its holdings as they are.
        pinned_reason: an operator's "stay as is", in words; yields to safety only.
        note: why it is not available, in words.
        dwell_s: least time in each mode, where the bank has its own; else the policy's.
        barred_points: points that devices may not go to, and leave when nothing else holds them.
        parties_out: what leaves inference together, first to go first.
    """

    bank: str
    feeder: str
    kind: DeviceKind
    points: tuple[OperatingPoint, ...]
    holdings: tuple[Holding, ...] = ()
    transits: tuple[Transit, ...] = ()
    fixed_claim_w: float = 0.0
    fixed_draw_w: float = 0.0
    unit_size: int = 1
    inference_class: str | None = None
    mining_class: str | None = None
    availability: Availability = Availability.HELD
    held_claim_w: float | None = None
    pinned_reason: str | None = None
    note: str | None = None
    dwell_s: Mapping[Mode, float] | None = None
    barred_points: frozenset[str] = frozenset()
    parties_out: tuple[Party, ...] = ()

    def point(self, name: str) -> OperatingPoint:
        """Return a point by name; KeyError if the bank has none such (validate the view first)."""
        return self._point_by_name[name]

    def raises_after_entry(self, holding: Holding) -> frozenset[str]:
        """Return the points to which GPUs that serve where they came in may be raised at any time: more watts, the same program.

        They may have come in low for want of watts, so no dwell keeps them there. Who was lowered since stays for its dwell.
        """
        was = self._point_by_name.get(holding.point)
        if was is None or self.kind is not DeviceKind.GPU or was.mode is not Mode.INFERENCE:
            return frozenset()  # None: a plan from before its points changed
        is_entry = holding.since_s <= holding.in_mode_since_s
        return frozenset(p.name for p in self.points_above(was)) if is_entry else frozenset()

    def points_above(self, point: OperatingPoint) -> list[OperatingPoint]:
        """Return the points with more watts at which the same program does the same."""
        alike = [p for p in self.points if p.mode is point.mode and p.workload == point.workload]
        return [p for p in alike if p.claim_w > point.claim_w]

    @cached_property
    def _point_by_name(self) -> Mapping[str, OperatingPoint]:
        return {point.name: point for point in self.points}

    @cached_property
    def at_points(self) -> tuple[AtPoint, ...]:
        """Its usable devices that are in no flip, by point in the order of their names."""
        found: dict[str, list[Holding]] = {}
        for holding in self.holdings:
            if holding.count:
                found.setdefault(holding.point, []).append(holding)
        return tuple(AtPoint.of(self.point(name), holdings) for name, holdings in sorted(found.items()))

    @cached_property
    def standing_claim_w(self) -> float:
        """What devices that are in no flip are counted at."""
        return sum(h.count * self.point(h.point).claim_w for h in self.holdings)

    @cached_property
    def arriving_claim_w(self) -> float:
        """What devices in flips are counted at where they go."""
        return sum(t.count * self.point(t.to_point).claim_w for t in self.transits)

    @cached_property
    def contradiction(self) -> str | None:
        """What is wrong with this view, in words; None where it can be planned with."""
        names = {p.name for p in self.points}
        if len(names) != len(self.points) or not names:
            return "points must have unique names and there must be one"
        if self.unit_size < 1:
            return f"unit_size is {self.unit_size}, must be at least 1"
        used = {h.point for h in self.holdings} | {p for t in self.transits for p in (t.from_point, t.to_point)}
        if used - names:
            return f"devices at {sorted(used - names)}, but its points are {sorted(names)}"
        for holding in self.holdings:
            units, rest = divmod(holding.count, self.unit_size)
            if holding.count < 0 or rest or (holding.unit_ids and len(holding.unit_ids) != units):
                return (
                    f"{holding.count} devices at {holding.point!r} do not make whole units of {self.unit_size} "
                    f"({len(holding.unit_ids)} named); leave broken units out of the holdings"
                )
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmNeed:
    """Inference capacity that a reservation is owed now."""

    reservation: str
    inference_class: str
    device_count: int
    price_usd_per_device_h: float
    until_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanView:
    """The fleet at one revision, as far as planning needs it. The order of its tuples never matters.

    Args:
        askers: by bank, who asks for it by name; for all other banks demand is a number of their class.
    """

    revision: int
    site: str
    feeders: tuple[FeederView, ...]
    banks: tuple[BankView, ...]
    firm_needs: tuple[FirmNeed, ...] = ()
    askers: Mapping[str, Askers] = field(default_factory=lambda: MappingProxyType({}))
    authority: Authority = Authority.OBSERVE

    def wary(self) -> PlanView:
        """Return the view without what is in doubt: the watts that may be grown into."""
        if not any(feeder.doubted_w for feeder in self.feeders):
            return self
        feeders = tuple(replace(f, available_w=f.available_w - f.doubted_w, doubted_w=0.0) for f in self.feeders)
        return replace(self, feeders=feeders)


class Reason(StrEnum):
    """Why a move is planned, or why a bank stays."""

    LIMIT = "limit"  # the feeder's limit forces it: safety or curtailment
    FIRM = "firm"  # a reservation is owed the capacity
    DEMAND = "demand"  # somebody pays for the inference
    NO_DEMAND = "no_demand"
    BELOW_STRIKE = "below_strike"  # power is cheaper than what the work earns
    ABOVE_STRIKE = "above_strike"  # power costs more than the work earns
    MAKES_ROOM = "makes_room"  # the watts earn more elsewhere
    FILLER = "filler"  # GPU mining, or a partial profile, for watts that nobody else wants
    CAP_TO_FIT = "cap_to_fit"
    UNCAP = "uncap"
    EFFICIENCY = "efficiency"  # another profile earns more


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Devices of one bank that go from one point to another.

    Args:
        gain_usd_per_h: what the move itself changes per hour, all devices; negative where the watts are needed elsewhere.
        cost_usd: what it costs once, all devices.
        claim_delta_w: counted watts it adds (+) or gives back (-).
        claim_w: the larger of both sides while it is under way.
    """

    bank: str
    kind: DeviceKind
    from_point: str
    to_point: str
    from_mode: Mode
    to_mode: Mode
    count: int
    unit_ids: tuple[str, ...]
    reason: Reason
    detail: str
    gain_usd_per_h: float
    cost_usd: float
    claim_delta_w: float

    @property
    def is_mode_flip(self) -> bool:
        """Whether the mode changes; otherwise it is a cap (or profile) flip."""
        return self.from_mode is not self.to_mode


@dataclass(frozen=True, slots=True, kw_only=True)
class BankTarget:
    """Counts wanted per operating point, devices in open flips counted where they go; points without devices are left out."""

    bank: str
    counts: tuple[tuple[str, int], ...]
    claim_w: float
    margin_usd_per_h: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FeederOutlook:
    """A feeder under the plan.

    Args:
        marginal_usd_per_mwh: what one more kW here would earn, per MWh; 0 if there is room, or if another feeder is full too.
        blocked_by: the feeder whose limit makes one more kW here worthless, if that is why.
    """

    feeder: str
    available_w: float
    claimed_w: float
    marginal_usd_per_mwh: float
    blocked_by: str | None = None

    @property
    def claimed_ratio(self) -> float | None:
        """Share of the available watts that is claimed; None where nothing is available."""
        return self.claimed_w / self.available_w if self.available_w > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """Inference that is wanted and not given: firm (with its reservation) or spot."""

    inference_class: str
    reservation: str | None
    device_count: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The planner's answer for one moment. Equal input gives an equal plan, whatever the order of the input."""

    basis_revision: int
    made_at_s: float
    site: str
    targets: tuple[BankTarget, ...]
    moves: tuple[Move, ...]
    feeders: tuple[FeederOutlook, ...]
    shortfalls: tuple[Shortfall, ...]
    margin_usd_per_h: float
    over_limit_w: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    view: PlanView = field(repr=False)
    market: MarketView = field(repr=False)
    policy: Policy = field(repr=False)

    def target(self, bank: str) -> BankTarget | None:
        """Return the target of one bank; None if the plan does not know it."""
        return next((t for t in self.targets if t.bank == bank), None)

    def feeder(self, feeder: str) -> FeederOutlook | None:
        """Return the outlook of one feeder; None if the plan does not know it."""
        return next((f for f in self.feeders if f.feeder == feeder), None)
