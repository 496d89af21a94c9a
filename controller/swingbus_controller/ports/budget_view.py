"""What people may see of the ledger. Without an implementation (authority OBSERVE) its fields stay unset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from swingbus_controller.domain.planning.plan import Authority
from swingbus_controller.domain.power.limits import Limit


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteBudget:
    """The site at one moment; watts at the head feeder."""

    authority: Authority
    limit_w: float
    claimed_w: float
    uncontrolled_w: float
    margin_w: float
    within_authority: bool
    disturbance: str  # empty if none


@dataclass(frozen=True, slots=True, kw_only=True)
class FeederBudget:
    """A feeder at one moment; watts at this feeder."""

    limits: tuple[Limit, ...]  # all of them, those of the site file included
    limit_w: float
    claimed_w: float
    headroom_w: float
    uncontrolled_w: float
    margin_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BankBudget:
    """A bank at one moment; watts at its feeder."""

    state: str  # ADOPTING, HELD, GROWING, SHRINKING, DARK, DISOBEYING, ISOLATED
    grant_w: float | None
    claim_w: float
    explanation: str
    pin: str  # author and reason, empty if none
    lockout: str


class BudgetView(Protocol):
    """Answers from memory, at once. `now_s` is the controller's CLOCK_BOOTTIME."""

    def site_budget(self, now_s: float) -> SiteBudget: ...

    def feeder_budget(self, feeder: str, now_s: float) -> FeederBudget: ...

    def bank_budget(self, bank: str, now_s: float) -> BankBudget | None:
        """Return a bank by its ledger name `agent/bank`; None for one that is not managed."""
        ...

    def accusations(self, agent: str, bank: str, device: str) -> tuple[str, ...]:
        """Return what evidence has found against a device, as words."""
        ...
