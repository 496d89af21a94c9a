"""Adoption of banks under a new epoch, and lockouts: what comes before anything may grow.

Decides nothing about watts: `power.decisions` does. Invariants: a bank is placed as its agent sees it, once, before it is moved; a lockout
that anybody remembers holds until a person lifts it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import structlog

from swingbus.faults import InvalidInput
from swingbus_controller.app.recording import Recorder, bank_subject
from swingbus_controller.domain.fleet import orders
from swingbus_controller.domain.flips.placement import adopt, resting_w
from swingbus_controller.domain.power.budget_events import GrantIssued, GrantKind
from swingbus_controller.domain.power.decisions import (
    COVERING,
    decide_adoption,
    decide_regrant,
    decide_shrink,
    shows_newer_grant,
)
from swingbus_controller.domain.site.directives import Lockout
from swingbus_controller.domain.site_state import SiteState, payload
from swingbus_controller.ports.journal import JournalEntry

log = structlog.get_logger()
Reports = Mapping[str, tuple[orders.AgentReport, orders.BankReport]]


class Adopting:
    """Adopts the banks of one site."""

    def __init__(self, state: SiteState, recorder: Recorder) -> None:
        self._state = state
        self._recorder = recorder
        self._refused: dict[str, str] = {}

    def adopt(self, reports: Reports, now_s: float, now_unix_s: float) -> None:
        """Adopt banks that obey our epoch now, place their devices where they are, and grant anew what they hold.

        All are adopted before any is granted: a bank that shows our journal to be old keeps the others from being raised.
        """
        ledger = self._state.ledger
        unheld = [
            (name, bank)
            for name, (_, bank) in reports.items()
            if bank.is_lapsed or not ledger.is_adopted(name) or ledger.newest_grant(name) is None
        ]
        for name, bank in unheld:  # of most banks, most of the time, none
            self._adopt(name, bank, now_s, now_unix_s)
        self._regrant([name for name, _ in unheld], now_s)

    def _adopt(self, name: str, bank: orders.BankReport, now_s: float, now_unix_s: float) -> None:
        adopted = decide_adoption(self._state.ledger, name, now_s)
        if not adopted:
            return
        self._take_up_lockout(name, bank, now_unix_s)
        entries = [self._recorder.budget(event) for event in adopted]
        # A journal that is older than the agent's grant knows placements of another time: what works there now stays.
        is_outdated = shows_newer_grant(self._state.ledger, name) and not self._state.open_flips(name)
        if name not in self._state.holdings or is_outdated:
            try:
                held = adopt(self._state.models[name], bank.observed, now_unix_s)
            except InvalidInput as error:
                self.refuse(name, str(error))
                return
            words = f"{name} found with {', '.join(f'{p.count} x {p.point}' for p in held.placements)}"
            entries.append(
                self._recorder.entry("bank_placed", bank_subject(name), words, payload=payload("holdings", held))
            )
        self._recorder.record(*entries)

    def _regrant(self, names: Sequence[str], now_s: float) -> None:
        """Grant anew, all in one record: a site whose agents all lapsed at once would else wait for the disk a thousand times."""
        ledger = self._state.ledger
        due: list[JournalEntry] = []
        for name in names:
            newest = ledger.newest_grant(name)
            # A report a moment after a grant cannot know of it yet: give the agent a period to answer.
            is_fresh = newest is not None and now_s - newest.at_s < self._state.site.protocol.report_period_s
            if is_fresh or not ledger.is_adopted(name):
                continue
            regrant = decide_regrant(ledger, name, now_s)
            if isinstance(regrant, GrantIssued):
                due.append(self._recorder.budget(regrant))
                if regrant.ramp_w and ledger.ramp.capacity_w < math.inf:
                    self._recorder.record(*due)  # the next one must see what of the ramp is spent
                    due.clear()
        if due:
            self._recorder.record(*due)

    def _take_up_lockout(self, name: str, bank: orders.BankReport, now_unix_s: float) -> None:
        """Record a lockout that only the agent remembers: our journal is lost or old, or it was lifted while the agent was away.

        Which of them cannot be told from here, and hands may be inside: a person lifts it.
        """
        if name in self._state.lockouts or not (bank.locked_out or bank.locked_devices):
            return
        agent = self._state.models[name].declared.agent
        named = "" if bank.locked_out else f", for {', '.join(bank.locked_devices)}"
        lockout = Lockout(
            bank=name,
            author=agent,
            reason=f"agent {agent} holds it in its last order{named}; this controller's journal does not know it",
            created_unix_s=now_unix_s,
        )
        self._recorder.record(self._recorder.lockout(lockout))

    def lock_down(self, now_s: float) -> None:
        """Take from banks with hands inside every watt that their machines at rest don't need; `_fit` then puts the rest on record.

        What machines draw all the same was covered by what is read back, and is trimmed as that falls.
        """
        for name in self._state.lockouts.keys() & self._state.models.keys():
            model, newest = self._state.models[name], self._state.ledger.newest_grant(name)
            if newest is None or newest.reason == COVERING:
                continue
            cut = decide_shrink(
                self._state.ledger,
                name,
                resting_w(model),
                now_s,
                kind=GrantKind.SAFETY,
                reason="locked out",
            )
            if isinstance(cut, GrantIssued):
                self._recorder.record(self._recorder.budget(cut))

    def refuse(self, name: str, why: str) -> None:
        """Say once why a bank is not managed; it counts at its ceiling."""
        if self._refused.get(name) != why:
            self._refused[name] = why
            log.warning("bank_refused", bank=name, reason=why)
