"""The strike-price rule: what a device earns at a point, and how much better another must be before a flip pays.

This room turns market and policy into USD per hour per device; it knows no watts that are free and no other bank. Where a price
is unknown it says so: work whose worth is unknown is kept where it runs (reckoned at nothing, never below rest) and is not
started. Invariant: the same bank, point and purpose always have the same worth within one plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from swingbus_controller.domain.planning.market import MarketView
from swingbus_controller.domain.planning.plan import BankView
from swingbus_controller.domain.planning.points import WORKING_MODES, DeviceKind, Mode, OperatingPoint
from swingbus_controller.domain.planning.policy import Policy

from . import economics

SECONDS_PER_HOUR = 3600.0


class Purpose(StrEnum):
    """For whom a device works."""

    FIRM = "firm"
    SPOT = "spot"
    SPOT_PART = "spot_part"  # the last unit of a demand that does not fill it
    IDLE = "idle"  # inference loaded, nobody asking
    MINE = "mine"
    REST = "rest"


def base_purpose(point: OperatingPoint) -> Purpose:
    """Return whom a device works for when it has been given to nobody."""
    if point.mode is Mode.MINING:
        return Purpose.MINE
    return Purpose.IDLE if point.mode is Mode.INFERENCE else Purpose.REST


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """Prices and policy, ready to be asked about any bank.

    `firm_price` is the mean price of the firm needs of each inference class (USD per GPU-hour).
    """

    market: MarketView
    policy: Policy
    firm_price: dict[str, float]
    _memo: dict[tuple[object, ...], tuple[float, float]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def power_price(self) -> float | None:
        """USD/MWh now, None if unknown."""
        quote = self.market.power_price_usd_per_mwh
        return None if quote is None else quote.value

    def revenue_usd_per_h(
        self, bank: BankView, point: OperatingPoint, purpose: Purpose, share: float = 1.0
    ) -> float | None:
        """Return what one device earns per hour before energy; None if its price is unknown."""
        match purpose:
            case Purpose.REST | Purpose.IDLE:
                return 0.0
            case Purpose.FIRM:
                return self.firm_price.get(bank.inference_class or "", 0.0) * point.output
            case Purpose.SPOT | Purpose.SPOT_PART:
                quote = self.market.inference_price_usd_per_gpu_h.get(bank.inference_class or "")
                return None if quote is None else quote.value * point.output * share
            case Purpose.MINE if bank.kind is DeviceKind.ASIC:
                hashprice = self.market.hashprice_usd_per_th_day
                if hashprice is None:
                    return None
                return economics.mining_revenue_usd_per_h(
                    hashrate_ths=point.output,
                    hashprice_usd_per_th_day=hashprice.value * (1.0 - self.policy.pool_fee_ratio),
                )
            case Purpose.MINE:
                mining = self.market.gpu_mining_usd_per_gpu_h.get(bank.mining_class or "")
                return None if mining is None else mining.value * point.output * (1.0 - self.policy.pool_fee_ratio)

    def margin_usd_per_h(self, bank: BankView, point: OperatingPoint, purpose: Purpose, share: float = 1.0) -> float:
        """Return revenue less energy of one device. Unknown revenue is reckoned as just paying for its energy."""
        energy = self.energy_usd_per_h(point.draw_w)
        revenue = self.revenue_usd_per_h(bank, point, purpose, share)
        return max(0.0, -energy) if revenue is None else revenue - energy

    def energy_usd_per_h(self, draw_w: float) -> float:
        """Return what a draw costs per hour now; nothing while the power price is unknown."""
        return economics.energy_cost_usd_per_h(
            draw_w=draw_w,
            power_price_usd_per_mwh=0.0 if self.power_price is None else self.power_price,
            overhead_ratio=self.policy.overhead_ratio,
        )

    def why_not_enter(self, bank: BankView, point: OperatingPoint) -> str | None:
        """Say why devices may not be started at a point for money; None if they may. Firm needs do not ask."""
        if point.mode not in WORKING_MODES:
            return None
        if point.mode is Mode.MINING and bank.kind is DeviceKind.GPU and not self.policy.gpu_mining_allowed:
            return "GPU mining is not switched on"
        if self.power_price is None:
            return "the power price is unknown"
        purpose = Purpose.MINE if point.mode is Mode.MINING else Purpose.SPOT
        if self.revenue_usd_per_h(bank, point, purpose) is None:
            what = "hashprice" if bank.kind is DeviceKind.ASIC else f"{point.mode} price"
            return f"the {what} is unknown"
        return None

    def cost_usd(self, bank: BankView, origin: OperatingPoint, aim: OperatingPoint) -> float:
        """Return what one flip of one device costs once."""
        costs = self.policy.costs
        if origin == aim:
            return 0.0
        if bank.kind is DeviceKind.ASIC:
            if origin.mode is aim.mode:
                return costs.asic_retune_usd
            return costs.asic_wake_usd if aim.mode is Mode.MINING else costs.asic_sleep_usd
        if origin.mode is aim.mode:
            return costs.gpu_cap_usd
        if aim.mode is Mode.INFERENCE:
            return costs.into_inference_usd
        return costs.into_gpu_mining_usd if aim.mode is Mode.MINING else costs.gpu_stop_usd

    def threshold_usd_per_h(self, bank: BankView, origin: OperatingPoint, aim: OperatingPoint) -> float:
        """Return how much better per hour the aim must be before one device is flipped (S4).

        The larger of the half-width of the optimal band (economics note 3.3) and the one-way cost over the expected hold.
        """
        if origin == aim:
            return 0.0
        one_way = self.cost_usd(bank, origin, aim)
        round_trip = one_way + self.cost_usd(bank, aim, origin)
        swing_mw = abs(aim.draw_w - origin.draw_w) * self.policy.overhead_ratio / economics.WATTS_PER_MW
        variance = swing_mw * swing_mw * self.policy.power_price_variance
        if Mode.INFERENCE in (origin.mode, aim.mode) and origin.mode is not aim.mode:
            variance += self.policy.inference_margin_variance
        band = economics.hysteresis_half_width_usd_per_h(
            round_trip_cost_usd=round_trip, margin_variance_usd2_per_h3=variance
        )
        return max(band, one_way * SECONDS_PER_HOUR / self.policy.expected_hold_s)

    def values_usd_per_h(
        self, bank: BankView, origin: OperatingPoint, point: OperatingPoint, purpose: Purpose, share: float = 1.0
    ) -> tuple[float, float]:
        """Return (margin net of the threshold of coming from `origin`, margin) of one device; remembered within a plan."""
        key = (bank.kind, bank.inference_class, bank.mining_class, id(origin), id(point), purpose, share)
        found = self._memo.get(key)
        if found is None:
            raw = self.margin_usd_per_h(bank, point, purpose, share)
            found = self._memo[key] = (raw - self.threshold_usd_per_h(bank, origin, point), raw)
        return found

    def strike_usd_per_mwh(
        self, bank: BankView, point: OperatingPoint, rest: OperatingPoint, purpose: Purpose
    ) -> float | None:
        """Return the power price at which work at a point earns just as much as rest; None if its price is unknown.

        Revenue over the watts that the work adds to rest (with overhead): what mining "earns at the strike".
        """
        revenue = self.revenue_usd_per_h(bank, point, purpose)
        added_w = point.draw_w - rest.draw_w
        if revenue is None or added_w <= 0:
            return None
        return economics.revenue_usd_per_mwh(
            revenue_usd_per_h=revenue, draw_w=added_w, overhead_ratio=self.policy.overhead_ratio
        )

    def band_usd_per_mwh(self, bank: BankView, origin: OperatingPoint, aim: OperatingPoint) -> float:
        """Return the threshold of a flip as a distance of the power price from the strike (USD/MWh)."""
        swing_w = abs(aim.draw_w - origin.draw_w) * self.policy.overhead_ratio
        return self.threshold_usd_per_h(bank, origin, aim) / swing_w * economics.WATTS_PER_MW if swing_w > 0 else 0.0
