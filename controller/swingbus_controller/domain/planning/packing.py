"""Packing: which devices get the watts, best value per counted watt first, never above any feeder.

Works on groups (devices of one bank at one point, treated alike) with whole units. It decides by the values it is given and knows
no prices. Each group climbs a ladder of points from its base (the least it may be at); only rungs on the upper concave hull are
tried first, each worth less per watt than the one before, so that taking the best rung anywhere is right up to rounding; a second
pass fills what is left with points below the hull. Invariant: `free_w` of a feeder never goes below zero by a rung taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from swingbus.faults import InvalidInput
from swingbus_controller.domain.planning.plan import Askers, Availability, BankView, FeederView
from swingbus_controller.domain.planning.points import Mode, OperatingPoint
from swingbus_controller.domain.planning.worth import Purpose, Worth, base_purpose

# Watts: sums of a thousand floats are off by far less than this, a device is far more.
EPSILON_W = 1e-3
EPSILON_GPUS = 1e-6

Path = tuple[tuple[int, float], ...]


class Headroom:
    """Free counted watts at every feeder; a watt below counts with the losses on its way up."""

    def __init__(self, feeders: Iterable[FeederView], fill_ratio: float = 1.0, *, like: Headroom | None = None) -> None:
        """Args:
        like: of the same feeders, whatever watts they had: the paths are known from there.
        """
        ordered = sorted(feeders, key=lambda f: f.feeder)
        self.names = tuple(f.feeder for f in ordered)
        self.views = tuple(ordered)
        # In an event available_w may be negative; a share of a negative number would be a gift.
        self.free_w = [f.available_w * fill_ratio if f.available_w > 0 else f.available_w for f in ordered]
        self.claimed_w = [0.0] * len(ordered)
        self._paths: dict[str, Path] = self._find_paths(ordered) if like is None else like._paths

    def _find_paths(self, ordered: Sequence[FeederView]) -> dict[str, Path]:
        index = {name: i for i, name in enumerate(self.names)}
        if len(index) != len(ordered):
            twice = sorted({n for n in self.names if self.names.count(n) > 1})
            raise InvalidInput(f"feeder {twice[0]!r} appears twice in the view", metadata={"feeder": twice[0]})
        paths: dict[str, Path] = {}
        for feeder in ordered:
            path: list[tuple[int, float]] = []
            at: FeederView | None = feeder
            multiplier = 1.0
            while at is not None:
                if len(path) > len(ordered):
                    raise InvalidInput(
                        f"feeder {feeder.feeder!r} is its own ancestor", metadata={"feeder": feeder.feeder}
                    )
                path.append((index[at.feeder], multiplier))
                if at.parent is None:
                    break
                if at.parent not in index:
                    raise InvalidInput(
                        f"feeder {at.feeder!r}: parent {at.parent!r} is not in the view", metadata={"feeder": at.feeder}
                    )
                multiplier *= 1.0 + at.loss_ratio
                at = ordered[index[at.parent]]
            paths[feeder.feeder] = tuple(path)
        return paths

    def path(self, feeder: str, bank: str) -> Path:
        """Return the feeders above a bank with what one of its watts counts at each."""
        path = self._paths.get(feeder)
        if path is None:
            raise InvalidInput(
                f"bank {bank!r} hangs on feeder {feeder!r}, which is not in the view", metadata={"bank": bank}
            )
        return path

    def take(self, path: Path, watts_w: float) -> None:
        """Claim watts (or give them back, if negative) at every feeder of a path."""
        for i, multiplier in path:
            self.free_w[i] -= watts_w * multiplier
            self.claimed_w[i] += watts_w * multiplier

    def units_that_fit(self, path: Path, watts_w: float, wanted: int) -> int:
        """Return how many times `watts_w` fits at every feeder of the path, at most `wanted`."""
        fits = wanted
        for i, multiplier in path:
            if watts_w <= 0 or fits <= 0:
                break
            if math.isinf(self.free_w[i]):
                continue  # nobody set a limit on this feeder
            fits = min(fits, math.floor((self.free_w[i] + EPSILON_W) / (watts_w * multiplier)))
        return max(0, fits)

    def full_for(self, path: Path, watts_w: float) -> tuple[int, ...]:
        """Return the feeders of a path that have no room for `watts_w`."""
        return tuple(i for i, m in path if self.free_w[i] + EPSILON_W < watts_w * m)


@dataclass(slots=True)
class Group:
    """Units of one bank that are at one point and may go to the same points.

    `placed` counts units by (purpose, point) where a rung took them; the rest are at the base. `hold` says what binds them.
    """

    bank: BankView
    path: Path
    origin: OperatingPoint
    allowed: tuple[OperatingPoint, ...]
    units: int
    hold: str
    unit_ids: tuple[str, ...] = ()
    placed: dict[tuple[Purpose, str], int] = field(default_factory=dict)

    base: OperatingPoint = field(init=False)

    def __post_init__(self) -> None:
        # The least these units may be at; where they are, if that is one of the least.
        self.base = min(self.allowed, key=lambda p: (p.claim_w, p.name != self.origin.name, p.name))

    def at_base(self) -> int:
        """Units that no rung has taken."""
        return self.units - sum(self.placed.values())

    def placements(self) -> list[tuple[Purpose, OperatingPoint, int]]:
        """Return where all units end up, in a stable order."""
        if not self.placed:
            return [(base_purpose(self.base), self.base, self.units)] if self.units else []
        found = [(purpose, self.bank.point(name), n) for (purpose, name), n in sorted(self.placed.items()) if n]
        rest = self.at_base()
        if rest:
            base = self.base
            found.append((base_purpose(base), base, rest))
        return found


@dataclass(slots=True)
class Demand:
    """GPUs still wanted of one inference class."""

    firm: float = 0.0
    spot: float = 0.0
    spare: float = 0.0  # kept ready beyond what is asked for, where those who ask are known by name
    part_ratio: Mapping[int, float] = field(default_factory=dict)  # by unit size

    def units_wanted(self, purpose: Purpose, unit_size: int) -> int:
        """Return how many units this purpose can still use."""
        match purpose:
            case Purpose.FIRM:
                return math.ceil(self.firm / unit_size - EPSILON_GPUS)
            case Purpose.SPOT:
                return math.floor(self.spot / unit_size + EPSILON_GPUS)
            case Purpose.IDLE:
                return math.floor(self.spare / unit_size + EPSILON_GPUS)
            case Purpose.SPOT_PART:
                return 1 if EPSILON_GPUS < self.spot < unit_size - EPSILON_GPUS else 0
            case _:
                return 0

    def serve(self, purpose: Purpose, gpus: float) -> None:
        """Count GPUs given; a firm unit that is larger than the need serves spot demand with the rest."""
        if purpose is Purpose.FIRM:
            over = max(0.0, gpus - self.firm)
            self.firm = max(0.0, self.firm - gpus)
            self.spot = max(0.0, self.spot - over)
        elif purpose is Purpose.IDLE:
            self.spare = max(0.0, self.spare - gpus)
        else:
            self.spot = max(0.0, self.spot - gpus)


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of a ladder: units go from one point to a dearer one for a purpose.

    `source` None means from the base. `value` is USD/h per unit net of the flip's threshold, `raw_value` without it. It holds for
    all groups that are alike, which is what keeps a thousand banks cheap to plan.
    """

    purpose: Purpose
    source: str | None
    point: OperatingPoint
    added_w: float
    value: float
    raw_value: float
    tier: int
    slope: float
    order: int


@dataclass(frozen=True, slots=True)
class Blocked:
    """A rung worth taking that found no room."""

    path: Path
    bank: str
    added_w: float
    raw_value: float


_DEMAND_PURPOSES = (Purpose.FIRM, Purpose.SPOT, Purpose.SPOT_PART)
_MODE_OF = {
    Purpose.FIRM: Mode.INFERENCE,
    Purpose.SPOT: Mode.INFERENCE,
    Purpose.SPOT_PART: Mode.INFERENCE,
    Purpose.IDLE: Mode.INFERENCE,
    Purpose.MINE: Mode.MINING,
}


class Packer:
    """Packs groups under feeders. Made for one plan, used once."""

    def __init__(
        self,
        *,
        worth: Worth,
        headroom: Headroom,
        demand: dict[str, Demand],
        askers: Mapping[str, Askers],
        groups: Sequence[Group],
    ) -> None:
        self.worth = worth
        self.headroom = headroom
        self.demand = demand
        self.groups = groups
        self.blocked: list[Blocked] = []
        # Units that somebody known by name would use, by bank; what flips already bring is one of them.
        self._askers = {
            group.bank.bank: max(0, asked.at_most - _coming_count(group.bank)) // group.bank.unit_size
            for group in groups
            if (asked := askers.get(group.bank.bank)) is not None
        }
        self._deferred: dict[str, list[tuple[Group, Rung]]] = {}
        self._ladders: dict[tuple[object, ...], list[Rung]] = {}

    def pack(self) -> None:
        """Place every unit: bases first (they are not a choice), then rungs by tier and worth, then the remainder."""
        for group in self.groups:
            self.headroom.take(group.path, group.units * group.bank.unit_size * group.base.claim_w)
        climbs: list[tuple[Group, Rung]] = []
        for group in self.groups:
            for purpose in self._purposes(group):
                climbs += [(group, rung) for rung in self._ladder(group, purpose)]
        climbs.sort(key=_rank)
        for group, rung in climbs:
            self._climb(group, rung)
        self._fill()

    def _purposes(self, group: Group) -> list[Purpose]:
        # Ladders that can't be climbed are not built: most groups have no demand, or nowhere else to go.
        modes = {p.mode for p in group.allowed}
        purposes: list[Purpose] = []
        if Mode.INFERENCE in modes:
            demand = self.demand.get(group.bank.inference_class or "")
            if demand is not None and demand.firm > 0:
                purposes.append(Purpose.FIRM)
            if demand is not None and demand.firm + demand.spot > 0:
                purposes += [Purpose.SPOT, Purpose.SPOT_PART]
            if group.origin.mode is Mode.INFERENCE and len(group.allowed) > 1:
                purposes.append(Purpose.IDLE)
        if Mode.MINING in modes and len(group.allowed) > 1:
            purposes.append(Purpose.MINE)
        return purposes

    def _share(self, group: Group, purpose: Purpose) -> float:
        if purpose is not Purpose.SPOT_PART:
            return 1.0
        return self.demand[group.bank.inference_class or ""].part_ratio.get(group.bank.unit_size, 0.0)

    def _values(self, group: Group, point: OperatingPoint, purpose: Purpose) -> tuple[float, float]:
        """Return (net of the threshold, raw) USD/h of one unit."""
        net, raw = self.worth.values_usd_per_h(group.bank, group.origin, point, purpose, self._share(group, purpose))
        return net * group.bank.unit_size, raw * group.bank.unit_size

    def _may_enter(self, group: Group, point: OperatingPoint, purpose: Purpose) -> bool:
        if purpose is Purpose.FIRM or point.name == group.origin.name:
            return True
        if point.mode is group.origin.mode:
            # Changing a cap or profile for money needs a price, but not the permission to start.
            return self.worth.power_price is not None
        return self.worth.why_not_enter(group.bank, point) is None

    def _ladder(self, group: Group, purpose: Purpose) -> list[Rung]:
        bank = group.bank
        # Points are told apart by identity: the view keeps them alive while the packer lives.
        key = (
            tuple(map(id, group.allowed)), id(group.origin), purpose, bank.unit_size, bank.kind, bank.inference_class,
            bank.mining_class, self._share(group, purpose),
        )  # fmt: skip
        found = self._ladders.get(key)
        if found is None:
            found = self._ladders[key] = self._build_ladder(group, purpose)
        return found

    def _build_ladder(self, group: Group, purpose: Purpose) -> list[Rung]:
        mode = _MODE_OF[purpose]
        base = group.base
        points = sorted(
            (p for p in group.allowed if p.mode is mode and p.name != base.name and self._may_enter(group, p, purpose)),
            key=lambda p: (p.claim_w, p.name),
        )
        base_net, base_raw = self._values(group, base, base_purpose(base))
        rungs: list[Rung] = []
        unit = group.bank.unit_size
        tier = 0 if purpose is Purpose.FIRM else self._tier(purpose)

        def rung(source: OperatingPoint | None, point: OperatingPoint, before: tuple[float, float], tier: int) -> Rung:
            net, raw = self._values(group, point, purpose)
            added_w = unit * (point.claim_w - (source or base).claim_w)
            value = net - before[0]
            slope = value / added_w if added_w > 0 else math.inf
            name = None if source is None else source.name
            return Rung(purpose, name, point, added_w, value, raw - before[1], tier, slope, len(rungs))

        at: OperatingPoint | None = None
        before = (base_net, base_raw)
        if purpose in _DEMAND_PURPOSES and base.mode is mode:
            rungs.append(rung(None, base, before, tier))
            at, before = base, self._values(group, base, purpose)
        elif purpose is Purpose.FIRM and points:
            entry = points[0]
            rungs.append(rung(None, entry, before, tier))
            at, before = entry, self._values(group, entry, purpose)
        upgrade_tier = self._tier(Purpose.SPOT) if purpose is Purpose.FIRM else tier
        while True:
            from_w = (at or base).claim_w
            candidates = [
                rung(at, p, before, upgrade_tier)
                for p in points
                if p.claim_w > from_w or (at is None and p.claim_w >= from_w)
            ]
            candidates = [c for c in candidates if c.value > 0]
            if not candidates:
                return rungs
            best = max(candidates, key=lambda c: (c.slope, c.value, c.point.name))
            rungs.append(best)
            at, before = best.point, self._values(group, best.point, purpose)

    def _tier(self, purpose: Purpose) -> int:
        if not self.worth.policy.spot_first:
            return 1
        return 1 if purpose in _DEMAND_PURPOSES else 2

    def _climb(self, group: Group, rung: Rung) -> None:
        inference_class = group.bank.inference_class or ""
        if (
            rung.purpose is Purpose.SPOT_PART
            and self.demand[inference_class].spot > group.bank.unit_size - EPSILON_GPUS
        ):
            # The last, partly used unit is known only when the whole ones are placed.
            self._deferred.setdefault(inference_class, []).append((group, rung))
            return
        source_key = (rung.purpose, rung.source or "")
        wanted = group.at_base() if rung.source is None else group.placed.get(source_key, 0)
        pool = None
        waiting: list[tuple[Group, Rung]] = []
        if rung.source is None and rung.purpose in _DEMAND_PURPOSES:
            pool = self.demand[group.bank.inference_class or ""]
            wanted = min(wanted, pool.units_wanted(rung.purpose, group.bank.unit_size))
            wanted = min(wanted, self._askers.get(group.bank.bank, wanted))
        # Where who asks is known by name, a place that nobody asks for stands empty: it is no capacity that is warm.
        is_spare = rung.source is None and rung.purpose is Purpose.IDLE and group.bank.bank in self._askers
        if is_spare:
            wanted = min(wanted, self.demand[inference_class].units_wanted(Purpose.IDLE, group.bank.unit_size))
        if wanted <= 0:
            return
        taken = self.headroom.units_that_fit(group.path, rung.added_w, wanted)
        if taken < wanted:
            self.blocked.append(Blocked(group.path, group.bank.bank, rung.added_w, rung.raw_value))
        if taken <= 0:
            return
        self.headroom.take(group.path, taken * rung.added_w)
        if is_spare:
            self.demand[inference_class].serve(Purpose.IDLE, taken * group.bank.unit_size)
        if pool is not None:
            pool.serve(rung.purpose, taken * group.bank.unit_size)
            if group.bank.bank in self._askers:
                self._askers[group.bank.bank] -= taken
            if pool.spot < max(pool.part_ratio, default=1):
                waiting = self._deferred.pop(inference_class, [])
        if rung.source is not None:
            group.placed[source_key] -= taken
        key = (rung.purpose, rung.point.name)
        group.placed[key] = group.placed.get(key, 0) + taken
        for waiting_group, waiting_rung in waiting:
            self._climb(waiting_group, waiting_rung)

    def _fill(self) -> None:
        """Use what is left: any dearer point of the same purpose that fits and earns, best per watt first."""
        if not self.blocked:
            return
        climbs: list[tuple[Group, Rung]] = []
        for group in self.groups:
            sources: list[tuple[Purpose, str | None, OperatingPoint]] = []
            if group.at_base():
                sources += [(p, None, group.base) for p in self._purposes(group) if p is not Purpose.FIRM]
            sources += [(p, name, group.bank.point(name)) for (p, name), n in sorted(group.placed.items()) if n]
            for purpose, source, at in sources:
                at_purpose = base_purpose(at) if source is None else purpose
                before = self._values(group, at, at_purpose)
                for point in group.allowed:
                    added_w = group.bank.unit_size * (point.claim_w - at.claim_w)
                    if point.mode is not _MODE_OF[purpose] or added_w <= 0:
                        continue
                    net, raw = self._values(group, point, purpose)
                    value = net - before[0]
                    if value > 0 and self._may_enter(group, point, purpose):
                        slope = value / added_w
                        rung = Rung(
                            purpose,
                            source,
                            point,
                            added_w,
                            value,
                            raw - before[1],
                            self._tier(purpose),
                            slope,
                            len(climbs),
                        )
                        climbs.append((group, rung))
        known = len(self.blocked)
        for group, rung in sorted(climbs, key=_rank):
            self._climb(group, rung)
        del self.blocked[known:]  # the main pass has told what is worth how much


def _coming_count(bank: BankView) -> int:
    return sum(t.count for t in bank.transits if bank.point(t.to_point).mode is Mode.INFERENCE)


def _rank(climb: tuple[Group, Rung]) -> tuple[int, float, float, bool, str, str, str, str, int]:
    group, rung = climb
    # Of equals those come first that work so already, at the most watts: else they would give them to others, and take them back later.
    has_w = group.origin.claim_w if group.origin.mode is rung.point.mode else 0.0
    # Then who may grow: units that enter a bank that may not would stay at their lowest point until its watts are proven.
    may_not_grow = group.bank.availability is not Availability.HELD
    return (
        rung.tier,
        -rung.slope,
        -has_w,
        may_not_grow,
        group.bank.bank,
        group.origin.name,
        group.hold,
        rung.purpose,
        rung.order,
    )
