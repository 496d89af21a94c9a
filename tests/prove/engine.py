"""A controller of the model: the real ledger and decisions, journaled the way the real engine does it.

It can die at every checkpoint: before and after each write to the journal, and between any two sends.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from swingbus_agent.domain.grant import BankGrant, Desired
from swingbus_controller.domain.power.bank import BankSpec, BankState, CountingFactors, DeviceKind
from swingbus_controller.domain.power.budget import Hearing, Ledger
from swingbus_controller.domain.power.budget_events import (
    BudgetEvent,
    ControllerStarted,
    GrantIssued,
    GroupSettled,
    JournalTrust,
    LimitSet,
)
from swingbus_controller.domain.power.decisions import (
    GrowthConditions,
    decide_adoption,
    decide_cover,
    decide_grow,
    decide_regrant,
    decide_settle,
    decide_shrink,
    disturbance,
)
from swingbus_controller.domain.power.guard import ShedStep, exceeded_groups, guard
from swingbus_controller.domain.power.limits import Limit
from swingbus_controller.domain.power.protocol import ProtocolSettings
from swingbus_controller.domain.power.tree import Feeder, MeterSpec, PowerTree
from tests.prove.agents import Report
from tests.prove.site import CEILING_W, HOMES, HOST_W, LOSSES, PARENTS, READERS, REST_W, STEP_S, base_w

if TYPE_CHECKING:
    from tests.prove.world import World

# The margin is 0 on purpose: nothing may hide behind it.
SETTINGS = ProtocolSettings(
    ttl_s=20.0,
    report_period_s=STEP_S,
    disturbance_s=8.0,
    meter_dead_s=8.0,
    adopt_grace_s=12.0,
    shed_deadline_s=16.0,
    reaction_s=0.0,
    ramp_rate_w_per_s=60.0,
    ramp_window_s=10.0,
    meter_error_ratio=0.0,
    margin_device_count=0,
    margin_device_ratio=0.0,
)


class Crashed(Exception):
    """The controller dies here."""


class Fenced(Exception):
    """An agent obeys a higher epoch."""


def build_tree(world: World) -> PowerTree:
    """Return the site's tree as the controller's site file has it."""
    feeders = []
    for name, parent in PARENTS.items():
        meter = None
        if name in READERS:
            lag_s = world.meters[name].lag_steps * STEP_S
            meter = MeterSpec(reader=READERS[name], error_ratio=0.004, quantum_w=0.1, lag_s=lag_s, energy_count_j=1.0)
        load_w = world.load_max_w if name == "grid" else 0.0
        feeders.append(
            Feeder(name=name, parent=parent, losses_ratio=LOSSES[name], meter=meter, uncontrolled_max_w=load_w)
        )
    return PowerTree(feeders)


def build_banks(world: World) -> list[BankSpec]:
    """Return the banks as the site file has them."""
    factors = CountingFactors(gpu_limit_ratio=1.0)
    return [
        BankSpec(
            name=bank.name,
            agent=bank.name,
            feeder=HOMES[bank.name],
            kind=DeviceKind.GPU,
            device_count=len(bank.set_w),
            device_ceiling_w=CEILING_W,
            device_floor_w=REST_W,
            factors=factors,
            host_w=HOST_W,
            safe_share_w=world.agents[bank.name].safe_w,
            settle_min_s=6.0,
        )
        for bank in world.banks.values()
    ]


class Engine:
    """The right controller; mutants override single methods."""

    ledger_class = Ledger

    def __init__(self, world: World, journal: list[BudgetEvent], trust: JournalTrust, epoch: int | None) -> None:
        self.world = world
        self.rng: random.Random = world.rng
        self.journal = journal
        self.now_s = world.controller_clock_s()
        self.fuse = 10**9
        self.unapplied: BudgetEvent | None = None  # on disk, not yet in the ledger
        self.inbox: list[Report] = []
        self.tickets: dict[str, str] = {}
        self.answered: dict[str, str] = {}
        world.controller_run += 1
        self.instance = f"ctl-{world.controller_run}"
        self.ledger = self.ledger_class(tree=build_tree(world), banks=build_banks(world), settings=SETTINGS)
        for event in journal:
            self.ledger.apply(event)
        self.record(
            ControllerStarted(
                epoch=max(self.ledger.next_epoch(), epoch or 0),
                instance=self.instance,
                boot_id=f"ctl-{world.controller_boot}",
                trust=trust,
                at_s=self.now_s,
            )
        )
        # Limits come from outside (contract, operator, programme) and are read again at every start.
        for feeder, watts in world.limits_w.items():
            self.set_limit(feeder, watts)

    # The journal.

    def checkpoint(self) -> None:
        """Die here if the time has come."""
        self.fuse -= 1
        if self.fuse < 0:
            raise Crashed

    def record(self, event: BudgetEvent) -> None:
        """Journal with fsync, then apply: nothing is sent before."""
        self.checkpoint()
        self.journal.append(event)
        self.unapplied = event
        self.checkpoint()
        self.ledger.apply(event)
        self.unapplied = None
        if self.world.trace is not None:
            self.world.trace(f"{self.world.now_s:6.0f} {event}")

    def set_limit(self, feeder: str, watts: float) -> None:
        """Take a limit from outside."""
        self.record(LimitSet(feeder=feeder, limit=Limit(name="x", limit_w=watts, source="model"), at_s=self.now_s))

    def note_disturbance(self) -> None:
        """A blip was seen."""
        self.record(disturbance(self.ledger, "blip", self.world.controller_clock_s()))

    # One step: hear, adopt, guard, settle, plan, send.

    def step(self) -> None:
        """Do what the real engine does each time something arrives."""
        self.now_s = self.world.controller_clock_s()
        heard = self.inbox
        self.inbox = []
        for report in heard:
            self.hear(report)
        self.protect()
        self.settle()
        self.plan()
        self.send()

    def hear(self, report: Report) -> None:
        """Take in a report and bring its bank under our epoch."""
        ledger = self.ledger
        if report.window is not None:
            ledger.observe_window(report.window, self.now_s)
        hearing = ledger.observe_report(report.bank, self.now_s)
        if hearing is Hearing.FENCED:
            raise Fenced(report.bank.fence_epoch)
        self.tickets[report.agent] = report.ticket
        if hearing is Hearing.OLD:
            return
        for event in decide_adoption(ledger, report.bank.bank, self.now_s):
            self.record(event)
        self.regrant(report.bank.bank)

    def regrant(self, bank: str) -> None:
        """Give a returning agent what it had."""
        decision = decide_regrant(self.ledger, bank, self.now_s)
        if isinstance(decision, GrantIssued):
            self.record(decision)

    def protect(self) -> None:
        """Name who exceeds, cut until I1 is true."""
        for event in exceeded_groups(self.ledger, self.now_s):
            self.record(event)
        if self.ledger.i1_holds(self.now_s):
            return
        for grant in guard(self.ledger, self.shed_steps(), self.now_s).grants:
            self.record(grant)

    def shed_steps(self) -> list[ShedStep]:
        """Return the order in which banks give way."""
        steps = [
            ShedStep(bank=bank.name, to_w=base_w(len(bank.set_w)), step_w=10.0) for bank in self.world.banks.values()
        ]
        self.rng.shuffle(steps)
        return steps

    def settle(self) -> None:
        """Settle every group whose evidence suffices."""
        for group in self.ledger.groups():
            decision = decide_settle(self.ledger, group, self.now_s)
            if isinstance(decision, GroupSettled):
                self.record(decision)
                self.world.confirm_truth(decision)

    def plan(self) -> None:
        """Want something at random: that is all a planner is to the ledger."""
        for bank in self.world.banks.values():
            if self.rng.random() < 0.04:
                self.cover(bank.name)
            if self.rng.random() > 0.5 or self.ledger.state(bank.name, self.now_s) is not BankState.HELD:
                continue
            have = self.ledger.claim_w(bank.name)
            idle_w, top_w = base_w(len(bank.set_w)), self.ledger.ceiling_w(bank.name)
            want = idle_w + (top_w - idle_w) * self.rng.choice((0.0, 0.3, self.rng.random(), 1.0, 1.0))
            if want > have:
                self.grow(bank.name, want)
            elif want < have:
                self.shrink(bank.name, want)

    def cover(self, bank: str) -> None:
        """Ask for some of what the bank counts at anyway (docs/adr/0002)."""
        newest = self.ledger.newest_grant(bank)
        if newest is None:
            return
        group = self.ledger.group_of(bank)
        top_w = max(self.ledger.claim_w(bank), (self.ledger.exceeded_w(group) or 0.0) if group else 0.0)
        watts = newest.grant_w + (top_w - newest.grant_w) * self.rng.choice((0.5, 1.0))
        decision = decide_cover(self.ledger, bank, watts, self.now_s, reason="cover")
        if isinstance(decision, GrantIssued):
            self.record(decision)

    def grow(self, bank: str, watts: float) -> None:
        """Ask for growth; after a refusal take what there is room for."""
        conditions = GrowthConditions(starts_count=1)
        decision = decide_grow(self.ledger, bank, watts, conditions, self.now_s)
        for _ in range(3):
            if isinstance(decision, GrantIssued) or decision.short_w is None:
                break
            # Watts missing at a feeder are no more than that at the bank (losses only add on the way up).
            watts -= decision.short_w + 1e-6
            decision = decide_grow(self.ledger, bank, watts, conditions, self.now_s)
        if isinstance(decision, GrantIssued):
            self.record(decision)
            self.world.growths += 1

    def shrink(self, bank: str, watts: float) -> None:
        """Shrink as planned."""
        decision = decide_shrink(self.ledger, bank, watts, self.now_s)
        if isinstance(decision, GrantIssued):
            self.record(decision)

    def send(self) -> None:
        """Send every agent its desired state: the same again until it is confirmed, and as renewal."""
        for agent, ticket in self.tickets.items():
            self.checkpoint()
            self.world.network.send(self.world.now_s, agent, self.desired(agent, ticket), agent)
            if self.answered.get(agent) != ticket:
                self.answered[agent] = ticket
                self.ledger.note_answered(agent, self.now_s)

    def desired(self, agent: str, ticket: str) -> Desired:
        """Return the message for an agent; without a grant it is an Adopt."""
        grant = self.ledger.newest_grant(agent)
        grants: tuple[BankGrant, ...] = ()
        if grant is not None:
            grants = (
                BankGrant(
                    bank=agent, generation=grant.generation, grant_w=grant.grant_w, for_instance=grant.for_instance
                ),
            )
        return Desired(
            epoch=self.ledger.epoch,
            controller_instance=self.instance,
            ticket=ticket,
            ttl_s=SETTINGS.ttl_s,
            grants=grants,
            marker=self.ledger.marker,
        )
