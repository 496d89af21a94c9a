"""The market as the controller knows it: signals with a source, a time and a limit to their age.

This room decides which signal answers a question now, and says so when none does: a stale or missing signal is a `Gap`, filled
only by a fallback that the operator declared. It refuses to know where signals come from and to guess. Prices enter as `Decimal`
(from decimal strings); a `Quote` is a float, for the planner. Times are Unix seconds of the market's clock, which a demo may run
faster than the wall's. Invariant: a quote names its source; no value is ever older than its limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType

from swingbus.faults import InvalidInput


class SignalKind(StrEnum):
    """What a signal tells; the canonical unit is in `UNITS`."""

    POWER_PRICE = "power_price"
    HASHPRICE = "hashprice"
    INFERENCE_PRICE = "inference_price"
    INFERENCE_DEMAND = "inference_demand"
    GPU_MINING_PRICE = "gpu_mining_price"


UNITS: Mapping[SignalKind, str] = MappingProxyType(
    {
        SignalKind.POWER_PRICE: "USD/MWh",
        SignalKind.HASHPRICE: "USD/TH/day",
        SignalKind.INFERENCE_PRICE: "USD/GPU-h",
        SignalKind.INFERENCE_DEMAND: "GPU",
        SignalKind.GPU_MINING_PRICE: "USD/GPU-h",
    }
)
# Units that people quote, and what one of them is in the canonical unit.
CONVERSIONS: Mapping[tuple[SignalKind, str], Decimal] = MappingProxyType(
    {
        **{(kind, unit): Decimal(1) for kind, unit in UNITS.items()},
        (SignalKind.POWER_PRICE, "USD/kWh"): Decimal(1000),
        (SignalKind.HASHPRICE, "USD/PH/day"): Decimal("0.001"),
        (SignalKind.GPU_MINING_PRICE, "USD/GPU-day"): Decimal(1) / Decimal(24),
    }
)
_BY_CLASS = frozenset({SignalKind.INFERENCE_PRICE, SignalKind.INFERENCE_DEMAND, SignalKind.GPU_MINING_PRICE})


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalKey:
    """What a signal is about: a kind, and the inference or device class where the kind has classes."""

    kind: SignalKind
    subject: str = ""

    def __post_init__(self) -> None:
        if (self.kind in _BY_CLASS) != bool(self.subject):
            need = "needs a class (such as 'h100')" if self.kind in _BY_CLASS else "has no class"
            raise InvalidInput(f"signal {self.kind}: {need}, got {self.subject!r}", metadata={"kind": self.kind})

    def __str__(self) -> str:
        return f"{self.kind}/{self.subject}" if self.subject else str(self.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One value of one signal, in force from `valid_from_s` until the next one or until it is stale.

    Args:
        value: in the canonical unit of its kind (`UNITS`).
        stale_after_s: age beyond which it is no longer believed, counted from the later of valid_from_s and received_at_s.
        valid_until_s: end of its own window, if it has one (an hourly price has).
    """

    key: SignalKey
    value: Decimal
    source: str
    valid_from_s: float
    received_at_s: float
    stale_after_s: float
    valid_until_s: float | None = None

    def __post_init__(self) -> None:
        if not self.value.is_finite():
            raise InvalidInput(f"signal {self.key}: value is {self.value}, must be finite; leave unknown values out")
        if self.value < 0 and self.key.kind is not SignalKind.POWER_PRICE:
            raise InvalidInput(f"signal {self.key}: value is {self.value}; only power may have a negative price")
        if not self.source:
            raise InvalidInput(f"signal {self.key}: source is empty; say where the value comes from")
        if not self.stale_after_s > 0:
            raise InvalidInput(f"signal {self.key}: stale_after_s is {self.stale_after_s}, must be > 0")
        if self.valid_until_s is not None and self.valid_until_s <= self.valid_from_s:
            raise InvalidInput(f"signal {self.key}: valid_until_s must be later than valid_from_s")

    def stale_at_s(self) -> float:
        """Return the moment from which this signal is not believed any more."""
        by_age = max(self.valid_from_s, self.received_at_s) + self.stale_after_s
        return by_age if self.valid_until_s is None else min(by_age, self.valid_until_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """What the operator declared to be used while a signal is missing or stale."""

    key: SignalKey
    value: Decimal
    reason: str = "declared fallback"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """The answer to "what is it now": canonical unit, with its source; `is_fallback` when no fresh signal had one."""

    value: float
    source: str
    valid_from_s: float | None = None
    stale_at_s: float | None = None
    is_fallback: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A signal with no fresh value. `reason` says missing or stale since when, and whether a fallback stands in."""

    key: SignalKey
    reason: str
    has_fallback: bool


def _no_quotes() -> Mapping[str, Quote]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketView:
    """The market at one moment: what the planner is given. `None` or an absent class means not known."""

    now_s: float
    power_price_usd_per_mwh: Quote | None = None
    hashprice_usd_per_th_day: Quote | None = None
    inference_price_usd_per_gpu_h: Mapping[str, Quote] = field(default_factory=_no_quotes)
    inference_demand_gpus: Mapping[str, Quote] = field(default_factory=_no_quotes)
    gpu_mining_usd_per_gpu_h: Mapping[str, Quote] = field(default_factory=_no_quotes)
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketBook:
    """All signals received that may still matter, by key, in order of their start; a value, changed by `with_signals`."""

    signals: Mapping[SignalKey, tuple[Signal, ...]] = field(default_factory=dict)
    fallbacks: Mapping[SignalKey, Fallback] = field(default_factory=dict)

    def with_signals(self, signals: Iterable[Signal]) -> MarketBook:
        """Add signals; one with the same key and start replaces the older one (a correction), whatever the order of arrival."""
        changed: dict[SignalKey, dict[float, Signal]] = {}
        for signal in signals:
            by_start = changed.get(signal.key)
            if by_start is None:
                by_start = changed[signal.key] = {s.valid_from_s: s for s in self.signals.get(signal.key, ())}
            old = by_start.get(signal.valid_from_s)
            if old is None or old.received_at_s <= signal.received_at_s:
                by_start[signal.valid_from_s] = signal
        if not changed:
            return self
        merged = dict(self.signals)
        for key, by_start in changed.items():
            merged[key] = tuple(by_start[start] for start in sorted(by_start))
        return replace(self, signals=merged)

    def with_fallbacks(self, fallbacks: Iterable[Fallback]) -> MarketBook:
        """Declare what stands in for missing signals; the last declaration of a key holds."""
        return replace(self, fallbacks={**self.fallbacks, **{f.key: f for f in fallbacks}})

    def pruned(self, before_s: float) -> MarketBook:
        """Drop signals that were stale and replaced before a moment, keeping the newest of each key."""
        kept = {
            key: tuple(s for i, s in enumerate(series) if i == len(series) - 1 or s.stale_at_s() >= before_s)
            for key, series in self.signals.items()
        }
        return replace(self, signals=kept)

    def latest(self, key: SignalKey, now_s: float) -> Signal | None:
        """Return the newest signal in force at a moment, stale or not; None if there was never one."""
        series = self.signals.get(key, ())
        low, high = 0, len(series)
        while low < high:
            middle = (low + high) // 2
            if series[middle].valid_from_s <= now_s:
                low = middle + 1
            else:
                high = middle
        return series[low - 1] if low else None

    def quote(self, key: SignalKey, now_s: float) -> Quote | Gap:
        """Answer for one key: a fresh value, else a gap."""
        signal = self.latest(key, now_s)
        has_fallback = key in self.fallbacks
        if signal is None:
            return Gap(key=key, reason="no value received", has_fallback=has_fallback)
        stale_at_s = signal.stale_at_s()
        if now_s >= stale_at_s:
            late_s = now_s - stale_at_s
            return Gap(
                key=key, reason=f"stale for {late_s:.0f} s (last from {signal.source})", has_fallback=has_fallback
            )
        return Quote(
            value=float(signal.value), source=signal.source, valid_from_s=signal.valid_from_s, stale_at_s=stale_at_s
        )

    def view(self, now_s: float) -> MarketView:
        """Answer every key known by signal or by fallback, plus the two prices that every site needs.

        >>> price = SignalKey(kind=SignalKind.POWER_PRICE)
        >>> book = MarketBook().with_signals([Signal(key=price, value=Decimal("71.00"), source="file", valid_from_s=0,
        ...     received_at_s=0, stale_after_s=7200)])
        >>> book.view(3600).power_price_usd_per_mwh.value
        71.0
        >>> book.view(7200).power_price_usd_per_mwh is None, [str(g.key) for g in book.view(7200).gaps]
        (True, ['power_price', 'hashprice'])
        """
        wanted = [SignalKey(kind=SignalKind.POWER_PRICE), SignalKey(kind=SignalKind.HASHPRICE)]
        others = (set(self.signals) | set(self.fallbacks)) - set(wanted)
        wanted += sorted(others, key=str)
        found: dict[SignalKey, Quote] = {}
        gaps: list[Gap] = []
        for key in wanted:
            answer = self.quote(key, now_s)
            if isinstance(answer, Gap):
                gaps.append(answer)
                fallback = self.fallbacks.get(key)
                if fallback is not None:
                    found[key] = Quote(value=float(fallback.value), source=fallback.reason, is_fallback=True)
            else:
                found[key] = answer

        def by_class(kind: SignalKind) -> Mapping[str, Quote]:
            return MappingProxyType({k.subject: q for k, q in found.items() if k.kind is kind})

        return MarketView(
            now_s=now_s,
            power_price_usd_per_mwh=found.get(SignalKey(kind=SignalKind.POWER_PRICE)),
            hashprice_usd_per_th_day=found.get(SignalKey(kind=SignalKind.HASHPRICE)),
            inference_price_usd_per_gpu_h=by_class(SignalKind.INFERENCE_PRICE),
            inference_demand_gpus=by_class(SignalKind.INFERENCE_DEMAND),
            gpu_mining_usd_per_gpu_h=by_class(SignalKind.GPU_MINING_PRICE),
            gaps=tuple(gaps),
        )


def to_canonical(kind: SignalKind, value: Decimal, unit: str) -> Decimal:
    """Convert a quoted value to the canonical unit of its kind.

    >>> to_canonical(SignalKind.HASHPRICE, Decimal("46.5"), "USD/PH/day")
    Decimal('0.0465')

    Raises:
        InvalidInput: the unit is not one that this kind is quoted in.
    """
    factor = CONVERSIONS.get((kind, unit))
    if factor is None:
        known = ", ".join(sorted(u for k, u in CONVERSIONS if k is kind))
        raise InvalidInput(f"{kind}: unit {unit!r} is unknown; use one of {known}", metadata={"unit": unit})
    return value * factor
