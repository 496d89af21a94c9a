"""Planted bugs: each replaces one right part by a wrong one and must be judged guilty.

A judge that never fails is no evidence. The first eight are POWER.md's list; the rest are our own additions.

Evidence from before a change (Settle, a) is not among them: what every obedient device has read back it also holds, so
it can only hide liars, whom the judge excuses. Nor are writes that land late and grants taken after a loss of memory:
the model reaches them too rarely to convict within 3,000 histories. `tests/unit/budget/test_settle.py` and
`tests/unit/governor` hold these rules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from swingbus_agent.domain.governor import Allowance, Governor, Outcome, Verdict
from swingbus_agent.domain.grant import BankGrant, Desired, DurableState, safe_share_w
from swingbus_controller.domain.power.budget import Ledger
from swingbus_controller.domain.power.budget_events import BudgetEvent, GrantIssued, GroupSettled, SettledGrant
from swingbus_controller.domain.power.claims import Account
from swingbus_controller.domain.power.settle import BankProof
from tests.prove.engine import Engine
from tests.prove.world import Wrong


class RisingGovernor(Governor):
    """Falls *to* its safe share, even where that is above its grant."""

    def allowance(self, bank: str, now_s: float) -> Allowance:
        right = super().allowance(bank, now_s)
        if right.why == "granted":
            return right
        shape = self._bank(bank).shape
        return Allowance(watts=safe_share_w(shape.schedule, shape.safe_share_w, now_s), may_raise=True, why="safe")


class FencelessGovernor(Governor):
    """Takes whatever arrives last."""

    def receive(self, desired: Desired, now_s: float) -> Outcome:
        if desired.epoch < self._staged.fence_epoch or desired.controller_instance != self._staged.fence_instance:
            self._staged = replace(self._staged, fence_epoch=desired.epoch - 1)
        return super().receive(desired, now_s)

    def _judge(self, grant: BankGrant, epoch: int, lease_until_s: float, now_s: float) -> Verdict:
        have = self._staged.grants.get(grant.bank)
        if have is not None and (have.epoch, have.generation) == (epoch, grant.generation):
            return super()._judge(grant, epoch, lease_until_s, now_s)
        return Verdict.ACCEPTED

    def confirm(self, state: DurableState, now_s: float) -> None:
        for name, bank in self._banks.items():
            grant = state.grants.get(name)
            if (
                grant is not None
                and bank.grant is not None
                and (grant.epoch, grant.generation)
                < (
                    bank.grant.epoch,
                    bank.grant.generation,
                )
            ):
                bank.grant = None
        super().confirm(state, now_s)


class RevivingGovernor(Governor):
    """A renewal of the same grant lifts a lapse."""

    def _judge(self, grant: BankGrant, epoch: int, lease_until_s: float, now_s: float) -> Verdict:
        verdict = super()._judge(grant, epoch, lease_until_s, now_s)
        if verdict is not Verdict.LAPSED:
            return verdict
        bank = self._banks[grant.bank]
        bank.fallen_w = math.inf
        return Verdict.RENEWED


class WorstCaseLedger(Ledger):
    """Cuts from the largest grant that may be in force, not from the least."""

    def least_claim_w(self, bank: str) -> float:
        return self.claim_w(bank)


class ForgettingLedger(Ledger):
    """Remembers the newest grant only."""

    def _apply_grant(self, event: GrantIssued) -> None:
        super()._apply_grant(event)
        account = self._account(event.bank)
        account.older_max_w = None
        account.doubt_w = None


class BelievingLedger(Ledger):
    """Believes its journal although it may be old."""

    def _growth_claim_w(self, account: Account) -> float:
        return account.claim_w()


class WorstCaseEngine(Engine):
    """Cuts below the worst case."""

    ledger_class = WorstCaseLedger


class ForgettingEngine(Engine):
    """Forgets grants."""

    ledger_class = ForgettingLedger


class BelievingEngine(Engine):
    """Believes an old journal."""

    ledger_class = BelievingLedger


class TimeFreesEngine(Engine):
    """Counts an expired grant at the safe share: the agent must have fallen to it by now."""

    def protect(self) -> None:
        for bank in self.ledger.bank_names():
            account = self.ledger._account(bank)
            over_by_s = self.ledger.view(bank, self.now_s).grant_over_by_s
            if over_by_s is not None and self.now_s > over_by_s and account.newest is not None:
                safe_w = min(account.spec.safe_share_w, account.newest.grant_w)
                account.newest = replace(account.newest, grant_w=safe_w)
                account.older_max_w = None
                account.doubt_w = None
        super().protect()


class SendsFirstEngine(Engine):
    """Sends a grant at once and lets the journal follow a step later."""

    def step(self) -> None:
        late = self.__dict__.setdefault("late", [])
        self.journal.extend(late)
        late.clear()
        super().step()

    def record(self, event: BudgetEvent) -> None:
        self.ledger.apply(event)
        if isinstance(event, GrantIssued) and event.bank in self.tickets:
            message = self.desired(event.bank, self.tickets[event.bank])
            self.world.network.send(self.world.now_s, event.bank, message, event.bank)
        self.checkpoint()
        self.__dict__.setdefault("late", []).append(event)


class AckEngine(Engine):
    """Takes the agent's receipt for evidence."""

    def settle(self) -> None:
        for group in self.ledger.groups():
            proofs = self.ledger.proofs(group)
            if all(p.generation and p.is_adopted and p.confirmed == (p.epoch, p.generation) for p in proofs):
                self._settle_now(group, proofs)

    def _settle_now(self, group: str, proofs: Sequence[BankProof]) -> None:
        if all(self.ledger.is_settled(p.bank) for p in proofs):
            return
        grants = tuple(
            SettledGrant(bank=p.bank, epoch=p.epoch, generation=p.generation, grant_w=p.grant_w) for p in proofs
        )
        self.record(GroupSettled(group=group, grants=grants, windows=(), at_s=self.now_s))


class LowDrawEngine(AckEngine):
    """Takes a low reading for evidence, whatever caused it."""

    def settle(self) -> None:
        for group in self.ledger.groups():
            proofs = self.ledger.proofs(group)
            upper_w = self.ledger.meters[group].upper_w()
            bound_w = sum(p.grant_w * p.factor for p in proofs)
            if all(p.generation and p.is_adopted for p in proofs) and upper_w is not None and upper_w <= bound_w:
                self._settle_now(group, proofs)


POWER_MD: Mapping[str, Wrong] = MappingProxyType(
    {
        "safe share may rise": Wrong(governor=RisingGovernor),
        "cut below worst case": Wrong(engine=WorstCaseEngine),
        "grants forgotten": Wrong(engine=ForgettingEngine),
        "freed by time": Wrong(engine=TimeFreesEngine),
        "sent before journal": Wrong(engine=SendsFirstEngine),
        "ack taken as evidence": Wrong(engine=AckEngine),
        "low draw taken as evidence": Wrong(engine=LowDrawEngine),
        "no fence": Wrong(governor=FencelessGovernor),
    }
)
OURS: Mapping[str, Wrong] = MappingProxyType(
    {
        "old journal believed": Wrong(engine=BelievingEngine),
        "a renewal lifts a lapse": Wrong(governor=RevivingGovernor),
    }
)
MUTANTS: Mapping[str, Wrong] = MappingProxyType({**POWER_MD, **OURS})
