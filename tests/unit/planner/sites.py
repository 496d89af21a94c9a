"""Builders of small sites for planner tests: one grid feeder, ASIC containers and GPU racks with realistic points."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from swingbus_controller.domain.planning.market import MarketView, Quote
from swingbus_controller.domain.planning.plan import (
    Authority,
    Availability,
    BankView,
    FeederView,
    FirmNeed,
    Holding,
    PlanView,
    Transit,
)
from swingbus_controller.domain.planning.points import DeviceKind, Mode, OperatingPoint
from swingbus_controller.domain.planning.policy import Policy

S19J = (
    OperatingPoint(name="mine", mode=Mode.MINING, claim_w=3355.0, draw_w=3050.0, output=100.0),
    OperatingPoint(name="mine-low", mode=Mode.MINING, claim_w=2420.0, draw_w=2200.0, output=75.0),
    OperatingPoint(name="standby", mode=Mode.STANDBY, claim_w=20.0, draw_w=15.0),
)
S21 = (
    OperatingPoint(name="mine", mode=Mode.MINING, claim_w=3850.0, draw_w=3500.0, output=200.0),
    OperatingPoint(name="standby", mode=Mode.STANDBY, claim_w=20.0, draw_w=15.0),
)
H100 = (
    OperatingPoint(name="inference", mode=Mode.INFERENCE, claim_w=750.0, draw_w=650.0, output=1.0, workload="llm"),
    OperatingPoint(name="inference-low", mode=Mode.INFERENCE, claim_w=535.0, draw_w=450.0, output=0.87, workload="llm"),
    OperatingPoint(name="gpu-mine", mode=Mode.MINING, claim_w=430.0, draw_w=380.0, output=1.0, workload="miner"),
    OperatingPoint(name="standby", mode=Mode.STANDBY, claim_w=80.0, draw_w=70.0),
)
NOW_S = 100_000.0


def make_market(
    *,
    power: float | None = 40.0,
    hashprice: float | None = 0.0465,
    inference_price: float | None = 2.35,
    demand: float | None = 0.0,
    gpu_mining: float | None = 0.05,
    inference_class: str = "h100",
) -> MarketView:
    """Return a market with one inference class; None is a missing signal."""

    def quote(value: float | None) -> Quote | None:
        return None if value is None else Quote(value=value, source="test")

    def by_class(value: float | None) -> Mapping[str, Quote]:
        return MappingProxyType({} if value is None else {inference_class: Quote(value=value, source="test")})

    return MarketView(
        now_s=NOW_S,
        power_price_usd_per_mwh=quote(power),
        hashprice_usd_per_th_day=quote(hashprice),
        inference_price_usd_per_gpu_h=by_class(inference_price),
        inference_demand_gpus=by_class(demand),
        gpu_mining_usd_per_gpu_h=by_class(gpu_mining),
    )


def make_asics(
    bank: str,
    feeder: str,
    *,
    points: tuple[OperatingPoint, ...] = S19J,
    mining: int = 0,
    standby: int = 0,
    since_s: float = 0.0,
    availability: Availability = Availability.HELD,
    pinned_reason: str | None = None,
    held_claim_w: float | None = None,
    transits: tuple[Transit, ...] = (),
) -> BankView:
    """Return an ASIC bank with devices mining in full and in standby."""
    return BankView(
        bank=bank,
        feeder=feeder,
        kind=DeviceKind.ASIC,
        points=points,
        holdings=(
            Holding(point="mine", count=mining, since_s=since_s),
            Holding(point="standby", count=standby, since_s=since_s),
        ),
        transits=transits,
        availability=availability,
        pinned_reason=pinned_reason,
        held_claim_w=held_claim_w,
    )


def make_gpus(
    bank: str,
    feeder: str,
    *,
    at: Mapping[str, int],
    since_s: float = 0.0,
    unit_size: int = 1,
    pinned_reason: str | None = None,
    transits: tuple[Transit, ...] = (),
    availability: Availability = Availability.HELD,
) -> BankView:
    """Return a GPU bank; `at` counts devices by point, units are named."""
    holdings = []
    number = 0
    for point, count in sorted(at.items()):
        units = count // unit_size
        holdings.append(
            Holding(
                point=point,
                count=count,
                since_s=since_s,
                unit_ids=tuple(f"{bank}/u{number + i:03d}" for i in range(units)),
            )
        )
        number += units
    return BankView(
        bank=bank,
        feeder=feeder,
        kind=DeviceKind.GPU,
        points=H100,
        holdings=tuple(holdings),
        transits=transits,
        fixed_claim_w=600.0,
        fixed_draw_w=500.0,
        unit_size=unit_size,
        inference_class="h100",
        mining_class="h100",
        pinned_reason=pinned_reason,
        availability=availability,
    )


def make_view(
    banks: tuple[BankView, ...],
    *,
    grid_w: float,
    feeders: Mapping[str, float] | None = None,
    firm: tuple[FirmNeed, ...] = (),
    authority: Authority = Authority.CONTROL,
    limit_reason: str = "contract",
    limit_until_s: float | None = None,
    revision: int = 7,
) -> PlanView:
    """Return a site whose banks' feeders hang under `grid`; a feeder without watts of its own is as wide as the grid."""
    own = dict(feeders or {})
    names = sorted({b.feeder for b in banks} | set(own))
    return PlanView(
        revision=revision,
        site="sites/demo",
        feeders=(
            FeederView(feeder="grid", available_w=grid_w, limit_reason=limit_reason, limit_until_s=limit_until_s),
            *(FeederView(feeder=n, parent="grid", available_w=own.get(n, 1e12)) for n in names if n != "grid"),
        ),
        banks=banks,
        firm_needs=firm,
        authority=authority,
    )


def make_demo(*, grid_w: float = 420_000.0) -> PlanView:
    """Return a site like the demo's: two ASIC containers and 64 GPUs whose demand is larger than the limit."""
    gpus = tuple(make_gpus(f"g{i}", f"rack{i}", at={"gpu-mine": 8}) for i in range(8))
    return make_view(
        (
            make_asics("c1/s21", "c1", points=S21, mining=60),
            make_asics("c2/s19j", "c2", mining=40, standby=25),
            *gpus,
        ),
        grid_w=grid_w,
    )


POLICY = Policy(gpu_mining_allowed=True)
