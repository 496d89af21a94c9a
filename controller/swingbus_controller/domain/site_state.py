"""Everything that is decided or learned for good at one site: a fold of the journal, and nothing else.

Decides nothing. Refuses to know: agents' connections, clocks, what is only observed. Invariant: `fold` of every payload in order
rebuilds the same state, so a controller that was killed between two records goes on from the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from swingbus.faults import InvalidInput
from swingbus_controller.domain.flips.flip import Flip
from swingbus_controller.domain.flips.placement import BankModel, Holdings, bank_model
from swingbus_controller.domain.planning.plan import Authority
from swingbus_controller.domain.planning.points import OperatingPoint
from swingbus_controller.domain.power.budget import Ledger
from swingbus_controller.domain.power.budget_events import (
    BankAdopted,
    BankIsolated,
    BankJoined,
    BudgetEvent,
    ControllerStarted,
    GrantIssued,
    GroupSettled,
    JournalDoubted,
    from_record,
    to_record,
)
from swingbus_controller.domain.power.records import build, plain
from swingbus_controller.domain.site.curtailment import OVER, Curtailment
from swingbus_controller.domain.site.directives import Answered, Lockout, Pin
from swingbus_controller.domain.site.reservation import CreditStep, Reservation
from swingbus_controller.domain.site.sitefile import SiteFile, SiteReservation

# Ended flips that stay in memory for `flip list`; the journal keeps all.
KEPT_FLIPS = 2000
KEPT_ANSWERS = 10_000


def _reservation(declared: SiteReservation) -> Reservation:
    steps = (text.partition(":") for text in declared.credit_steps)
    return Reservation(
        id=declared.name,
        inference_class=declared.inference_class,
        device_count=declared.gpu_count,
        from_s=declared.start_unix_s,
        until_s=declared.end_unix_s,
        price_usd_per_device_h=Decimal(declared.price_usd_per_gpu_h),
        uptime_ratio=declared.uptime_ratio,
        credit_steps=tuple(
            CreditStep(below_uptime_ratio=float(below), credit_ratio=Decimal(share)) for below, _, share in steps
        ),
        author="site file",
    )


def budget_payload(event: BudgetEvent) -> dict[str, Any]:
    """Return the journal payload of a ledger event."""
    return {"budget": to_record(event)}


def payload(kind: str, value: object) -> dict[str, Any]:
    """Return the journal payload of one of our own records."""
    return {kind: plain(value)}


class SiteState:
    """One site's facts."""

    def __init__(self, site: SiteFile) -> None:
        self.site = site
        shared: dict[OperatingPoint, OperatingPoint] = {}
        self.models: dict[str, BankModel] = {
            declared.name: bank_model(declared, site.classes[declared.device_class], shared=shared)
            for declared in site.banks
        }
        self.models_of: dict[str, list[BankModel]] = {}  # by agent
        for model in self.models.values():
            self.models_of.setdefault(model.declared.agent, []).append(model)
        self.ledger = Ledger(tree=site.tree, banks=[b.spec for b in site.banks], settings=site.protocol)
        self.holdings: dict[str, Holdings] = {}
        self.flips: dict[str, Flip] = {}
        # Those that are not over, in the same order, and again by bank: every round asks for each bank's.
        self._open_flips: dict[str, Flip] = {}
        self._ended_flips: dict[str, None] = {}  # in the order in which they ended
        self._open_flips_of: dict[str, tuple[Flip, ...]] = {}
        self._changes: list[set[str]] = []
        self.curtailments: dict[str, Curtailment] = {}
        self._open_curtailments: dict[str, Curtailment] = {}
        self.pins: dict[str, Pin] = {}
        self.lockouts: dict[str, Lockout] = {}
        self.reservations: dict[str, Reservation] = {r.name: _reservation(r) for r in site.reservations}
        self.answered: dict[str, Answered] = {}
        self.accusations: dict[str, tuple[str, ...]] = {}
        # By bank, machines that ignored being put to rest, and since when. Observed, never folded: see `naming`.
        self.ignoring: dict[str, dict[str, float]] = {}
        self.authority: Authority = site.authority

    def fold(self, record: Mapping[str, Any]) -> None:
        """Take one journaled payload in; raise InvalidInput for one that this program does not know."""
        for kind, value in record.items():
            match kind:
                case "budget":
                    self._apply(from_record(value))
                case "flip":
                    self._keep_flip(build(Flip, value))
                case "holdings":
                    held = build(Holdings, value)
                    self.holdings[held.bank] = held
                    self._note_change(held.bank)
                case "curtailment":
                    self._keep_curtailment(build(Curtailment, value))
                case "pin":
                    pin = build(Pin, value)
                    self.pins[pin.bank] = pin
                case "unpin":
                    self.pins.pop(value["bank"], None)
                case "lockout":
                    lockout = build(Lockout, value)
                    self.lockouts[lockout.bank] = lockout
                    self._note_change(lockout.bank)
                case "lockout_lifted":
                    self.lockouts.pop(value["bank"], None)
                    self._note_change(value["bank"])
                case "reservation":
                    reservation = build(Reservation, value)
                    self.reservations[reservation.id] = reservation
                case "authority":
                    self.authority = Authority(value["authority"])
                case "accusation":
                    self._accuse(value["subject"], value["word"])
                case "answered":
                    self._keep_answer(build(Answered, value))
                case "signals" | "note":
                    pass  # the market's book and notes for people are not part of this state
                case _:
                    raise InvalidInput(
                        f"the journal holds a record of kind {kind!r}: it is newer than this program; upgrade the controller.",
                        reason="UNKNOWN_RECORD",
                    )

    def ignoring_count(self, bank: str) -> int:
        """Return how many machines of a bank are known to ignore being put to rest."""
        return len(self.ignoring.get(bank, ()))

    def changed_banks(self) -> set[str]:
        """Return a set of its own to whoever asks, of all banks now; later it gathers those of which something was folded.

        What is folded is grants, flips, placements and lockouts, not limits nor pins. Whoever has looked at a bank takes it out.
        """
        self._changes.append(set(self.models))
        return self._changes[-1]

    def open_flips(self, bank: str | None = None) -> tuple[Flip, ...]:
        """Return flips that are not over, oldest first; of a bank the same tuple until one of them changes."""
        return tuple(self._open_flips.values()) if bank is None else self._open_flips_of.get(bank, ())

    def open_curtailments(self) -> list[Curtailment]:
        """Return curtailments that are not over."""
        return list(self._open_curtailments.values())

    def _apply(self, event: BudgetEvent) -> None:
        self.ledger.apply(event)
        match event:
            case GrantIssued() | BankAdopted() | BankIsolated() | BankJoined():
                self._note_change(event.bank)
            case GroupSettled():
                self._note_change(*(grant.bank for grant in event.grants))
            case ControllerStarted() | JournalDoubted():
                self._note_change(*self.models)
            case _:
                pass  # limits, disturbances, readings: nothing of a bank's own

    def _note_change(self, *banks: str) -> None:
        for gathered in self._changes:
            gathered.update(bank for bank in banks if bank in self.models)

    def _keep_curtailment(self, order: Curtailment) -> None:
        self.curtailments[order.id] = order
        if order.state in OVER:
            self._open_curtailments.pop(order.id, None)
        else:
            self._open_curtailments[order.id] = order

    def _keep_flip(self, flip: Flip) -> None:
        self.flips[flip.id] = flip
        of_bank = {each.id: each for each in self._open_flips_of.get(flip.bank, ())}
        if flip.is_over:
            self._open_flips.pop(flip.id, None)
            of_bank.pop(flip.id, None)
        else:
            self._open_flips[flip.id] = of_bank[flip.id] = flip
        self._open_flips_of[flip.bank] = tuple(of_bank.values())
        self._note_change(flip.bank)
        if flip.is_over:
            self._ended_flips[flip.id] = None
            if len(self._ended_flips) > KEPT_FLIPS:
                oldest = next(iter(self._ended_flips))
                del self._ended_flips[oldest], self.flips[oldest]

    def _keep_answer(self, answered: Answered) -> None:
        self.answered[answered.request_id] = answered
        if len(self.answered) > KEPT_ANSWERS:
            del self.answered[next(iter(self.answered))]

    def _accuse(self, subject: str, word: str) -> None:
        known = self.accusations.get(subject, ())
        if word not in known:
            self.accusations[subject] = (*known, word)
