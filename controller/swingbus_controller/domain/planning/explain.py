"""Explanations: why a bank does what it does, why it does not do something else, in money and limits.

Reads a plan and its basis; decides nothing, and says nothing that the plan did not reckon with. Times of day are told in the zone
that the caller names. Invariant: every sentence has a structured twin with the same facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from enum import StrEnum
from types import MappingProxyType

from swingbus.faults import NotFound
from swingbus_controller.domain.planning.plan import PLANNABLE, Availability, BankView, FeederView, Plan
from swingbus_controller.domain.planning.planner import bank_claim_w, dwell_left_s, rest_point
from swingbus_controller.domain.planning.points import DeviceKind, Mode, OperatingPoint
from swingbus_controller.domain.planning.worth import Purpose, Worth

_VERB = {Mode.MINING: "mining", Mode.INFERENCE: "inference"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What devices of a bank at one point do and why. Prices in USD/MWh; None is not known or does not apply."""

    bank: str
    point: str
    mode: Mode
    count: int
    since_s: float
    strike_usd_per_mwh: float | None
    power_price_usd_per_mwh: float | None
    one_more_kw_usd_per_mwh: float
    full_feeder: str | None
    full_until_s: float | None
    sentence: str


class WhyNotCode(StrEnum):
    """The first thing that stands in the way of a bank doing more in a mode."""

    UNSUPPORTED = "unsupported"
    UNAVAILABLE = "unavailable"
    ALL_THERE = "all_there"
    PINNED = "pinned"
    SWITCHED_OFF = "switched_off"
    NO_MARKET = "no_market"
    DWELL = "dwell"
    NO_DEMAND = "no_demand"
    BELOW_STRIKE = "below_strike"
    INSIDE_BAND = "inside_band"
    FEEDER_FULL = "feeder_full"
    PLANNED = "planned"
    OTHERS_EARN_MORE = "others_earn_more"


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyNot:
    """Why a bank does not (or not more) work in a mode."""

    bank: str
    mode: Mode
    code: WhyNotCode
    sentence: str
    facts: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


def explain(plan: Plan, bank_name: str, *, zone: tzinfo = UTC) -> tuple[Explanation, ...]:
    """Explain where each part of a bank is, one explanation per point it has devices at.

    Raises:
        NotFound: the plan does not know the bank.
    """
    bank = _bank(plan, bank_name)
    worth = _worth(plan)
    found: dict[str, tuple[int, float]] = {}
    for holding in bank.holdings:
        if holding.count:
            count, since_s = found.get(holding.point, (0, holding.in_mode_since_s))
            found[holding.point] = (count + holding.count, min(since_s, holding.in_mode_since_s))
    one_more, full = one_more_kw(plan, bank)
    result = []
    for name, (count, since_s) in sorted(found.items()):
        point = bank.point(name)
        strike = _strike(bank, point, worth)
        sentence = (
            f"bank {bank.bank}: {_doing(bank, point, count)} since {_clock(since_s, zone)}, "
            f"{_earning(bank, point, strike, worth)}; {_more_words(one_more, full, zone)}"
        )
        planned = [m for m in plan.moves if m.bank == bank.bank and m.from_point == name]
        for move in planned:
            sentence += f"; planned: {move.count} to {move.to_point} ({move.detail})"
        if bank.availability not in PLANNABLE:
            sentence += f"; not planned: {_unavailable(bank)}"
        elif bank.pinned_reason is not None:
            sentence += f"; pinned: {bank.pinned_reason}"
        result.append(
            Explanation(
                bank=bank.bank, point=name, mode=point.mode, count=count, since_s=since_s, strike_usd_per_mwh=strike,
                power_price_usd_per_mwh=worth.power_price, one_more_kw_usd_per_mwh=one_more,
                full_feeder=None if full is None else full.feeder,
                full_until_s=None if full is None else full.limit_until_s, sentence=sentence,
            )
        )  # fmt: skip
    return tuple(result)


def one_more_kw(plan: Plan, bank: BankView) -> tuple[float, FeederView | None]:
    """Return what one more kW at the bank's own feeder would earn (USD/MWh), and the full feeder that decides it, if one does."""
    feeders = {f.feeder: f for f in plan.view.feeders}
    here = plan.feeder(bank.feeder)
    if here is None:
        return 0.0, None
    if here.marginal_usd_per_mwh > 0:
        return here.marginal_usd_per_mwh, feeders[bank.feeder]
    if here.blocked_by is not None:
        return 0.0, feeders[here.blocked_by]
    above = feeders[bank.feeder].parent
    while above is not None:
        outlook = plan.feeder(above)
        if outlook is not None and outlook.marginal_usd_per_mwh > 0:
            return 0.0, feeders[above]
        above = feeders[above].parent
    return 0.0, None


def why_not(plan: Plan, bank_name: str, mode: Mode, *, zone: tzinfo = UTC) -> WhyNot:
    """Say what stands between a bank's devices and a mode: the first obstacle in the order in which they would be met.

    Raises:
        NotFound: the plan does not know the bank.
    """
    bank = _bank(plan, bank_name)
    worth = _worth(plan)

    def answer(code: WhyNotCode, words: str, **facts: float) -> WhyNot:
        return WhyNot(
            bank=bank.bank,
            mode=mode,
            code=code,
            sentence=f"bank {bank.bank}, {mode}: {words}",
            facts=MappingProxyType(facts),
        )

    points = sorted((p for p in bank.points if p.mode is mode), key=lambda p: (-p.output, p.name))
    if not points:
        return answer(WhyNotCode.UNSUPPORTED, "this bank has no such operating point")
    if bank.availability not in PLANNABLE:
        return answer(WhyNotCode.UNAVAILABLE, _unavailable(bank), claim_w=bank_claim_w(bank))
    elsewhere = [h for h in bank.holdings if h.count and bank.point(h.point).mode is not mode]
    if not elsewhere:
        return answer(WhyNotCode.ALL_THERE, "all its usable devices are in this mode already")
    moving = sum(m.count for m in plan.moves if m.bank == bank.bank and m.to_mode is mode and m.from_mode is not mode)
    if moving:
        return answer(WhyNotCode.PLANNED, f"{moving} devices are planned to go there", count=moving)
    if bank.pinned_reason is not None:
        return answer(WhyNotCode.PINNED, f"pinned: {bank.pinned_reason}")
    best = points[0]
    if mode is Mode.MINING and bank.kind is DeviceKind.GPU and not plan.policy.gpu_mining_allowed:
        return answer(WhyNotCode.SWITCHED_OFF, "GPU mining is not switched on")
    missing = worth.why_not_enter(bank, best)
    if missing is not None:
        return answer(WhyNotCode.NO_MARKET, f"{missing}, so nothing is started for money")
    wait_s = min(dwell_left_s(bank, h, plan.policy, plan.made_at_s) for h in elsewhere)
    if wait_s > 0:
        until = _clock(plan.made_at_s + wait_s, zone)
        return answer(WhyNotCode.DWELL, f"its devices stay where they are until {until} (minimum dwell)", wait_s=wait_s)
    if bank.availability is Availability.SHRINK_ONLY and mode is not Mode.STANDBY:
        return answer(WhyNotCode.UNAVAILABLE, _unavailable(bank))
    origin = bank.point(elsewhere[0].point)
    if mode is Mode.STANDBY:
        return answer(
            WhyNotCode.OTHERS_EARN_MORE, f"its work ({origin.name}) earns more than rest, and there is room for it"
        )
    if mode is Mode.INFERENCE:
        short = [s for s in plan.shortfalls if s.inference_class == bank.inference_class]
        if not short:
            return answer(WhyNotCode.NO_DEMAND, f"no more {bank.inference_class} inference is asked for than is served")
    purpose = Purpose.MINE if mode is Mode.MINING else Purpose.SPOT
    gain = worth.margin_usd_per_h(bank, best, purpose) - worth.margin_usd_per_h(bank, origin, _now_for(origin))
    threshold = worth.threshold_usd_per_h(bank, origin, best)
    strike = _strike(bank, best, worth)
    money = _earning(bank, best, strike, worth)
    facts = {"gain_usd_per_h": gain, "threshold_usd_per_h": threshold}
    if gain <= 0:
        return answer(WhyNotCode.BELOW_STRIKE, f"{money}: worth less than {origin.name}", **facts)
    if gain <= threshold:
        words = f"{money}: {gain:.3f} USD/h better per device, but a flip must gain {threshold:.3f} to pay for itself"
        return answer(WhyNotCode.INSIDE_BAND, words, **facts)
    one_more, full = one_more_kw(plan, bank)
    if full is not None:
        return answer(WhyNotCode.FEEDER_FULL, f"{money}; {_more_words(one_more, full, zone)}", **facts)
    return answer(WhyNotCode.OTHERS_EARN_MORE, f"{money}; the watts or the demand go where they earn more", **facts)


def _bank(plan: Plan, name: str) -> BankView:
    for bank in plan.view.banks:
        if bank.bank == name:
            return bank
    known = ", ".join(sorted(b.bank for b in plan.view.banks)[:8])
    raise NotFound(f"the plan knows no bank {name!r}; it knows {known or 'none'}", metadata={"bank": name})


def _worth(plan: Plan) -> Worth:
    prices: dict[str, float] = {}
    for need in sorted(plan.view.firm_needs, key=lambda n: n.price_usd_per_device_h):
        prices[need.inference_class] = need.price_usd_per_device_h
    return Worth(market=plan.market, policy=plan.policy, firm_price=prices)


def _now_for(point: OperatingPoint) -> Purpose:
    if point.mode is Mode.MINING:
        return Purpose.MINE
    return Purpose.IDLE if point.mode is Mode.INFERENCE else Purpose.REST


def _work_of(bank: BankView, point: OperatingPoint) -> OperatingPoint | None:
    """The work that a sentence about this point weighs: its own, or the best mining (else inference) of a resting device."""
    if point.mode in _VERB:
        return point
    for mode in (Mode.MINING, Mode.INFERENCE):
        works = sorted((p for p in bank.points if p.mode is mode), key=lambda p: (-p.output, p.name))
        if works:
            return works[0]
    return None


def _strike(bank: BankView, point: OperatingPoint, worth: Worth) -> float | None:
    work = _work_of(bank, point)
    if work is None:
        return None
    rest = rest_point(bank) or OperatingPoint(name="nothing", mode=Mode.STANDBY, claim_w=0.0, draw_w=0.0)
    return worth.strike_usd_per_mwh(bank, work, rest, Purpose.MINE if work.mode is Mode.MINING else Purpose.SPOT)


def _earning(bank: BankView, point: OperatingPoint, strike: float | None, worth: Worth) -> str:
    work = _work_of(bank, point)
    verb = "work" if work is None else _VERB[work.mode]
    earns = f"what {verb} earns is unknown" if strike is None else f"{verb} earns {strike:.0f} USD/MWh at the strike"
    price = worth.power_price
    return f"{earns}, " + ("the power price is unknown" if price is None else f"power costs {price:.0f}")


def _doing(bank: BankView, point: OperatingPoint, count: int) -> str:
    others = sum(h.count for h in bank.holdings) - count
    what = "standby" if point.mode is Mode.STANDBY else f"{point.mode} ({point.name})"
    return f"{count} of {count + others} {what}" if others else what


def _more_words(one_more: float, full: FeederView | None, zone: tzinfo) -> str:
    if full is None:
        return "one more kW here is worth 0 because there is room for all that pays"
    until = "" if full.limit_until_s is None else f" until {_clock(full.limit_until_s, zone)}"
    if one_more > 0:
        return f"one more kW here is worth {one_more:.0f} USD/MWh ({full.feeder} is full{until})"
    return f"one more kW here is worth 0 because the {full.feeder} feeder is full{until}"


def _unavailable(bank: BankView) -> str:
    return str(bank.availability).replace("_", " ") + (f": {bank.note}" if bank.note else "")


def _clock(at_s: float, zone: tzinfo) -> str:
    return datetime.fromtimestamp(at_s, tz=zone).strftime("%H:%M")
