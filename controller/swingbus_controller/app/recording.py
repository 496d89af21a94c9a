"""Record first, then believe: the one door through which the site's state changes.

Invariant: nothing is folded that is not durable, and nothing is sent that is not folded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swingbus.clock import Clock
from swingbus_controller.domain.power.budget_events import BudgetEvent, GrantIssued, GroupExceeded, GroupSettled
from swingbus_controller.domain.site.directives import Lockout
from swingbus_controller.domain.site_state import SiteState, budget_payload, payload
from swingbus_controller.ports.journal import Journal, JournalEntry

CONTROLLER = "controller"

# Noun and verb of each ledger event, as operators see it.
BUDGET_KINDS = {
    "ControllerStarted": "controller_started",
    "JournalDoubted": "journal_doubted",
    "BankAdopted": "bank_adopted",
    "GrantIssued": "grant_issued",
    "GroupSettled": "group_settled",
    "GroupExceeded": "group_exceeded",
    "LimitSet": "limit_set",
    "LimitRemoved": "limit_removed",
    "DisturbanceSeen": "disturbance_seen",
    "BankIsolated": "bank_isolated",
    "BankJoined": "bank_joined",
}


class Recorder:
    """Journals entries, then folds their payloads."""

    def __init__(self, *, site: str, journal: Journal, state: SiteState, clock: Clock) -> None:
        self._site = site
        self._journal = journal
        self._state = state
        self._clock = clock

    def entry(
        self,
        kind: str,
        subject: str,
        message: str,
        *,
        author: str = CONTROLLER,
        reason: str = "",
        facts: Mapping[str, str] | None = None,
        payload: Mapping[str, Any] | None = None,
    ) -> JournalEntry:
        """Return an entry for now; `subject` is below the site, e.g. `flips/f-1-2`."""
        return JournalEntry(
            kind=kind,
            subject=f"sites/{self._site}/{subject}" if subject else f"sites/{self._site}",
            author=author,
            reason=reason,
            message=message,
            at_unix_s=self._clock.now().timestamp(),
            facts=facts or {},
            payload=payload,
        )

    def budget(self, event: BudgetEvent, *, author: str = CONTROLLER, reason: str = "") -> JournalEntry:
        """Return the entry of a ledger event."""
        return self.entry(
            BUDGET_KINDS[type(event).__name__],
            _subject(event),
            _words(event),
            author=author,
            reason=reason or getattr(event, "reason", ""),
            facts=_facts(event),
            payload=budget_payload(event),
        )

    def lockout(self, lockout: Lockout) -> JournalEntry:
        """Return the entry of hands inside."""
        return self.entry(
            "lockout_set",
            bank_subject(lockout.bank),
            f"{lockout.bank} is locked out: off, never woken by software",
            author=lockout.author,
            reason=lockout.reason,
            payload=payload("lockout", lockout),
        )

    def record(self, *entries: JournalEntry) -> int:
        """Make entries durable together, then fold them; return the newest revision. A fenced journal raises."""
        revision = self._journal.append(entries)
        for entry in entries:
            if entry.payload is not None:
                self._state.fold(entry.payload)
        return revision


def bank_subject(bank: str) -> str:
    """Return the resource name of `agent/bank` below its site."""
    agent, _, short = bank.partition("/")
    return f"agents/{agent}/banks/{short}"


def _subject(event: BudgetEvent) -> str:
    bank = getattr(event, "bank", None)
    if isinstance(bank, str):
        return bank_subject(bank)
    feeder = getattr(event, "group", None) or getattr(event, "feeder", None)
    return f"feeders/{feeder}" if isinstance(feeder, str) else ""


def _facts(event: BudgetEvent) -> dict[str, str]:
    """Return what auditors and machines look for, as strings."""
    match event:
        case GrantIssued():
            return {
                "grant_w": f"{event.grant_w:.1f}",
                "grant": f"{event.epoch}.{event.generation}",
                "kind": event.kind.value,
            }
        case GroupSettled():
            return {
                "group": event.group,
                "granted_w": f"{sum(g.grant_w for g in event.grants):.1f}",
                "windows": str(len(event.windows)),
                "upper_w": f"{max(w.upper_w for w in event.windows):.1f}",
            }
        case GroupExceeded():
            return {"group": event.group, "upper_w": f"{event.upper_w:.1f}", "granted_w": f"{event.granted_w:.1f}"}
        case _:
            return {}


def _words(event: BudgetEvent) -> str:
    match event:
        case GrantIssued():
            return f"{event.bank}: {event.kind.value} to {event.grant_w / 1000:.1f} kW ({event.epoch}.{event.generation}), {event.reason}"
        case GroupSettled():
            granted_kw = sum(g.grant_w for g in event.grants) / 1000
            seen_kw = max(w.upper_w for w in event.windows) / 1000
            return f"{event.group}: {len(event.windows)} windows up to {seen_kw:.1f} kW fit {granted_kw:.1f} kW granted"
        case GroupExceeded():
            return f"{event.group} draws up to {event.upper_w / 1000:.1f} kW, granted {event.granted_w / 1000:.1f} kW"
        case _:
            return BUDGET_KINDS[type(event).__name__].replace("_", " ")
