"""What people may see of the ledger and the plan (ports.budget_view)."""

from __future__ import annotations

from swingbus_controller.app.engine import SiteEngine
from swingbus_controller.domain.planning.explain import explain
from swingbus_controller.ports.budget_view import BankBudget, FeederBudget, SiteBudget


class LedgerView:
    """Reads the engine's state; changes nothing."""

    def __init__(self, engine: SiteEngine) -> None:
        self._engine = engine
        self._state = engine.state

    def site_budget(self, now_s: float) -> SiteBudget:
        """Return the ledger at the head feeder."""
        ledger = self._state.ledger
        view = ledger.feeder_view(self._state.site.tree.root, now_s)
        left_s = ledger.disturbed_until_s - now_s
        return SiteBudget(
            authority=self._state.authority,
            limit_w=view.limit_w,
            claimed_w=view.claimed_w,
            uncontrolled_w=view.uncontrolled_w,
            margin_w=view.margin_w,
            within_authority=ledger.i1_holds(now_s),
            disturbance=f"no growth and no evidence for {left_s:.0f} s more" if left_s > 0.0 else "",
        )

    def feeder_budget(self, feeder: str, now_s: float) -> FeederBudget:
        """Return the terms of I1 at one feeder."""
        ledger = self._state.ledger
        view = ledger.feeder_view(feeder, now_s)
        return FeederBudget(
            limits=ledger.limits(feeder),
            limit_w=view.limit_w,
            claimed_w=view.claimed_w,
            headroom_w=view.headroom_w,
            uncontrolled_w=view.uncontrolled_w,
            margin_w=view.margin_w,
        )

    def bank_budget(self, bank: str, now_s: float) -> BankBudget | None:
        """Return one bank's claim and why it is where it is."""
        if bank not in self._state.models:
            return None
        ledger = self._state.ledger
        newest = ledger.newest_grant(bank)
        pin, lockout = self._state.pins.get(bank), self._state.lockouts.get(bank)
        told = ""
        if self._engine.plan is not None and any(b.bank == bank for b in self._engine.plan.view.banks):
            told = "; ".join(e.sentence for e in explain(self._engine.plan, bank))
        return BankBudget(
            state=ledger.state(bank, now_s).value.upper(),
            grant_w=None if newest is None else newest.grant_w,
            claim_w=ledger.claim_w(bank),
            explanation=told,
            pin="" if pin is None else f"{pin.author}: {pin.reason}",
            lockout="" if lockout is None else f"{lockout.author}: {lockout.reason}",
        )

    def accusations(self, agent: str, bank: str, device: str) -> tuple[str, ...]:
        """Return what evidence has found against a device."""
        return self._state.accusations.get(f"agents/{agent}/banks/{bank}/devices/{device}", ())
