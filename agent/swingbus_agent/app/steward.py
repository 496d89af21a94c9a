"""The steward of this agent's watts: takes orders, asks the governor, keeps each bank's execution on its targets.

Decides what follows from a message, a reading and the time; knows no streams, files or devices (ports carry them). Invariants:
an order is on disk before anything is written for it; nothing is raised that the governor does not let through; a bad order
is refused with its reason and the good one before it stays in force. One event loop owns all of this; the one lock keeps an older
state from being stored over a newer one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

import structlog

from swingbus.clock import Clock
from swingbus.faults import InvalidInput, SwingbusError
from swingbus_agent.app.bank_report import bank_report
from swingbus_agent.app.kept_bank import KeptBank, candidate_name
from swingbus_agent.domain import grant as grant_words
from swingbus_agent.domain import order_record
from swingbus_agent.domain.counting import base_w, device_counted_w, feeder_w, overhead_ratio
from swingbus_agent.domain.drawing import sure_draw_w
from swingbus_agent.domain.governor import GovernedBank, Governor, GovernorSettings, Verdict
from swingbus_agent.domain.grant import BankGrant, Desired, DurableState, MarkerLog
from swingbus_agent.domain.orders import (
    AdoptOrder,
    AgentOrder,
    AgentReport,
    BankCounting,
    BankOrder,
    Mode,
    RenewalReply,
    Urgency,
)
from swingbus_agent.domain.readings import BankSpec, Condition, Kind
from swingbus_agent.domain.selection import Target, check_order, choose, fit
from swingbus_agent.domain.views import DeviceView, ExecutionTimes, Notice, Verb, Write
from swingbus_agent.ports.bank import BankReading, Taking, WriteAnswer
from swingbus_agent.ports.state import StateStore

GRANTS_RECORD = "grants.json"
ORDER_RECORD = "order.json"
_FIRST_LOOK_S = 15.0
# After a start a grant that ran out meanwhile is not obeyed at once: machines ran on without an agent and count in full, a controller
# is heard within a second or two, and what it grants anew need not first have been stopped.
_FIRST_CONTACT_S = 5.0
_TAKEN = (Verdict.ACCEPTED, Verdict.RENEWED)
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class StewardSettings:
    """What the steward needs of the configuration."""

    times: ExecutionTimes
    quarantine_s: float
    writes: bool
    shed_kw_per_s: Mapping[str, float]  # by bank


class Steward:
    """Orders in, writes and reports out."""

    def __init__(self, settings: StewardSettings, *, clock: Clock, store: StateStore, boot_id: str) -> None:
        self._settings = settings
        self._clock = clock
        self._store = store
        self._boot_id = boot_id
        self.instance_uid = uuid4().hex
        self._banks: dict[str, KeptBank] = {}
        self._kept = order_record.KeptOrder()
        self._durable: DurableState | None = None
        self._governor: Governor | None = None
        self._storing = asyncio.Lock()
        self._began_s = clock.boottime_s()
        self._has_rebooted = False
        self._markers = MarkerLog()
        self._marker = 0
        self._refusal = ""
        self._report_count = 0
        self.load_faults: list[str] = []

    # Start.

    def load(self) -> None:
        """Read what an earlier run left; what is torn counts as lost and is told in `load_faults`."""
        try:
            record = self._store.load(GRANTS_RECORD)
            if record is not None:
                self._durable = grant_words.from_record(record)
                self._has_rebooted = self._durable.boot_id != self._boot_id
        except SwingbusError as error:
            self.load_faults.append(f"{GRANTS_RECORD}: {error}; nothing is raised until the controller grants anew")
        try:
            record = self._store.load(ORDER_RECORD)
            if record is not None:
                self._kept = order_record.from_record(record)
        except SwingbusError as error:
            self.load_faults.append(f"{ORDER_RECORD}: {error}; devices stay as they are until the next order")

    @property
    def governor(self) -> Governor:
        """Return the governor; it is made when the first banks are known."""
        if self._governor is None:
            self._governor = Governor(
                settings=GovernorSettings(quarantine_s=self._settings.quarantine_s),
                banks=[self._shape(bank) for bank in self._banks.values()],
                durable=self._durable,
                boot_id=self._boot_id,
                instance=self.instance_uid,
                now_s=self._clock.boottime_s(),
            )
        return self._governor

    def _shape(self, bank: KeptBank) -> GovernedBank:
        """Return a bank as the governor counts it; without the site's counting nothing is known, so nothing may rise."""
        order, counting = bank.order, bank.counting
        now_s, now_unix_s = self._clock.boottime_s(), self._clock.now().timestamp()
        # No order was ever taken: falling to a safe share that nobody set would put out a site that runs by itself.
        default_w = math.inf if order is None else 0.0
        steps: list[grant_words.SafeShareStep] = []
        for share in () if order is None else order.safe_shares:
            if share.start_unix_s is None:
                default_w = share.power_w
            else:
                steps.append(
                    grant_words.SafeShareStep(from_s=now_s + share.start_unix_s - now_unix_s, watts=share.power_w)
                )
        largest_w = max((point.power_w for point in bank.spec.points), default=0.0)
        return GovernedBank(
            name=bank.spec.bank,
            devices=tuple(device.device for device in bank.spec.devices),
            device_ceiling_w=largest_w * 1.1 if counting is None else counting.device_ceiling_w,
            overhead_ratio=0.0 if counting is None else overhead_ratio(counting),
            safe_share_w=default_w,
            schedule=tuple(sorted(steps, key=lambda step: step.from_s)),
        )

    def _bank(self, spec: BankSpec) -> KeptBank:
        bank = self._banks.get(spec.bank)
        names = [device.device for device in spec.devices]
        if bank is None or [device.device for device in bank.spec.devices] != names:
            bank = self._banks[spec.bank] = KeptBank(spec, self._settings.times)
            bank.counting = next((each for each in self._kept.counting if each.bank == spec.bank), None)
            if self._kept.order is not None:
                bank.order = next((each for each in self._kept.order.banks if each.bank == spec.bank), None)
            if self._governor is not None:
                self._governor.reshape(self._shape(bank), self._clock.boottime_s())
        elif bank.spec != spec:
            bank.spec = spec
            bank.execution.spec = spec
        return bank

    # Readings.

    def observe(self, reading: BankReading, *, floor_w: float = 0.0) -> tuple[Notice, ...]:
        """Take in one round of one bank; return what is worth telling."""
        now_s = self._clock.boottime_s()
        bank = self._bank(reading.spec)
        bank.floor_w = floor_w
        notices = bank.execution.observe(reading.views, reading.units, now_s)
        governor, name = self.governor, bank.spec.bank
        has_looked = self._has_looked(bank, reading, now_s)
        if bank.counting is not None and has_looked:
            before = governor.allowance(name, now_s)
            governor.observe(
                name,
                counted_w=bank.execution.counted(bank.counting),
                base_w=base_w(bank.counting),
                begun_s=bank.execution.sweep_began_s(),
                now_s=now_s,
            )
            notices += self._watch_draw(bank, reading.views, before.why, now_s)
        stuck = frozenset(d.device for d in bank.spec.devices if bank.execution.is_stuck(d.device, now_s))
        if stuck != bank.stuck:
            bank.stuck = stuck
            self._choose(bank)
        elif bank.order is not None and not bank.aims and has_looked:
            self._choose(bank)
        return notices

    def _has_looked(self, bank: KeptBank, reading: BankReading, now_s: float) -> bool:
        """Tell whether the bank is seen well enough to count: a first look that misses machines would count too little."""
        if bank.first_look_s is None:
            bank.first_look_s = now_s
        if all(view.condition is Condition.OK for view in reading.views):
            bank.is_seen = True
        return bank.is_seen or now_s - bank.first_look_s >= _FIRST_LOOK_S

    def _watch_draw(self, bank: KeptBank, views: Sequence[DeviceView], why: str, now_s: float) -> tuple[Notice, ...]:
        """Compare what devices say they draw with the grant, once everything of it is read back."""
        counting, is_applied = bank.counting, self.governor.report(bank.spec.bank, now_s).applied is not None
        if counting is None or bank.first_look_s is None or not is_applied or why != "granted":
            return ()
        counted = bank.execution.counted(counting)
        sure_w = [
            sure_draw_w(
                view,
                counted_w=counted[view.device],
                # What an earlier run of the agent wrote last is not known.
                told_s=max(bank.first_look_s, bank.execution.last_write_s(view.device)),
                delay_s=self._settings.quarantine_s,
            )
            for view in views
        ]
        drawn_w = feeder_w(counting, sure_w)
        self.governor.observe_draw(bank.spec.bank, drawn_w, now_s)
        if self.governor.allowance(bank.spec.bank, now_s).why != "trimmed":
            return ()
        return (
            Notice(
                kind="bank_shed_unasked",
                device="",
                message=f"bank {bank.spec.bank} drew {drawn_w:.0f} W at the feeder, above its grant, in two samples: it sheds "
                "until a newer grant; look for a machine that draws more than it was told",
            ),
        )

    # Messages.

    def issue_ticket(self) -> str:
        """Return a ticket for a hello or a renewal that goes out now: what answers it is dated from here."""
        return self.governor.issue_ticket(self._clock.boottime_s())

    def note_marker(self, epoch: int, marker: int) -> None:
        """Remember when a control message came in."""
        self._markers.note((epoch, marker), self._clock.boottime_s())
        if epoch >= self.fence_epoch:
            self._marker = marker

    def marker_before(self, begun_s: float) -> int:
        """Return the greatest marker of the newest epoch that had come in at `begun_s`; 0 if none."""
        found = self._markers.before(begun_s)
        return found[1] if found is not None and found[0] == self.fence_epoch else 0

    @property
    def fence_epoch(self) -> int:
        """Return the newest epoch that is on disk."""
        return 0 if self._durable is None else self._durable.fence_epoch

    async def take_adopt(self, adopt: AdoptOrder) -> None:
        """Fence this agent to an epoch; watts stay as they are."""
        now_s = self._clock.boottime_s()
        outcome = self.governor.receive(
            Desired(epoch=adopt.epoch, controller_instance=adopt.controller_instance, ticket=adopt.ticket, ttl_s=0.0),
            now_s,
        )
        if outcome.epoch_verdict is not Verdict.ACCEPTED:
            self._refusal = (
                f"epoch {adopt.epoch} of {adopt.controller_instance} is refused ({outcome.epoch_verdict.value}): this agent "
                f"obeys epoch {self.fence_epoch}"
            )
            _log.warning("epoch_refused", epoch=adopt.epoch, verdict=outcome.epoch_verdict.value)
            return
        if adopt.counting != self._kept.counting:
            await self._keep(replace(self._kept, counting=adopt.counting))
        await self._persist(outcome.persist)
        for bank in self._banks.values():
            bank.counting = next((each for each in adopt.counting if each.bank == bank.spec.bank), None)
            self.governor.reshape(self._shape(bank), now_s)
        self.note_marker(adopt.epoch, adopt.marker)
        self._refusal = ""
        _log.info("epoch_adopted", epoch=adopt.epoch, controller_instance=adopt.controller_instance)

    async def take_order(self, order: AgentOrder) -> None:
        """Take a desired state, or refuse it with its reason and carry on with the one before."""
        held = self._kept.order
        if order.epoch == self.fence_epoch:
            self.note_marker(order.epoch, order.marker)
        if held is not None and (order.epoch, order.generation) <= (held.epoch, held.generation):
            if (order.epoch, order.generation) < (held.epoch, held.generation) or order.hash == held.hash:
                await self._renew(order.ttl_s, order.ticket)
                return
            self.refuse(f"generation {order.generation} of epoch {order.epoch} came twice with different content")
            return
        try:
            self._check(order)
        except InvalidInput as error:
            self.refuse(f"generation {order.generation}: {error}")
            return
        now_s = self._clock.boottime_s()
        outcome = self.governor.receive(self._desired(order), now_s)
        if outcome.epoch_verdict is not Verdict.ACCEPTED:
            self.refuse(
                f"generation {order.generation} of epoch {order.epoch} is refused ({outcome.epoch_verdict.value}): this agent "
                f"obeys epoch {self.fence_epoch}"
            )
            return
        wrong = [f"bank {name}: {verdict.value}" for name, verdict in outcome.banks if verdict not in _TAKEN]
        refused = {name for name, verdict in outcome.banks if verdict not in _TAKEN}
        held_banks = [self._held_order(bank.bank) if bank.bank in refused else bank for bank in order.banks]
        kept_banks = tuple(bank for bank in held_banks if bank is not None)
        await self._keep(replace(self._kept, order=replace(order, banks=kept_banks)))
        await self._persist(outcome.persist)
        self._refusal = f"generation {order.generation}: {'; '.join(wrong)}" if wrong else ""
        for bank_order in kept_banks:
            bank = self._banks.get(bank_order.bank)
            if bank is None or bank_order.bank in refused:
                continue
            bank.order = bank_order
            bank.fallen = None
            bank.execution.retry_failed()
            self.governor.reshape(self._shape(bank), now_s)
            self._choose(bank)
        _log.info("order_taken", epoch=order.epoch, generation=order.generation, refused=len(refused))

    def refuse(self, reason: str) -> None:
        """Keep a refusal for the next report."""
        self._refusal = reason
        _log.warning("order_refused", reason=reason)

    async def take_renewal(self, reply: RenewalReply) -> None:
        """Let the grants live longer, from when the renewal was sent."""
        self.note_marker(reply.epoch, reply.marker)
        if reply.epoch == self.fence_epoch:
            await self._renew(reply.ttl_s, reply.ticket)

    async def _renew(self, ttl_s: float, ticket: str) -> None:
        order = self._kept.order
        if order is None or order.epoch != self.fence_epoch:
            return
        outcome = self.governor.receive(
            self._desired(replace(order, ttl_s=ttl_s, ticket=ticket)), self._clock.boottime_s()
        )
        await self._persist(outcome.persist)

    def _desired(self, order: AgentOrder) -> Desired:
        return Desired(
            epoch=order.epoch,
            controller_instance=order.controller_instance,
            ticket=order.ticket,
            ttl_s=order.ttl_s,
            grants=tuple(
                BankGrant(
                    bank=bank.bank,
                    generation=bank.generation,
                    grant_w=bank.grant_w,
                    for_instance=bank.for_instance,
                )
                for bank in order.banks
            ),
        )

    def _held_order(self, name: str) -> BankOrder | None:
        bank = self._banks.get(name)
        return None if bank is None else bank.order

    def _check(self, order: AgentOrder) -> None:
        if not self._settings.writes:
            raise InvalidInput(
                "this agent's file has writes = false: it only looks; set writes = true there to be controlled",
                reason="WRITES_OFF",
            )
        names = [bank.bank for bank in order.banks]
        if len(names) != len(set(names)):
            raise InvalidInput("a bank is ordered twice", reason="BAD_ORDER")
        for bank_order in order.banks:
            bank = self._banks.get(bank_order.bank)
            if bank is None:
                known = ", ".join(sorted(self._banks)) or "none yet"
                raise InvalidInput(f"no bank {bank_order.bank!r} here (there is: {known})", reason="UNKNOWN_BANK")
            if bank.counting is None:
                raise InvalidInput(
                    f"bank {bank_order.bank}: the adoption said nothing of how to count it; adopt it first",
                    reason="UNCOUNTED_BANK",
                )
            check_order(bank_order, bank.spec)

    async def _keep(self, kept: order_record.KeptOrder) -> None:
        await self._store.save(ORDER_RECORD, order_record.to_record(kept))
        self._kept = kept

    async def _persist(self, state: DurableState | None) -> None:
        if state is None:
            return
        async with self._storing:
            # A write that began while an order was being kept may have stored a later state, which holds all of this one.
            if self._durable is not None and state.revision <= self._durable.revision:
                return
            await self._store.save(GRANTS_RECORD, grant_words.to_record(state))
            self.governor.confirm(state, self._clock.boottime_s())
            self._durable = state

    # Targets.

    def _choose(self, bank: KeptBank) -> None:
        """Choose machines for the order in force."""
        order = bank.order
        if order is None or bank.counting is None or not self._settings.writes:
            return
        candidates = bank.candidates(self._shed_kw_per_s(bank))
        if order.locked_out:
            rest = Target(point="", mode=Mode.STANDBY, power_w=bank.floor_w)
            chosen = {each.name: rest for each in candidates if not each.is_fixed}
        else:
            chosen = choose(order.points, candidates, unit_size=bank.spec.unit_size, urgency=order.urgency)
        bank.aims = bank.spread(chosen)

    def _shed_kw_per_s(self, bank: KeptBank) -> float:
        return self._settings.shed_kw_per_s.get(bank.spec.bank, 0.0)

    def targets(self, name: str) -> dict[str, Target]:
        """Return what each device shall do now: the order's choice, or less where the governor allows less."""
        bank = self._banks[name]
        counting = bank.counting
        now_s = self._clock.boottime_s()
        if counting is None or not self._settings.writes:
            return {}
        allowance = self.governor.allowance(name, now_s)
        if allowance.why in ("granted", "trimmed"):
            base = dict(bank.aims)
            bank.fallen = None
        else:
            # Never upward by itself: what rests stays at rest, whatever the last order said.
            base = bank.lowered()
        if math.isinf(allowance.watts) or allowance.why == "lost":
            return base  # nothing may rise; how far it must fall nobody has said
        candidates = bank.candidates(self._shed_kw_per_s(bank))
        by_name = {
            candidate_name(bank.spec, d.device, d.unit): base[d.device] for d in bank.spec.devices if d.device in base
        }
        counted = bank.execution.counted(counting)
        fixed_w = sum(
            counting.device_ceiling_w if counted[d.device] is None else counted[d.device] or 0.0
            for d in bank.spec.devices
            if d.device not in base
        )
        if allowance.why == "lapsed" and self._may_listen(bank, counting, base, fixed_w, now_s):
            return base
        fitted = fit(
            by_name,
            candidates,
            spec=bank.spec,
            counting=counting,
            allowed_w=allowance.watts,
            floor_w=bank.floor_w,
            fixed_devices_w=fixed_w,
        )
        result = bank.spread(fitted)
        if allowance.why not in ("granted", "trimmed"):
            bank.fallen = result
        return result

    def _may_listen(
        self, bank: KeptBank, counting: BankCounting, base: Mapping[str, Target], fixed_w: float, now_s: float
    ) -> bool:
        """Tell whether a controller is waited for before a grant that ran out takes tenants down.

        Not on a GPU host that was rebooted while what is there counts above what was last granted: its limits are at their defaults, and
        nothing ran on through the reboot that waiting could spare.
        """
        if now_s - self._began_s >= _FIRST_CONTACT_S:
            return False
        if not self._has_rebooted or bank.spec.kind is not Kind.GPU:
            return True
        there_w = [device_counted_w(counting, Kind.GPU, target.mode, target.power_w) for target in base.values()]
        granted_w = self.governor.report(bank.spec.bank, now_s).grant_w
        return granted_w is not None and feeder_w(counting, [*there_w, fixed_w]) <= granted_w

    # Writes.

    def plan(self, name: str) -> tuple[Write, ...]:
        """Return what may be asked of a bank's devices now."""
        bank = self._banks.get(name)
        if bank is None or bank.counting is None or not self._settings.writes:
            return ()
        bank.execution.aim(self.targets(name))
        return bank.execution.plan(bank.counting, self._clock.boottime_s())

    def starts_per_s(self, name: str) -> float:
        """Return how many devices a second may start; 0 means no limit."""
        order = self._banks[name].order
        return 0.0 if order is None else order.starts_per_s

    def is_emergency(self, name: str) -> bool:
        """Tell whether writes skip the stagger: an emergency, or less allowed than was granted."""
        bank = self._banks[name]
        if self.governor.allowance(name, self._clock.boottime_s()).why != "granted":
            return True
        return bank.order is not None and bank.order.urgency is Urgency.EMERGENCY

    async def begin_write(self, name: str, write: Write) -> bool:
        """Ask the governor, store what must be stored; return whether the write may go out now."""
        bank = self._banks[name]
        if write.device:
            now_s = self._clock.boottime_s()
            start = self.governor.start_write(
                name,
                write.device,
                raises=write.is_raise,
                now_s=now_s,
                counted_w=write.counted_w if write.is_raise else None,
            )
            if not start.may_write:
                return False
            try:
                await self._persist(start.persist)
            except SwingbusError:
                self.governor.finish_write(name, write.device, self._clock.boottime_s())
                raise
        elif (
            write.verb is Verb.START_WORKLOAD and not self.governor.allowance(name, self._clock.boottime_s()).may_raise
        ):
            return False
        bank.execution.note_sent(write)
        return True

    def end_write(self, name: str, write: Write, answer: WriteAnswer) -> tuple[Notice, ...]:
        """Note what became of a write; only a later reading shows what it did."""
        bank = self._banks[name]
        now_s = self._clock.boottime_s()
        if answer.taking is Taking.NO_ANSWER:
            if write.device:
                self.governor.time_out_write(name, write.device, now_s)
            return bank.execution.note_timed_out(write, quarantine_s=self._settings.quarantine_s, now_s=now_s)
        if write.device:
            self.governor.finish_write(name, write.device, now_s)
        return bank.execution.note_answered(write, was_taken=answer.taking is Taking.TAKEN, now_s=now_s)

    async def refresh(self) -> None:
        """Store leases that have grown; to be called now and then."""
        if self._governor is not None:
            await self._persist(self._governor.due_refresh(self._clock.boottime_s()))

    # Reports.

    def report(self) -> AgentReport:
        """Return what the agent holds and does now."""
        now_s = self._clock.boottime_s()
        self._report_count += 1
        order = self._kept.order
        is_current = order is not None and order.epoch == self.fence_epoch
        return AgentReport(
            epoch=self.fence_epoch,
            generation=order.generation if is_current and order is not None else 0,
            hash=order.hash if is_current and order is not None else "",
            banks=tuple(
                bank_report(self.governor, bank.execution, name=name, order=bank.order, now_s=now_s)
                for name, bank in self._banks.items()
            ),
            marker=self._marker,
            boottime_s=now_s,
            boot_id=self._boot_id,
            refusal=self._refusal,
            instance_uid=self.instance_uid,
            sequence=self._report_count,
            fence_instance="" if self._durable is None else self._durable.fence_instance,
        )
