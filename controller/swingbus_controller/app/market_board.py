"""The market of one site: the feed's book, what was pushed, and the market's own clock.

Decides what a push changes and puts it on the record first. Refuses to know: files and the wire. Invariant: the book after a
restart is the feed's book plus every push on the record, in order; a repeat changes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from swingbus.clock import Clock
from swingbus.faults import AlreadyExists, InvalidInput
from swingbus_controller.domain.planning.market import Fallback, MarketBook, MarketView, Signal, SignalKey, SignalKind
from swingbus_controller.domain.site.sitefile import MarketPlace
from swingbus_controller.domain.site.sitefile_parser import is_signal_name
from swingbus_controller.ports.event_log import EventLog
from swingbus_controller.ports.journal import Journal, JournalEntry

KIND = "signals_pushed"
MAX_VALUES = 10_000
MAX_CLASS_LENGTH = 63
DEFAULT_STALE_AFTER_S = 7200.0
REPLAYED_PUSHES = 5000
KEPT_REQUESTS = 10_000
_KIND_OF = {
    "power_price_usd_per_mwh": SignalKind.POWER_PRICE,
    "hashprice_usd_per_th_day": SignalKind.HASHPRICE,
    "inference_price_usd_per_gpu_h": SignalKind.INFERENCE_PRICE,
    "inference_demand_gpu_count": SignalKind.INFERENCE_DEMAND,
    "gpu_mining_price_usd_per_gpu_h": SignalKind.GPU_MINING_PRICE,
}
_NAME_OF = {kind: name for name, kind in _KIND_OF.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedValue:
    """One value as it was pushed; times on the market's clock."""

    signal: str
    value: str
    valid_from_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """What a push changed."""

    accepted_count: int
    repeated_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSignal:
    """The state of one signal, for people."""

    signal: str
    value: str
    valid_from_s: float | None
    received_at_s: float | None
    source: str
    stale_after_s: float
    is_stale: bool


def signal_key(name: str) -> SignalKey:
    """Return what a signal's name on the wire means. Raises InvalidInput for an unknown one."""
    base, _, subject = name.partition("/")
    if not is_signal_name(name) or len(subject) > MAX_CLASS_LENGTH or not subject.isprintable():
        raise InvalidInput(
            f"signal {name[:100]!r} is unknown; the signals are {', '.join(sorted(_KIND_OF))} (the GPU ones with /class).",
            reason="UNKNOWN_SIGNAL",
            metadata={"field": "values.signal", "signal": name[:100]},
        )
    return SignalKey(kind=_KIND_OF[base], subject=subject)


def signal_name(key: SignalKey) -> str:
    """Return how a signal is spelled on the wire."""
    return f"{_NAME_OF[key.kind]}/{key.subject}" if key.subject else _NAME_OF[key.kind]


class MarketBoard:
    """Holds the book; one event loop uses it."""

    def __init__(self, *, place: MarketPlace, book: MarketBook, journal: Journal, log: EventLog, clock: Clock) -> None:
        """Take the feed's book and replay what was pushed before."""
        self._place = place
        self._journal = journal
        self._clock = clock
        self._stale_after_s = {signal_key(s.signal): s.stale_after_s for s in place.signals}
        fallbacks = [Fallback(key=signal_key(s.signal), value=Decimal(s.fallback)) for s in place.signals if s.fallback]
        self.book = book.with_fallbacks(fallbacks)
        self._answers: OrderedDict[str, tuple[str, PushResult]] = OrderedDict()
        for journaled in reversed(log.find(kinds=(KIND,), newest_first=True, limit=REPLAYED_PUSHES)):
            self._replay(journaled.entry)

    def market_unix_s(self) -> float:
        """Return what the market's clock shows now."""
        return self._place.market_unix_s(self._clock.now().timestamp())

    def view(self, wall_unix_s: float) -> MarketView:
        """Return the market at a moment of the wall clock: what the planner is given."""
        return self.book.view(self._place.market_unix_s(wall_unix_s))

    def push(
        self, values: Sequence[PushedValue], *, author: str, request_id: str, reason: str, validate_only: bool
    ) -> PushResult:
        """Take values in, on the record first. Raises InvalidInput (nothing is taken then) or AlreadyExists."""
        digest = f"{author}|{[(v.signal, v.value, v.valid_from_s) for v in values]}"
        if request_id in self._answers:
            known, answer = self._answers[request_id]
            if known != digest:
                raise AlreadyExists(
                    f"request_id {request_id!r} was used for another push; choose a new one.", reason="REQUEST_ID_TAKEN"
                )
            return answer
        received_at_s = self.market_unix_s()
        signals = [self._signal(value, f"push:{author}", received_at_s) for value in values]
        fresh = [signal for signal in signals if not self._is_repeat(signal)]
        result = PushResult(accepted_count=len(fresh), repeated_count=len(signals) - len(fresh))
        if validate_only:
            return result
        if fresh:
            kept = [[signal_name(s.key), str(s.value), s.valid_from_s] for s in fresh]
            self._journal.append(
                [
                    JournalEntry(
                        kind=KIND,
                        subject="market",
                        author=author,
                        reason=reason,
                        message=f"{len(fresh)} values of {len({s.key for s in fresh})} signals",
                        at_unix_s=self._clock.now().timestamp(),
                        facts={"request_id": request_id, "accepted": str(len(fresh))},
                        payload={
                            "signals": {
                                "values": kept,
                                "received_at_s": received_at_s,
                                "digest": digest if len(digest) < 4096 else "",
                                "repeated": result.repeated_count,
                            }
                        },
                    )
                ]
            )
            self.book = self.book.with_signals(fresh).pruned(received_at_s - 86_400.0)
        self._remember(request_id, digest, result)
        return result

    def shown(self) -> list[ShownSignal]:
        """Return every known signal with its newest value in force, in name order."""
        now_s = self.market_unix_s()
        keys = set(self.book.signals) | set(self.book.fallbacks) | set(self._stale_after_s)
        shown = []
        for key in keys:
            signal = self.book.latest(key, now_s)
            fallback = self.book.fallbacks.get(key)
            is_stale = signal is None or now_s >= signal.stale_at_s()
            if signal is not None:
                value, source = str(signal.value), signal.source
            else:
                value, source = (str(fallback.value), "fallback") if fallback is not None else ("", "")
            shown.append(
                ShownSignal(
                    signal=signal_name(key),
                    value=value,
                    valid_from_s=signal.valid_from_s if signal is not None else None,
                    received_at_s=signal.received_at_s if signal is not None else None,
                    source=source,
                    stale_after_s=signal.stale_after_s if signal is not None else self._stale_s(key),
                    is_stale=is_stale,
                )
            )
        return sorted(shown, key=lambda item: item.signal)

    def _stale_s(self, key: SignalKey) -> float:
        return self._stale_after_s.get(key, DEFAULT_STALE_AFTER_S)

    def _signal(self, value: PushedValue, source: str, received_at_s: float) -> Signal:
        key = signal_key(value.signal)
        try:
            number = Decimal(value.value) if len(value.value) <= 40 else None
        except InvalidOperation:
            number = None
        if number is None or not number.is_finite():
            raise InvalidInput(
                f"signal {value.signal}: {value.value[:40]!r} is no decimal number, such as 62.50.",
                reason="BAD_VALUE",
                metadata={"field": "values.value", "signal": value.signal},
            )
        return Signal(
            key=key,
            value=number,
            source=source,
            valid_from_s=value.valid_from_s,
            received_at_s=received_at_s,
            stale_after_s=self._stale_s(key),
        )

    def _is_repeat(self, signal: Signal) -> bool:
        known = self.book.latest(signal.key, signal.valid_from_s)
        return known is not None and known.valid_from_s == signal.valid_from_s and known.value == signal.value

    def _replay(self, entry: JournalEntry) -> None:
        stored = (entry.payload or {}).get("signals", {})
        received_at_s = float(stored.get("received_at_s", entry.at_unix_s))
        values = [
            PushedValue(signal=name, value=value, valid_from_s=float(valid_from_s))
            for name, value, valid_from_s in stored.get("values", ())
        ]
        self.book = self.book.with_signals(
            [self._signal(value, f"push:{entry.author}", received_at_s) for value in values]
        )
        if stored.get("digest"):
            result = PushResult(accepted_count=len(values), repeated_count=int(stored.get("repeated", 0)))
            self._remember(entry.facts.get("request_id", ""), stored["digest"], result)

    def _remember(self, request_id: str, digest: str, result: PushResult) -> None:
        self._answers[request_id] = (digest, result)
        while len(self._answers) > KEPT_REQUESTS:
            self._answers.popitem(last=False)
