"""The engine of one site: every report, sample, plan and order passes here, one after the other, in one task.

Order of each round: name who draws too much, cut what has to be cut, adopt and regrant, settle by evidence, move flips on, plan, then
make orders. Every change is recorded before it is believed, and believed before it is sent. Protection runs on every meter sample and
never waits for the planner. Below CONTROL not one message goes to an agent, not even a fence; below ADVISE nothing of this is built.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from swingbus.clock import Clock
from swingbus.faults import InvalidInput, WrongState
from swingbus_controller.app.adopting import Adopting
from swingbus_controller.app.bank_views import BankViews
from swingbus_controller.app.cluster_desk import ClusterDesk
from swingbus_controller.app.flipping import FlipRunner
from swingbus_controller.app.naming import Accuser
from swingbus_controller.app.ordering import OrderBook
from swingbus_controller.app.pace import Pace
from swingbus_controller.app.planning import PLANNER, begun_flips, make_plan, overtaken_growth, pinned_growth
from swingbus_controller.app.protecting import (
    LAST_MINING_RANK,
    LAST_RANK,
    fitting_flips,
    growth_rank,
    is_retractable,
    shed_steps,
    unshed_w,
)
from swingbus_controller.app.recording import Recorder
from swingbus_controller.app.sensing import Senses, ledger_report
from swingbus_controller.domain.cluster.state import ClusterState
from swingbus_controller.domain.fleet import orders
from swingbus_controller.domain.fleet.frames import AgentInventory, BatchFrame
from swingbus_controller.domain.flips.admission import Admission
from swingbus_controller.domain.flips.boot_axis import axis_at
from swingbus_controller.domain.flips.flip import WattState
from swingbus_controller.domain.flips.flip import rebased as rebased_flip
from swingbus_controller.domain.flips.placement import Holdings, adopt, needed_w
from swingbus_controller.domain.planning.market import MarketView
from swingbus_controller.domain.planning.plan import Authority, Plan
from swingbus_controller.domain.power.budget import Hearing
from swingbus_controller.domain.power.budget_events import (
    ControllerStarted,
    GrantIssued,
    GrantKind,
    GroupSettled,
    JournalTrust,
    LimitRemoved,
    LimitSet,
)
from swingbus_controller.domain.power.decisions import (
    COVERING,
    decide_cover,
    decide_settle,
)
from swingbus_controller.domain.power.guard import GuardPlan, exceeded_feeders, exceeded_groups, guard
from swingbus_controller.domain.power.limits import Limit
from swingbus_controller.domain.power.reports import Marker
from swingbus_controller.domain.power.settle import NotSettled, SettleReason
from swingbus_controller.domain.site.curtailment import OVER, Curtailment, SeenWindow, advance, rebased, unproven
from swingbus_controller.domain.site_state import SiteState, payload
from swingbus_controller.ports.journal import Journal, JournalEntry

log = structlog.get_logger()

TICK_S = 0.25
PLAN_PERIOD_S = 5.0
# A grant that covers a reading leaves this much for the next one.
COVER_RATIO = 1.02
TOLERANCE_W = 1.0


class SiteEngine:
    """Decides for one site; implements `ports.control.ControlPlane` and `FrameSink`."""

    def __init__(
        self,
        *,
        state: SiteState,
        journal: Journal,
        clock: Clock,
        instance: str,
        boot_id: str,
        trust: JournalTrust,
        market: Callable[[float], MarketView],
        plan_period_s: float = PLAN_PERIOD_S,
        cluster: ClusterState | None = None,
    ) -> None:
        self.state = state
        self.recorder = Recorder(site=state.site.name, journal=journal, state=state, clock=clock)
        self.book = OrderBook(state, instance)
        self._accuser = Accuser(state, self.recorder, clock.boottime_s())
        self.plan: Plan | None = None
        self.admission: Admission | None = None
        self._journal = journal
        self._clock = clock
        self._instance = instance
        self._boot_id = boot_id
        self._market = market
        self._plan_period_s = plan_period_s
        self._planned_s = -1e18
        self._reports: dict[str, tuple[orders.AgentReport, orders.BankReport]] = {}
        self._awake_s = clock.boottime_s()
        self._doubted: dict[str, Marker] = {}  # agents that have not shown a marker of after our last standstill
        self._senses = Senses(state, self.recorder, self._accuser)
        self.views = BankViews(state)
        self._changed_banks = state.changed_banks()
        self._over_banks: set[str] = set()  # they need more than they are granted
        self._not_settled: dict[str, NotSettled] = {}
        self._unmet_w: dict[str, float] = {}
        self._adopting = Adopting(state, self.recorder)
        self._flip_count = 0
        self._poked = asyncio.Event()
        self._began_s = clock.boottime_s()
        self._greeted: set[str] = set()
        self._to_greet: set[str] = set()
        self._superseded: WrongState | None = None
        self._start(trust)
        self.desk = ClusterDesk(
            state=state, cluster=cluster or ClusterState(), recorder=self.recorder, report_of=self._fresh_report
        )
        self.flips = FlipRunner(
            state=state,
            recorder=self.recorder,
            book=self.book,
            report_of=self._fresh_report,
            rows_of=self._senses.rows,
            pods_of=self.desk.pods_of,
            keeps_waiting=self.desk.keeps_waiting,
        )
        self.desk.join(self.flips)
        self._round_over = asyncio.Event()

    def _start(self, trust: JournalTrust, above: int = 0) -> None:
        epoch = self._journal.claim_epoch(self._instance, max(above, self.state.ledger.epoch))
        now_s = self._clock.boottime_s()
        now_unix_s = self._clock.now().timestamp()
        started = ControllerStarted(
            epoch=epoch, instance=self._instance, boot_id=self._boot_id, trust=trust, at_s=now_s
        )
        entries = [self.recorder.budget(started, reason=f"journal {trust.value}")]
        for order in self.state.open_curtailments():
            moved = rebased(order, boot_id=self._boot_id, now_s=now_s, now_unix_s=now_unix_s)
            if moved != order:
                entries.append(self._curtailment_entry(moved, "curtailment_rebased"))
                entries.append(self.limit_entry(moved.feeder, moved.limit(), author=moved.author))
            entries += self._doubt_proof(moved)
        axis = axis_at(self._boot_id, now_s=now_s, now_unix_s=now_unix_s)
        for flip in self.state.open_flips():
            on_axis = rebased_flip(flip, axis, now_s=now_s)
            if on_axis != flip:
                words = f"flip {flip.id} of {flip.bank} goes on after a reboot"
                entries.append(
                    self.recorder.entry("flip_rebased", f"flips/{flip.id}", words, payload=payload("flip", on_axis))
                )
        self.recorder.record(*entries)

    # What comes in.

    def take_inventory(self, inventory: AgentInventory, now_s: float) -> None:
        """Remember what the columns of an agent's banks mean."""
        self._senses.take_inventory(inventory)

    def take_batch(self, batch: BatchFrame, now_s: float) -> None:
        """Take a round of samples in; a new meter window wakes the round."""
        self._mind_gap(now_s)
        if batch.is_live and self._senses.take_batch(batch, now_s):
            self._poked.set()

    def _mind_gap(self, now_s: float) -> None:
        """Notice that this program stood still: what lies in its sockets was true then, and is no evidence of now.

        An agent is believed again from its first report that carries a marker of after the gap.
        """
        protocol = self.state.site.protocol
        if now_s - self._awake_s > protocol.dark_periods * protocol.report_period_s:
            log.warning("stood_still", seconds=round(now_s - self._awake_s, 1))
            agents = {*self.state.models_of} | {note.meter_agent for note in self.state.site.feeder_notes.values()}
            self._doubted = dict.fromkeys(agents, self.state.ledger.marker)
            self._senses.doubt()
        self._awake_s = now_s

    def _fresh_report(self, bank: str) -> tuple[orders.AgentReport, orders.BankReport] | None:
        heard = self._reports.get(bank)
        return None if heard is None or heard[0].agent in self._doubted else heard

    def take_report(self, report: orders.AgentReport, *, is_hello: bool, now_s: float) -> None:
        """Take in what an agent holds and does."""
        self._mind_gap(now_s)
        if report.agent in self._doubted and (report.epoch, report.marker) > self._doubted[report.agent]:
            del self._doubted[report.agent]
            self._senses.trust(report.agent, report.boot_id, report.boottime_s)
        if is_hello:
            self._greeted.add(report.agent)
            self._to_greet.discard(report.agent)
        elif report.agent in self._to_greet:
            raise WrongState(
                f"this controller began epoch {self.state.ledger.epoch} after agent {report.agent} connected: connect again.",
                reason="NEW_EPOCH",
            )
        for bank in report.banks:
            name = f"{report.agent}/{bank.bank}"
            if name not in self.state.models:
                continue
            heard = self.state.ledger.observe_report(ledger_report(report, bank), now_s)
            if heard is Hearing.FENCED:
                self._meet_fence(name, report, now_s)
                heard = self.state.ledger.observe_report(ledger_report(report, bank), now_s)
            if heard is Hearing.TAKEN:
                self._reports[name] = (report, bank)
                self._accuser.take_report(name, bank, now_s)
        self._poked.set()

    def _meet_fence(self, name: str, report: orders.AgentReport, now_s: float) -> None:
        """Deal with an agent that obeys an epoch above ours: begin a higher one just after a start, else stop or refuse it.

        Just after a start it shows that our journal is lost or old: everything counts at its ceiling again. Later, an agent that had
        obeyed us shows that a newer controller runs the site; one that never did is refused alone.
        """
        ledger = self.state.ledger
        is_starting = now_s - self._began_s <= self.state.site.protocol.adopt_grace_s
        if is_starting and ledger.trust is not JournalTrust.CURRENT:
            log.warning("epoch_overtaken", agent=report.agent, seen=report.epoch, ours=ledger.epoch)
            self._begin_anew(JournalTrust.LOST, above=report.epoch)
            self._to_greet.discard(report.agent)
            return
        fault = WrongState(
            f"agent {report.agent} obeys epoch {report.epoch} of {report.fence_instance or 'another controller'}, ours is "
            f"{ledger.epoch}. If another controller runs this site, stop one of the two; if none does, our journal is older than this "
            "agent: restart this controller and it will begin a higher epoch.",
            reason="FENCED",
            metadata={"agent": report.agent, "epoch": str(report.epoch)},
        )
        if ledger.is_adopted(name):
            self._superseded = fault
            self._poked.set()
        raise fault

    def _begin_anew(self, trust: JournalTrust, above: int = 0) -> None:
        """Begin a higher epoch as after a start; agents that are connected have to say hello again, so that each is fenced first."""
        self._reports.clear()
        self._senses.begin_term()
        self._start(trust, above)
        self.flips.forget_sightings()
        self._to_greet = set(self._greeted)

    def meet_authority(self) -> None:
        """Take up what an admin ordered: CONTROL begins a new epoch, since nobody was fenced and every grant ran out meanwhile.

        Below it nobody looks at curtailments, so none is called proven.
        """
        if self.state.authority is Authority.CONTROL:
            self._began_s = self._clock.boottime_s()
            self._begin_anew(JournalTrust.UNPROVEN)
            return
        doubts = [self._doubt_proof(order) for order in self.state.open_curtailments()]
        self.recorder.record(*(entry for entries in doubts for entry in entries))

    def note_marker(self, agent: str, marker: int, now_s: float) -> None:
        """Let the ledger count what the link has sent, so that the next marker after an Applied is truly a later one."""
        ledger = self.state.ledger
        ledger.marker = max(ledger.marker, (ledger.epoch, marker))

    def agent_gone(self, agent: str, now_s: float) -> None:
        """A closed stream frees nothing: silence is told by missed reports."""

    def _may_write(self, agent: str) -> bool:
        return self.state.authority is Authority.CONTROL and agent not in self._to_greet

    def adopt_order(self, agent: str) -> orders.AdoptOrder | None:
        """Return what fences the agent to our epoch, None below CONTROL."""
        return self.book.adopt_order(agent) if self._may_write(agent) else None

    def renew(self, agent: str, sent_boottime_ns: int, now_s: float) -> orders.RenewalReply | None:
        """Answer a renewal: the agent's grants live on. None below CONTROL: they run out by themselves."""
        if not self._may_write(agent):
            return None
        for model in self.state.models_of.get(agent, ()):
            self.state.ledger.note_answered(model.name, now_s)
        return orders.RenewalReply(
            sent_boottime_ns=sent_boottime_ns, epoch=self.state.ledger.epoch, ttl_s=self.state.site.protocol.ttl_s
        )

    def order_for(self, agent: str) -> orders.AgentOrder | None:
        """Return the newest order, None before the first and below CONTROL."""
        return self.book.order_for(agent) if self._may_write(agent) else None

    async def wait_order(self, agent: str, after_generation: int) -> orders.AgentOrder:
        """Return when a newer order is there."""
        return await self.book.wait_order(agent, after_generation)

    # The round.

    async def run(self) -> None:
        """Decide until cancelled; a fenced journal ends the program."""
        pace = Pace()
        while True:
            try:
                async with asyncio.timeout(TICK_S):
                    await self._poked.wait()
            except TimeoutError:
                pass
            self._poked.clear()
            began_s = self._clock.boottime_s()
            self.tick(began_s, self._clock.now().timestamp())
            now_s = self._clock.boottime_s()
            pace = pace.after_round(now_s - began_s)
            is_gathering = self.desk.is_gathering(now_s)
            await asyncio.sleep(pace.rest_s(is_gathering=is_gathering))
            if is_gathering:
                self._poked.set()  # whether more come shows at the next look, which nobody else may ask for

    def tick(self, now_s: float, now_unix_s: float) -> None:
        """Decide once. Raises WrongState (FENCED) once a newer controller runs the site."""
        self._mind_gap(now_s)
        if self._superseded is not None:
            raise self._superseded
        if self.state.authority is Authority.CONTROL:
            self._protect(now_s, now_unix_s)
            self._adopting.adopt(self._reports, now_s, now_unix_s)
            self._adopting.lock_down(now_s)
            self._settle(now_s)
            self.desk.look(now_s)
            self.flips.tick(now_s)
            self._curtail(now_s, now_unix_s)
        # Who waits for a place shall not wait for the period too.
        is_due = self.desk.has_news or now_s - self._planned_s >= self._plan_period_s
        if self.state.authority is not Authority.OBSERVE and is_due:
            self._plan(now_s, now_unix_s)
        if self.state.authority is Authority.CONTROL:
            self.book.refresh()
        self._round_over.set()

    async def wait_round(self) -> None:
        """Return when a round is over that was not waited for before."""
        await self._round_over.wait()
        self._round_over.clear()

    def poke(self) -> None:
        """Decide soon: something that is not a report or a sample has changed."""
        self._poked.set()

    def replan(self) -> None:
        """Plan at the next round."""
        self._planned_s = -1e18
        self._poked.set()

    def _protect(self, now_s: float, now_unix_s: float) -> None:
        ledger = self.state.ledger
        for exceeded in exceeded_groups(ledger, now_s):
            self.recorder.record(self.recorder.budget(exceeded))
            self._accuser.take_exceeded(exceeded)
        # In what order to shed is worked out only where something is: a round has better things to do.
        must_shed = bool(exceeded_feeders(ledger, now_s))
        cuts = guard(ledger, shed_steps(self.state, now_unix_s), now_s) if must_shed else GuardPlan()
        if cuts.grants:
            self.recorder.record(*(self.recorder.budget(grant) for grant in cuts.grants))
        if cuts.unmet_w != self._unmet_w:
            # Along a ramp the figure changes with every round: once per feeder is enough.
            is_news = bool(set(cuts.unmet_w) - set(self._unmet_w))
            self._unmet_w = dict(cuts.unmet_w)
            if is_news:
                log.warning("shed_fell_short", unmet_w={k: round(v) for k, v in cuts.unmet_w.items()})
        for name in self._changed_banks:
            newest = ledger.newest_grant(name)
            is_over = name in self.state.holdings and newest is not None and self._is_over(name, newest.grant_w)
            (self._over_banks.add if is_over else self._over_banks.discard)(name)
        self._changed_banks.clear()
        for name in self.state.holdings:
            if name in self._over_banks or not ledger.is_settled(name):
                self._fit(name, now_s, now_unix_s)

    def _fit(self, name: str, now_s: float, now_unix_s: float) -> None:
        """Make a bank's devices fit its newest grant: call back growth that is under way, newest first, then shed."""
        newest = self.state.ledger.newest_grant(name)
        if newest is None:
            return
        if self._cover(name, newest, now_s) or not self._is_over(name, newest.grant_w):
            return
        for is_last, rank in ((False, LAST_MINING_RANK), (True, LAST_RANK)):
            for flip in reversed(self.state.open_flips(name)):
                is_held = is_retractable(flip) and flip.watts is WattState.HELD
                is_due = is_last or growth_rank(flip) < (LAST_MINING_RANK, 0.0)
                if is_held and is_due and self._is_over(name, newest.grant_w):
                    self.flips.cancel(flip, author="guard", reason="the limit no longer holds its watts", now_s=now_s)
            sheds = fitting_flips(
                self.state,
                name,
                newest.grant_w,
                flip_id=f"s-{self.state.ledger.epoch}-{self._flip_count + 1}-",
                reason=f"grant cut to {newest.grant_w / 1000:.1f} kW: {newest.reason}",
                now_s=now_s,
                now_unix_s=now_unix_s,
                up_to=rank,
            )
            self._flip_count += bool(sheds)
            self.flips.begin(sheds)

    def _cover(self, name: str, newest: GrantIssued, now_s: float) -> bool:
        """Grant up to what the bank counts at anyway, where its newest grant holds less than is there; tell whether that was done.

        After a lapse the bank fell further than anybody asked. After a cut that machines ignore nothing would ever settle. A cut that
        `guard` made is left alone until it had its time.
        """
        ledger = self.state.ledger
        heard = self._reports.get(name)
        if ledger.is_settled(name) or heard is None:
            return False
        waited_s = now_s - newest.at_s
        is_stuck = waited_s > self.state.site.protocol.shed_deadline_s
        wanted_w = 0.0
        if newest.kind is GrantKind.REGRANT and self._is_over(name, newest.grant_w) and name not in self.state.lockouts:
            model = self.state.models[name]
            wanted_w = needed_w(model, self.state.holdings[name], self.state.open_flips(name))
        elif is_stuck and heard[1].generation == newest.generation:
            wanted_w = heard[1].counted_power_w
            group = ledger.group_of(name)
            refusal = None if group is None else self._not_settled.get(group)
            if (
                refusal is not None
                and refusal.reason is SettleReason.ABOVE_GRANT
                and ledger.group_banks(group or "") == (name,)
            ):
                metered_w = ledger.meters[group or ""].upper_w() or 0.0
                wanted_w = max(
                    wanted_w, COVER_RATIO * metered_w / ledger.tree.loss_factor(ledger.spec(name).feeder, group or "")
                )
        wanted_w = min(wanted_w, ledger.claim_w(name)) if wanted_w > newest.grant_w + TOLERANCE_W else 0.0
        if wanted_w <= newest.grant_w + TOLERANCE_W:
            return False
        covered = decide_cover(ledger, name, wanted_w, now_s, reason=COVERING)
        if not isinstance(covered, GrantIssued):
            return False
        self.recorder.record(self.recorder.budget(covered))
        return True

    def _is_over(self, name: str, granted_w: float) -> bool:
        model, holdings, open_flips = self.state.models[name], self.state.holdings[name], self.state.open_flips(name)
        need_w = needed_w(model, holdings, open_flips) - unshed_w(model, holdings, open_flips)
        return need_w > granted_w + TOLERANCE_W

    def _settle(self, now_s: float) -> None:
        ledger = self.state.ledger
        settled: list[JournalEntry] = []  # no group's proof is about another's banks
        for group in ledger.groups():
            before = self._not_settled.get(group)
            if before is not None and before.reason is SettleReason.NOTHING_OPEN and not ledger.is_group_open(group):
                continue  # most groups, most of the time
            decision = decide_settle(ledger, group, now_s)
            if isinstance(decision, GroupSettled):
                settled.append(self.recorder.budget(decision))
                self._not_settled.pop(group, None)
            else:
                self._not_settled[group] = decision
                if before is None or (before.reason, before.bank) != (decision.reason, decision.bank):
                    log.info(
                        "group_unsettled",
                        group=group,
                        reason=decision.reason.value,
                        bank=decision.bank,
                        detail=decision.detail,
                    )
        if settled:
            self.recorder.record(*settled)

    def _plan(self, now_s: float, now_unix_s: float) -> None:
        self._planned_s = now_s
        is_control = self.state.authority is Authority.CONTROL
        holdings = self.state.holdings if is_control else self._reported_holdings()
        if not holdings:
            return
        revision = self._journal.newest_revision()
        if is_control:
            for flip in pinned_growth(self.state, now_unix_s):
                reason = "its bank was pinned before it got its watts"
                self.flips.cancel(flip, author=PLANNER, reason=reason, now_s=now_s)
            for flip in overtaken_growth(self.state, self.views, holdings, revision, now_s, now_unix_s):
                reason = "a limit leaves no room for it beside what works already"
                self.flips.cancel(flip, author=PLANNER, reason=reason, now_s=now_s)
        market = self.desk.market(self._market(now_unix_s))
        self.desk.take_news()
        self.plan, self.admission = make_plan(
            self.state, self.views, holdings, market, revision, now_s, now_unix_s, cluster=self.desk
        )
        if not is_control or not self.state.ledger.i1_holds(now_s):
            return
        if now_s < self.state.ledger.disturbed_until_s:
            return
        self._flip_count += 1
        flip_id = f"f-{self.state.ledger.epoch}-{self._flip_count}-"
        begun = begun_flips(
            self.state,
            self.plan,
            self.admission,
            flip_id=flip_id,
            now_s=now_s,
            now_unix_s=now_unix_s,
            times_of=self.desk.times_of,
        )
        paced = self.desk.paced(begun, now_s)
        self.flips.begin(paced)
        if paced:
            self.flips.tick(now_s)  # what they begin with needs no other round: whoever waits for a place waits for it

    def _reported_holdings(self) -> dict[str, Holdings]:
        """Return where machines say they are, dwell long served: enough for a plan to look at."""
        found: dict[str, Holdings] = {}
        for name, (_, bank) in self._reports.items():
            try:
                found[name] = adopt(self.state.models[name], bank.observed, 0.0)
            except InvalidInput as error:
                self._adopting.refuse(name, str(error))
        return found

    def _curtail(self, now_s: float, now_unix_s: float) -> None:
        for order in self.state.open_curtailments():
            meter = self.state.ledger.meters.get(order.feeder)
            moved = advance(
                order,
                now_s=now_s,
                now_unix_s=now_unix_s,
                windows=self._senses.windows(order.feeder),
                delay_s=0.0 if meter is None else meter.meter.lag_s + meter.meter.averaging_s,
                is_within_authority=self.state.ledger.headroom_w(order.feeder, now_s) >= -TOLERANCE_W,
                min_windows=self.state.site.protocol.settle_windows,
            )
            if moved == order:
                continue
            entries = [self._curtailment_entry(moved, f"curtailment_{moved.state.value.lower()}")]
            if moved.state in OVER:
                entries.append(self.recorder.budget(LimitRemoved(feeder=moved.feeder, name=moved.id, at_s=now_s)))
            self.recorder.record(*entries)
            self.replan()

    # Small pieces.

    def limit_entry(self, feeder: str, limit: Limit, *, author: str, reason: str = "") -> JournalEntry:
        """Return the entry that sets a limit."""
        return self.recorder.budget(
            LimitSet(feeder=feeder, limit=limit, at_s=self._clock.boottime_s()), author=author, reason=reason
        )

    def _doubt_proof(self, order: Curtailment) -> list[JournalEntry]:
        """Return the entry that takes back what was proven of a curtailment, none where nothing was."""
        doubted = unproven(order)
        return (
            [] if doubted == order else [self._curtailment_entry(doubted, f"curtailment_{doubted.state.value.lower()}")]
        )

    def _curtailment_entry(self, order: Curtailment, kind: str) -> JournalEntry:
        words = f"{order.feeder} to {order.limit_w / 1000:.1f} kW: {order.state.value}"
        return self.recorder.entry(
            kind,
            f"curtailments/{order.id}",
            words,
            author=order.author,
            reason=order.reason,
            facts={"feeder": order.feeder, "limit_w": f"{order.limit_w:.1f}", "state": order.state.value},
            payload=payload("curtailment", order),
        )

    def not_settled(self, group: str) -> NotSettled | None:
        """Return why a group is not settled, None where it is or was never looked at."""
        return self._not_settled.get(group)

    def windows(self, feeder: str) -> tuple[SeenWindow, ...]:
        """Return the newest plausible windows of a feeder's meter, oldest first."""
        return self._senses.windows(feeder)

    def report_of(self, bank: str) -> orders.BankReport | None:
        """Return a bank's newest report."""
        heard = self._reports.get(bank)
        return None if heard is None else heard[1]
