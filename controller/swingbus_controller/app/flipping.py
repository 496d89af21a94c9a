"""Flips under way: show each what reports and samples say, ask the ledger for its watts, and record every step.

A flip moves on only by `flip_steps.step`; this room feeds it and never skips a phase. Steps are recorded before anything follows from them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence

from swingbus_controller.app.ordering import OrderBook
from swingbus_controller.app.recording import Recorder
from swingbus_controller.domain.fleet import orders
from swingbus_controller.domain.flips.flip import Flip, WattState, desired_of, is_due
from swingbus_controller.domain.flips.flip_events import Begun, Cancelled, FlipEvent, PhaseTimedOut, WattsHeld
from swingbus_controller.domain.flips.flip_evidence import DeviceRows, Sighting, evidence_for, followers_count
from swingbus_controller.domain.flips.flip_steps import InvalidTransition, Observation, recover, step
from swingbus_controller.domain.flips.placement import ORDER_MODES, BankModel, Holdings, charged_w, finish, needed_w
from swingbus_controller.domain.flips.pods_seen import PodsSeen
from swingbus_controller.domain.planning.points import WORKING_MODES, DeviceKind, Mode
from swingbus_controller.domain.power.bank import BankState
from swingbus_controller.domain.power.budget_events import GrantIssued
from swingbus_controller.domain.power.decisions import (
    COVERING,
    GrowthConditions,
    RefusalReason,
    decide_grow,
    decide_shrink,
)
from swingbus_controller.domain.site_state import SiteState, payload
from swingbus_controller.ports.journal import JournalEntry

MAX_STEPS_PER_TICK = 4
TOLERANCE_W = 1.0


class FlipRunner:
    """Steps the open flips of one site."""

    def __init__(
        self,
        *,
        state: SiteState,
        recorder: Recorder,
        book: OrderBook,
        report_of: Callable[[str], tuple[orders.AgentReport, orders.BankReport] | None],
        rows_of: Callable[[str], DeviceRows | None],
        pods_of: Callable[[str], PodsSeen | None] = lambda bank: None,
        keeps_waiting: Callable[[Flip], bool] = lambda flip: False,
    ) -> None:
        """Args:
        pods_of: what the pods of a bank show, None where its workloads are the agent's own.
        keeps_waiting: whether a flip whose phase is over in time has to wait on.
        """
        self._pods_of = pods_of
        self._keeps_waiting = keeps_waiting
        self._state = state
        self._recorder = recorder
        self._book = book
        self._report_of = report_of
        self._rows_of = rows_of
        # The agent order that first carried each flip's present wish; a restart begins with none.
        self._wishes: dict[str, tuple[object, int]] = {}
        self._unrecovered: set[str] = {f.id for f in state.open_flips()}
        # By flip, what was looked at last without moving it: thousands wait at once, and most rounds bring nothing new of most.
        self._looked_at: dict[str, tuple[object, ...]] = {}
        self._event_count = 0
        # Banks whose grant is not what their devices and flips need; all others have nothing to ask and nothing to give.
        self._changed_banks = state.changed_banks()
        self._unfit_banks: set[str] = set()
        self.refusals: dict[str, str] = {}

    def forget_sightings(self) -> None:
        """Start anew as after a restart: nothing that was shown under an older epoch counts."""
        self._wishes.clear()
        self._looked_at.clear()
        self._unrecovered = {f.id for f in self._state.open_flips()}

    def begin(self, flips: list[Flip], *, beside: Sequence[JournalEntry] = ()) -> None:
        """Record flips that are to begin now, together with what else must be on the record then."""
        begun: list[JournalEntry] = []
        for flip in flips:
            moved = flip
            if not flip.history:
                moved, _ = step(flip, Begun(event_id=self._event_id(flip), at_s=flip.created_at_s))
            begun.append(self._entry(moved))
        if begun:
            self._recorder.record(*begun, *beside)

    def cancel(
        self, flip: Flip, *, author: str, reason: str, now_s: float, beside: Sequence[JournalEntry] = ()
    ) -> Flip:
        """Undo an open flip; raises InvalidTransition where that is not possible."""
        event = Cancelled(event_id=self._event_id(flip), at_s=now_s, author=author, reason=reason)
        moved, _ = step(flip, event)
        self._keep([(flip, moved)], author=author, beside=beside)
        return moved

    def tick(self, now_s: float) -> None:
        """Feed every open flip, then settle what their watts need."""
        for flip in self._state.open_flips() if self._unrecovered else ():
            if flip.id in self._unrecovered:
                self._recover(flip, now_s)  # one after the other: each is judged by what those before it need now
        flips: Sequence[Flip] = self._state.open_flips()
        for _ in range(MAX_STEPS_PER_TICK):
            # One record for all that moves at once: a site that swings moves thousands, and each record waits for the disk.
            steps = [(flip, moved) for flip in flips if (moved := self._moved(flip, now_s)) is not None]
            if not steps:
                break
            self._keep(steps)
            flips = [moved for _, moved in steps if not moved.is_over]
        for name in self._unfit():
            self._hold_watts(self._state.models[name], now_s)
        self._clear_charges()

    # One flip.

    def _moved(self, flip: Flip, now_s: float) -> Flip | None:
        """Return the flip one step further, None where nothing shows that it is."""
        if flip.id in self._unrecovered:
            return None
        model = self._state.models[flip.bank]
        before = self._what_is_seen(model, flip)
        known = self._looked_at.get(flip.id)
        if known is not None and all(map(operator.is_, known, before)) and not is_due(flip, now_s):
            return None
        seen = self._sighting(model, flip)
        self._looked_at[flip.id] = self._what_is_seen(model, flip)
        if seen is not None:
            event = evidence_for(model, flip, seen, event_id=self._event_id(flip), now_s=now_s)
            if event is not None and (moved := _stepped(flip, event)) is not None:
                return moved
        if is_due(flip, now_s) and not self._keeps_waiting(flip):
            done = 0 if seen is None else followers_count(model, flip, seen)
            return _stepped(flip, PhaseTimedOut(event_id=self._event_id(flip), at_s=now_s, done_count=done))
        return None

    def _keep(
        self,
        steps: Sequence[tuple[Flip, Flip]],
        *,
        author: str = "controller",
        beside: Sequence[JournalEntry] = (),
    ) -> None:
        """Record flips as they are now, those that are over with where their devices stand, all or none."""
        entries = list(beside)
        held: dict[str, Holdings] = {}
        for flip, moved in steps:
            entries.append(self._entry(moved, author=author))
            if not moved.is_over:
                continue
            before = held.get(flip.bank, self._state.holdings[flip.bank])
            after = finish(self._state.models[flip.bank], before, moved, entries[-1].at_unix_s)
            if after != before:
                held[flip.bank] = after
                words = f"{flip.bank} after flip {flip.id}"
                entries.append(
                    self._recorder.entry("bank_placed", f"flips/{flip.id}", words, payload=payload("holdings", after))
                )
        self._recorder.record(*entries)
        for flip, moved in steps:
            if moved.is_over:
                self._wishes.pop(flip.id, None)
                self._looked_at.pop(flip.id, None)
                self.refusals.pop(flip.id, None)

    def _recover(self, flip: Flip, now_s: float) -> None:
        model = self._state.models[flip.bank]
        heard = self._report_of(model.name)
        newest = self._state.ledger.newest_grant(model.name)
        if heard is None or newest is None:
            if not is_due(flip, now_s):
                return
            # Its agent stays silent: the flip gets one more deadline without being seen, and then ends.
            held_w, tenant_mode = self._state.ledger.claim_w(model.name), None
        else:
            held_w, tenant_mode = newest.grant_w, _tenant_mode(model, flip, heard[1])
        flips = self._state.open_flips(model.name)
        # Whether the ledger holds the larger of both points for this flip, whatever its stored phase says.
        without = needed_w(model, self._state.holdings[model.name], [f for f in flips if f.id != flip.id])
        has_watts = held_w >= without - flip.count * flip.origin.claim_w + flip.claim_w - TOLERANCE_W
        seen = Observation(tenant_mode=tenant_mode, has_watts=has_watts)
        moved, _ = recover(flip, seen, event_id=self._event_id(flip), now_s=now_s)
        self._unrecovered.discard(flip.id)
        self._keep([(flip, moved)])

    def _what_is_seen(self, model: BankModel, flip: Flip) -> tuple[object, ...]:
        """Return everything that a sighting comes from. All of it is replaced, never changed: the same objects say the same."""
        name, ledger = model.name, self._state.ledger
        return (
            flip,
            self._report_of(name),
            self._rows_of(name),
            self._pods_of(name),
            ledger.newest_grant(name),
            ledger.is_settled(name),
            self._state.holdings.get(name),
            self._state.open_flips(name),
            self._book.order_for(model.declared.agent),
        )

    def _sighting(self, model: BankModel, flip: Flip) -> Sighting | None:
        heard = self._report_of(model.name)
        newest = self._state.ledger.newest_grant(model.name)
        if heard is None or newest is None:
            return None
        agent_report, report = heard
        if agent_report.epoch != self._state.ledger.epoch:
            return None  # it still, or again, obeys another order than ours
        wish = (desired_of(flip), flip.count, flip.unit_ids, flip.direction)
        known = self._wishes.get(flip.id)
        if known is None or known[0] != wish:
            # Make the order that carries the wish now: only a report on it, or on a later one, is evidence.
            self._book.refresh(model.declared.agent)
            known = (wish, self._book.generation(model.declared.agent))
            self._wishes[flip.id] = known
        return Sighting(
            wish_generation=known[1],
            report_generation=agent_report.generation,
            grant_generation=newest.generation,
            report=report,
            rows=self._rows_of(model.name),
            is_settled=self._state.ledger.is_settled(model.name) and self._is_trimmed(model),
            ordered=self._book.ordered_points(model),
            pods=self._pods_of(model.name),
        )

    def _is_trimmed(self, model: BankModel) -> bool:
        newest = self._state.ledger.newest_grant(model.name)
        need_w = needed_w(model, self._state.holdings[model.name], self._state.open_flips(model.name))
        if newest is None:
            return False
        # What had to be covered is all that can be given back now: the machines draw, or count, more than their points say.
        is_least = newest.reason == COVERING and not self._fits(model, need_w)
        return newest.grant_w <= need_w + TOLERANCE_W or is_least

    # A bank's watts.

    def _unfit(self) -> list[str]:
        """Return banks whose watts may have to change now, in the order in which they were placed."""
        changed = set(self._changed_banks)
        self._changed_banks.clear()
        self._unfit_banks -= changed
        self._unfit_banks |= {name for name in changed if self._is_unfit(name)}
        return [name for name in self._state.holdings if name in self._unfit_banks] if self._unfit_banks else []

    def _is_unfit(self, name: str) -> bool:
        newest, holdings = self._state.ledger.newest_grant(name), self._state.holdings.get(name)
        if newest is None or holdings is None:
            return False
        model, flips = self._state.models[name], self._state.open_flips(name)
        if any(flip.watts is WattState.ASKED for flip in flips):
            return True
        base_w = needed_w(model, holdings, flips)
        return not base_w - charged_w(model, holdings) - TOLERANCE_W <= newest.grant_w <= base_w + TOLERANCE_W

    def _hold_watts(self, model: BankModel, now_s: float) -> None:
        ledger = self._state.ledger
        newest = ledger.newest_grant(model.name)
        assert newest is not None
        flips = self._state.open_flips(model.name)
        base_w = needed_w(model, self._state.holdings[model.name], flips)
        asked = [f for f in flips if f.watts is WattState.ASKED and f.id not in self._unrecovered]
        for count in range(len(asked), 0, -1):
            chosen = asked[:count]
            target_w = base_w + sum(f.claim_delta_w for f in chosen)
            if target_w <= newest.grant_w + TOLERANCE_W:
                self._tell_held(chosen, now_s)
                return
            conditions = GrowthConditions(
                starts_count=sum(f.count for f in chosen if f.aim.mode in WORKING_MODES),
                is_locked_out=model.name in self._state.lockouts,
                reason=", ".join(f.id for f in chosen),
            )
            decision = decide_grow(ledger, model.name, target_w, conditions, now_s)
            if isinstance(decision, GrantIssued):
                self._tell_held(chosen, now_s, grant=[self._recorder.budget(decision)])
                return
            for flip in chosen:
                self.refusals[flip.id] = f"{decision.reason.value}: {decision.detail}"
            if decision.reason not in (RefusalReason.NO_HEADROOM, RefusalReason.RAMP):
                break
        if ledger.state(model.name, now_s) is BankState.DARK:
            return
        placed_w = base_w - charged_w(model, self._state.holdings[model.name])
        if newest.grant_w < placed_w - TOLERANCE_W:
            # Its devices run below their points (they fell to the safe share, or what is reserved could not rest): nothing asks for
            # these watts but this.
            conditions = GrowthConditions(is_locked_out=model.name in self._state.lockouts, reason="restored")
            restored = decide_grow(ledger, model.name, placed_w, conditions, now_s)
            if isinstance(restored, GrantIssued):
                self._recorder.record(self._recorder.budget(restored))
            return
        # Growth that waits for others does not keep what this bank can give: the others may be waiting for it.
        if newest.grant_w <= base_w + TOLERANCE_W:
            return
        if newest.reason == COVERING and not self._fits(model, base_w):
            return  # taken back at once it would be given again: nothing would ever settle, and the old claim would stay
        shrink = decide_shrink(ledger, model.name, base_w, now_s, reason="given back")
        if isinstance(shrink, GrantIssued):
            self._recorder.record(self._recorder.budget(shrink))

    def _fits(self, model: BankModel, watts: float) -> bool:
        """Tell whether what the bank counts and what its own meter reads fit less watts than its settled grant."""
        ledger = self._state.ledger
        heard = self._report_of(model.name)
        if heard is None or not ledger.is_settled(model.name) or heard[1].counted_power_w > watts + TOLERANCE_W:
            return False
        group = ledger.group_of(model.name)
        if group is None or ledger.group_banks(group) != (model.name,):
            return True
        metered_w = ledger.meters[group].upper_w() or 0.0
        return metered_w <= watts * ledger.tree.loss_factor(model.declared.feeder, group) + TOLERANCE_W

    def _tell_held(self, flips: Sequence[Flip], now_s: float, *, grant: Sequence[JournalEntry] = ()) -> None:
        for flip in flips:
            self.refusals.pop(flip.id, None)
        held = [(flip, _stepped(flip, WattsHeld(event_id=self._event_id(flip), at_s=now_s))) for flip in flips]
        self._keep([(flip, moved) for flip, moved in held if moved is not None], beside=grant)

    def _clear_charges(self) -> None:
        """Drop the charge of failed flips once every device of the bank is read back where it shall be."""
        for name, holdings in list(self._state.holdings.items()):
            if not holdings.charges:
                continue
            heard = self._report_of(name)
            newest = self._state.ledger.newest_grant(name)
            if heard is None or newest is None:
                continue
            agent_report, report = heard
            is_applied = report.applied_generation == newest.generation and not report.has_in_flight
            is_newest = agent_report.generation >= self._book.generation(self._state.models[name].declared.agent)
            if is_applied and is_newest and not report.stragglers and not report.unheld_count:
                cleared = type(holdings)(bank=holdings.bank, placements=holdings.placements)
                words = f"{name}: every device is back where it shall be"
                self._recorder.record(
                    self._recorder.entry("charge_cleared", "", words, payload=payload("holdings", cleared))
                )

    def swapped_entries(self, changed: Sequence[Flip], held: Holdings) -> list[JournalEntry]:
        """Return the entries of units that have swapped roles in one bank: who is where it was not meant to be takes its place along."""
        words = f"{held.bank}: units swapped roles, kubelet chose others than were meant"
        placed = self._recorder.entry("units_swapped", f"banks/{held.bank}", words, payload=payload("holdings", held))
        return [placed, *(self._entry(flip) for flip in changed)]

    def _entry(self, flip: Flip, *, author: str = "controller") -> JournalEntry:
        facts: Mapping[str, str] = {
            "bank": flip.bank,
            "count": str(flip.count),
            "from": flip.origin.name,
            "to": flip.aim.name,
            "from_mode": flip.origin.mode.value,
            "to_mode": flip.aim.mode.value,
            "phase": flip.phase.value,
            "is_mode_flip": str(flip.is_mode_flip).lower(),
        }
        words = f"{flip.bank}: {flip.count} x {flip.origin.name} to {flip.aim.name} {flip.phase.value}"
        return self._recorder.entry(
            f"flip_{flip.phase.value}",
            f"flips/{flip.id}",
            words,
            author=author,
            reason=flip.undo_cause or flip.reason,
            facts=facts,
            payload=payload("flip", flip),
        )

    def _event_id(self, flip: Flip) -> str:
        self._event_count += 1
        return f"{flip.id}.{self._event_count}"


def _stepped(flip: Flip, event: FlipEvent) -> Flip | None:
    """Return the flip after an event, None for one that has no place in its phase."""
    try:
        return step(flip, event)[0]
    except InvalidTransition:
        return None


def _tenant_mode(model: BankModel, flip: Flip, report: orders.BankReport) -> Mode | None:
    modes = {wire: mode for mode, wire in ORDER_MODES.items()}
    if model.kind is DeviceKind.GPU:
        units = {int(u) for u in flip.unit_ids}
        found = {modes.get(p.mode) for p in report.observed if units & set(p.units)}
        return next(iter(found)) if len(found) == 1 else None
    at_aim = sum(p.count for p in report.observed if modes.get(p.mode) is flip.aim.mode)
    at_origin = sum(p.count for p in report.observed if modes.get(p.mode) is flip.origin.mode)
    if not flip.is_mode_flip:
        return flip.origin.mode
    # Counts cannot say which machines: believe the aim only when as many stand there as the flip would bring.
    if at_aim + at_origin == 0:
        return None
    return flip.aim.mode if at_aim >= flip.count and at_origin == 0 else flip.origin.mode
