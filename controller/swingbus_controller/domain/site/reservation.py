"""Reservations: inference capacity sold firm, what it is owed now, what the next lost minute costs, and whether one more fits.

This room decides on acceptance (I4: the firm floor fits the lowest limit that an accepted programme can set) and keeps lost minutes
as state, because credits are a staircase over the month. It knows no live claims: acceptance is about the worst case, not about
today. Prices are `Decimal`, from decimal strings. Invariant: an accepted set has a placement that fits every feeder at its floor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from swingbus.faults import InvalidInput
from swingbus_controller.domain.planning.packing import Headroom
from swingbus_controller.domain.planning.plan import FeederView, FirmNeed

SECONDS_PER_HOUR = Decimal(3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditStep:
    """Below this uptime of the period, this share of the period's price is given back (the deepest step reached counts)."""

    below_uptime_ratio: float
    credit_ratio: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Inference capacity sold firm.

    Args:
        device_count: GPUs of the class.
        from_s, until_s: its term, Unix seconds.
        price_usd_per_device_h: what is paid per GPU-hour, used or not.
        uptime_ratio: the promise, per billing period.
        credit_steps: what breaking it costs; any order.
        throughput_floor_ratio: share of full output below which a capped GPU counts as lost.
    """

    id: str
    inference_class: str
    device_count: int
    from_s: float
    until_s: float
    price_usd_per_device_h: Decimal
    uptime_ratio: float = 0.99
    credit_steps: tuple[CreditStep, ...] = ()
    throughput_floor_ratio: float = 0.0
    author: str = ""

    def __post_init__(self) -> None:
        problems = []
        if self.device_count < 1:
            problems.append(f"device_count is {self.device_count}, must be at least 1")
        if not self.until_s > self.from_s:
            problems.append("until must be later than from")
        if not self.price_usd_per_device_h.is_finite() or self.price_usd_per_device_h < 0:
            problems.append(f"price is {self.price_usd_per_device_h}, must be 0 or more USD per GPU-hour")
        if not 0.0 < self.uptime_ratio <= 1.0:
            problems.append(f"uptime_ratio is {self.uptime_ratio}, must be above 0 and at most 1")
        if not 0.0 <= self.throughput_floor_ratio <= 1.0:
            problems.append(f"throughput_floor_ratio is {self.throughput_floor_ratio}, must be 0 to 1")
        problems += [
            f"credit step {step.below_uptime_ratio}/{step.credit_ratio}: both must lie in 0 to 1"
            for step in self.credit_steps
            if not 0.0 < step.below_uptime_ratio <= 1.0 or not 0 <= step.credit_ratio <= 1
        ]
        if not self.inference_class:
            problems.append("inference_class is empty")
        if problems:
            raise InvalidInput(f"reservation {self.id!r}: " + "; ".join(problems), metadata={"reservation": self.id})

    def is_owed(self, now_s: float) -> bool:
        """Whether its term includes this moment."""
        return self.from_s <= now_s < self.until_s


def needs_at(reservations: Iterable[Reservation], now_s: float) -> tuple[FirmNeed, ...]:
    """Return what is owed at a moment, for the planner."""
    return tuple(
        FirmNeed(
            reservation=r.id,
            inference_class=r.inference_class,
            device_count=r.device_count,
            price_usd_per_device_h=float(r.price_usd_per_device_h),
            until_s=r.until_s,
        )
        for r in sorted(reservations, key=lambda r: r.id)
        if r.is_owed(now_s)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UptimeAccount:
    """Device-seconds lost by one reservation in one billing period."""

    reservation: str
    period_start_s: float
    period_s: float
    lost_device_s: float = 0.0

    def with_loss(self, device_count: float, seconds_s: float) -> UptimeAccount:
        """Add a loss; both must be at least 0."""
        if device_count < 0 or seconds_s < 0:
            raise InvalidInput(
                f"reservation {self.reservation}: a loss cannot be negative ({device_count} devices, {seconds_s} s)"
            )
        return replace(self, lost_device_s=self.lost_device_s + device_count * seconds_s)

    def uptime_ratio(self, reservation: Reservation) -> float:
        """Return the uptime of the whole period if nothing more is lost."""
        return 1.0 - self.lost_device_s / (self.period_s * reservation.device_count)


def credit_usd(reservation: Reservation, account: UptimeAccount) -> Decimal:
    """Return what the losses so far give back: the deepest credit step below whose uptime the period is."""
    uptime = account.uptime_ratio(reservation)
    deepest = max(
        (s.credit_ratio for s in reservation.credit_steps if uptime < s.below_uptime_ratio - 1e-12), default=Decimal(0)
    )
    hours = Decimal(repr(account.period_s)) / SECONDS_PER_HOUR
    return reservation.price_usd_per_device_h * reservation.device_count * hours * deepest


def next_minute_usd(reservation: Reservation, account: UptimeAccount, *, device_count: int | None = None) -> Decimal:
    """Return what one more lost minute of `device_count` devices (all by default) would add to the credit.

    Nothing inside a step, the whole jump where it crosses one: that is why the minutes already lost are state.
    """
    count = reservation.device_count if device_count is None else device_count
    return credit_usd(reservation, account.with_loss(count, 60.0)) - credit_usd(reservation, account)


def seconds_to_next_step_s(reservation: Reservation, account: UptimeAccount) -> float | None:
    """Return how long all devices may still be lost before the credit jumps; None past the last step."""
    uptime = account.uptime_ratio(reservation)
    ahead = [s.below_uptime_ratio for s in reservation.credit_steps if uptime >= s.below_uptime_ratio - 1e-12]
    return (uptime - max(ahead)) * account.period_s if ahead else None


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmFeeder:
    """A feeder in its worst accepted case: the lowest limit any accepted programme may set, U_max and R."""

    feeder: str
    parent: str | None = None
    lowest_limit_w: float
    uncontrolled_max_w: float
    margin_w: float
    loss_ratio: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmBank:
    """A bank as I4 counts it: its safe share, or its reserved devices at their capped floor, whichever is more.

    Args:
        capped_floor_w: counted watts of one device at the lowest cap that still counts as served.
        fixed_claim_w: counted watts without any device at work (host, fans, resting devices).
    """

    bank: str
    feeder: str
    inference_class: str | None
    device_count: int
    unit_size: int = 1
    capped_floor_w: float = 0.0
    fixed_claim_w: float = 0.0
    safe_share_w: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """Whether a set of reservations can always be met; `placement` counts devices by (reservation, bank)."""

    accepted: bool
    reason: str
    placement: tuple[tuple[str, str, int], ...] = ()


def check_acceptance(
    reservations: Sequence[Reservation], feeders: Sequence[FirmFeeder], banks: Sequence[FirmBank]
) -> Acceptance:
    """Check I4 for reservations that overlap in time: sum max(reserved at floor, safe share) + U_max + R <= lowest limit.

    Places units greedily where the room is largest. It may refuse a set that a cleverer packing could hold, never the reverse.
    Call it with every reservation owed at some moment of the new one's term.
    """
    room = Headroom(
        FeederView(
            feeder=f.feeder, parent=f.parent, loss_ratio=f.loss_ratio,
            available_w=f.lowest_limit_w - f.uncontrolled_max_w - f.margin_w,
        )
        for f in feeders
    )  # fmt: skip
    ordered = sorted(banks, key=lambda b: b.bank)
    for bank in ordered:
        room.take(room.path(bank.feeder, bank.bank), bank.safe_share_w)
    over = [room.names[i] for i, free in enumerate(room.free_w) if free < 0]
    if over:
        return Acceptance(accepted=False, reason=f"safe shares alone exceed the lowest limit of feeder {over[0]}")
    placed = {b.bank: 0 for b in ordered}
    placement: dict[tuple[str, str], int] = {}

    def added_w(bank: FirmBank) -> float:
        def claim_w(devices: int) -> float:
            return (
                max(bank.safe_share_w, bank.fixed_claim_w + devices * bank.capped_floor_w)
                if devices
                else bank.safe_share_w
            )

        return claim_w(placed[bank.bank] + bank.unit_size) - claim_w(placed[bank.bank])

    for reservation in sorted(reservations, key=lambda r: r.id):
        missing = reservation.device_count
        while missing > 0:
            serving = [b for b in ordered if b.inference_class == reservation.inference_class]
            open_banks = [b for b in serving if placed[b.bank] + b.unit_size <= b.device_count]
            if not open_banks:
                have = sum(b.device_count // b.unit_size * b.unit_size for b in serving)
                return Acceptance(
                    accepted=False,
                    reason=f"reservation {reservation.id}: {missing} GPUs of class {reservation.inference_class} too few; "
                    f"the site has {have}",
                )
            fitting = [b for b in open_banks if room.units_that_fit(room.path(b.feeder, b.bank), added_w(b), 1)]
            if not fitting:
                bank = open_banks[0]
                full = room.full_for(room.path(bank.feeder, bank.bank), added_w(bank))
                return Acceptance(
                    accepted=False,
                    reason=f"reservation {reservation.id}: {missing} GPUs do not fit the lowest limit of feeder "
                    f"{room.names[full[-1]]} (I4); lower another reservation, or its safe shares",
                )
            bank = max(fitting, key=lambda b: (-added_w(b), _least_room_w(room, b), b.bank))
            room.take(room.path(bank.feeder, bank.bank), added_w(bank))
            placed[bank.bank] += bank.unit_size
            key = (reservation.id, bank.bank)
            placement[key] = placement.get(key, 0) + bank.unit_size
            missing -= bank.unit_size
    return Acceptance(
        accepted=True,
        reason="fits at its floor under the lowest limit of every feeder",
        placement=tuple((r, b, n) for (r, b), n in sorted(placement.items())),
    )


def _least_room_w(room: Headroom, bank: FirmBank) -> float:
    return min(room.free_w[i] / m for i, m in room.path(bank.feeder, bank.bank))
