"""The agent's governor: the only place that says how many watts a bank may draw now.

Decides: which grants are taken, what must be on disk before anything is dispatched, when a grant is over, which device
writes may be open, when a bank is Applied. Refuses to know: how watts become device settings (the executor's work).
Invariant: without a living grant nothing is ever raised: not when the safe share rises, not after a restart, not after
a loss of memory; with one, never above it.

How an executor uses it (all times are CLOCK_BOOTTIME of this host):

    governor = Governor(settings=..., banks=..., durable=loaded_or_None, boot_id=..., instance=uuid, now_s=...)
    report: ticket = governor.issue_ticket(now_s); send it with governor.report(bank, now_s) for each bank
    answer: outcome = governor.receive(desired, now_s)
            if outcome.persist is not None: fsync(to_record(outcome.persist)); governor.confirm(outcome.persist, now_s)
    tick:   allowance = governor.allowance(bank, now_s)      # obey: watts, and whether anything may be raised at all
            lazy = governor.due_refresh(now_s): fsync, confirm
    write:  start = governor.start_write(bank, device, raises=..., now_s=...)
            if start.persist is not None: fsync; governor.confirm(start.persist, now_s)
            then finish_write(bank, device, now_s) or time_out_write(bank, device, now_s)
    sweep:  governor.observe(bank, counted_w={device: watts or None}, base_w=..., begun_s=..., now_s=...)
    meter:  governor.observe_draw(bank, drawn_w, now_s)      # above its grant twice: the allowance falls by itself
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from types import MappingProxyType

from swingbus.faults import NotFound
from swingbus_agent.domain.governor_words import (
    Allowance,
    AppliedNow,
    GovernedBank,
    GovernorReport,
    GovernorSettings,
    Outcome,
    Verdict,
    WriteStart,
)
from swingbus_agent.domain.grant import (
    BankGrant,
    Desired,
    DurableGrant,
    DurableState,
    SafeShareStep,
    safe_share_w,
)

__all__ = [
    "Allowance",
    "AppliedNow",
    "GovernedBank",
    "Governor",
    "GovernorReport",
    "GovernorSettings",
    "Outcome",
    "Verdict",
    "WriteStart",
]

TOLERANCE_W = 1e-6


class _Bank:
    __slots__ = (
        "above",
        "accepted_s",
        "applied",
        "base_w",
        "counted_w",
        "device_w",
        "fallen_s",
        "fallen_w",
        "grant",
        "in_flight",
        "is_lost",
        "known_w",
        "last_write_s",
        "lease_until_s",
        "quarantine",
        "read_w",
        "shape",
        "trim_w",
        "unheld",
    )

    def __init__(self, shape: GovernedBank) -> None:
        self.shape = shape
        self.grant: DurableGrant | None = None
        self.is_lost = False
        self.lease_until_s = 0.0  # CLOCK_BOOTTIME is above 0: no lease
        self.fallen_w = math.inf  # below infinity once the grant was over: only a grant asked for later lifts it
        self.fallen_s = math.inf
        self.accepted_s = -math.inf
        self.in_flight: dict[str, bool] = {}
        self.quarantine: dict[str, float] = {}
        self.last_write_s = -math.inf
        self.base_w = 0.0
        self.counted_w: float | None = None
        self.known_w: float | None = (
            None  # as last read back, never read ones at nothing: no more than it surely may hold
        )
        self.read_w: dict[str, float] = {}
        self.device_w: dict[str, float] = {}  # counted watts per device: as read back, or as written since
        self.unheld = 0
        self.applied: AppliedNow | None = None
        self.above = 0
        self.trim_w = 0.0


class Governor:
    """Durable grants, leases, write quarantine and Applied of one agent's banks; pure, single-threaded."""

    def __init__(
        self,
        *,
        settings: GovernorSettings,
        banks: Iterable[GovernedBank],
        durable: DurableState | None,
        boot_id: str,
        instance: str,
        now_s: float,
    ) -> None:
        self._settings = settings
        self._boot_id = boot_id
        self._instance = instance
        self._banks = {shape.name: _Bank(shape) for shape in banks}
        self._tickets: dict[str, float] = {}  # in the order they were sent; two old ones go for each new one
        self._ticket_count = 0
        same_boot = durable is not None and durable.boot_id == boot_id
        self._durable = durable or DurableState(boot_id=boot_id)
        if not same_boot:
            # A lease counts on the clock of one boot only.
            ended = {name: replace(grant, lease_until_s=0.0) for name, grant in self._durable.grants.items()}
            # So does a schedule: of one from another boot only its lowest step is sure.
            lowest = {
                name: (SafeShareStep(from_s=0.0, watts=min(step.watts for step in steps)),)
                for name, steps in self._durable.safe_shares.items()
                if steps
            }
            self._durable = replace(self._durable, boot_id=boot_id, grants=ended, safe_shares=lowest)
        self._staged = self._durable  # the newest state handed out to be stored; in force only once confirmed
        for bank in self._banks.values():
            bank.grant = self._durable.grants.get(bank.shape.name)
            bank.is_lost = bank.grant is None
            if same_boot and bank.grant is not None:
                bank.lease_until_s = bank.grant.lease_until_s
            if bank.grant is None or bank.grant.writes_open:
                # Writes of the run before us may still land: no device's state can be trusted until they cannot.
                until_s = now_s + settings.quarantine_s
                bank.quarantine = dict.fromkeys(bank.shape.devices, until_s)

    # The link.

    def issue_ticket(self, now_s: float) -> str:
        """Return a new ticket for the report of this same moment; answers are dated by when their ticket was sent."""
        for bank in self._banks.values():
            if self._is_lapsed(bank, now_s):
                self._fall(bank, now_s)  # the report that carries this ticket tells of it
        self._ticket_count += 1
        ticket = f"{self._instance}.{self._ticket_count}"
        self._tickets[ticket] = now_s
        for old in [
            name for name, sent_s in islice(self._tickets.items(), 2) if sent_s < now_s - self._settings.ttl_max_s
        ]:
            del self._tickets[old]
        return ticket

    def receive(self, desired: Desired, now_s: float) -> Outcome:
        """Judge a message; accepted grants wait for `confirm`."""
        fence = (desired.epoch, desired.controller_instance)
        if desired.epoch < self._staged.fence_epoch:
            return Outcome(epoch_verdict=Verdict.OLD_EPOCH)
        if desired.epoch == self._staged.fence_epoch and fence[1] != self._staged.fence_instance:
            return Outcome(epoch_verdict=Verdict.OTHER_INSTANCE)
        sent_s = self._tickets.get(desired.ticket)
        if sent_s is None:
            return Outcome(epoch_verdict=Verdict.UNKNOWN_TICKET)
        lease_until_s = sent_s + min(desired.ttl_s, self._settings.ttl_max_s)
        grants = dict(self._staged.grants)
        verdicts: list[tuple[str, Verdict]] = []
        for grant in desired.grants:
            verdict = self._judge(grant, desired.epoch, lease_until_s, now_s)
            verdicts.append((grant.bank, verdict))
            if verdict is Verdict.RENEWED:
                bank = self._banks[grant.bank]
                if bank.grant is not None and bank.grant.generation == grant.generation:
                    bank.lease_until_s = max(bank.lease_until_s, lease_until_s)
            elif verdict is Verdict.ACCEPTED:
                bank = self._banks[grant.bank]
                is_lapsed = self._is_lapsed(bank, now_s)
                if is_lapsed:
                    self._fall(bank, now_s)  # an end that nobody noticed yet is dated now
                # Who decided this before hearing that the grant was over meant no raise: it stays over.
                is_blind = is_lapsed and sent_s < bank.fallen_s
                grants[grant.bank] = DurableGrant(
                    epoch=desired.epoch,
                    generation=grant.generation,
                    grant_w=grant.grant_w,
                    lease_until_s=bank.lease_until_s if is_blind else lease_until_s,
                )
        shares = {**self._staged.safe_shares, **{n: s for n, s in desired.safe_shares.items() if n in self._banks}}
        is_new = desired.epoch > self._staged.fence_epoch or shares != self._staged.safe_shares
        persist = None
        if is_new or any(verdict is Verdict.ACCEPTED for _, verdict in verdicts):
            persist = self._next(grants=grants, fence=fence, safe_shares=shares)
        return Outcome(epoch_verdict=Verdict.ACCEPTED, banks=tuple(verdicts), persist=persist)

    def _judge(self, grant: BankGrant, epoch: int, lease_until_s: float, now_s: float) -> Verdict:
        bank = self._banks.get(grant.bank)
        if bank is None:
            return Verdict.UNKNOWN_BANK
        have = self._staged.grants.get(grant.bank)
        if have is not None and (epoch, grant.generation) < (have.epoch, have.generation):
            return Verdict.OLD_GENERATION
        if have is not None and (epoch, grant.generation) == (have.epoch, have.generation):
            if grant.grant_w != have.grant_w:
                return Verdict.CHANGED
            return Verdict.LAPSED if self._is_lapsed(bank, now_s) else Verdict.RENEWED
        if bank.is_lost and grant.for_instance != self._instance:
            return Verdict.NOT_FOR_THIS_RUN
        if lease_until_s <= now_s:
            return Verdict.UNKNOWN_TICKET
        return Verdict.ACCEPTED

    def confirm(self, state: DurableState, now_s: float) -> None:
        """Put a state that is now on disk in force; one that is older than what is in force changes nothing."""
        if state.revision <= self._durable.revision:
            return
        self._durable = state
        for name, grant in state.grants.items():
            bank = self._banks.get(name)
            if bank is None:
                continue
            have = bank.grant
            if have is None or (grant.epoch, grant.generation) > (have.epoch, have.generation):
                is_over = bank.fallen_w < math.inf and grant.lease_until_s <= now_s
                bank.lease_until_s = grant.lease_until_s
                bank.accepted_s = now_s
                bank.is_lost = False
                if is_over:
                    bank.fallen_w = min(bank.fallen_w, grant.grant_w)
                else:
                    bank.fallen_w = math.inf
                    bank.fallen_s = math.inf
                bank.applied = None
                bank.above = 0
                bank.trim_w = 0.0
            bank.grant = grant

    def reshape(self, shape: GovernedBank, now_s: float) -> None:
        """Take a bank's new factors, safe shares or devices, or a bank found later; what is durable of it stays."""
        known = self._banks.get(shape.name)
        if known is not None:
            known.shape = shape
            known.device_w = {device: watts for device, watts in known.device_w.items() if device in shape.devices}
            return
        bank = self._banks[shape.name] = _Bank(shape)
        bank.grant = self._durable.grants.get(shape.name)
        bank.is_lost = bank.grant is None
        if bank.grant is not None:
            bank.lease_until_s = bank.grant.lease_until_s
        if bank.grant is None or bank.grant.writes_open:
            bank.quarantine = dict.fromkeys(shape.devices, now_s + self._settings.quarantine_s)

    def due_refresh(self, now_s: float) -> DurableState | None:
        """Return a state worth storing although nothing waits for it: longer leases, writes that have closed.

        A state handed out earlier and not confirmed (the disk was full) comes again first.
        """
        if self._staged.revision > self._durable.revision:
            return self._staged
        grants = dict(self._durable.grants)
        changed = False
        for name, bank in self._banks.items():
            have = bank.grant
            if have is None:
                continue
            living = bank.lease_until_s - have.lease_until_s > self._settings.refresh_s
            # Applied, and no write since: what a crash now leaves behind is known.
            closed = have.writes_open and bank.applied is not None and not bank.in_flight and not bank.quarantine
            if living or closed:
                is_open = have.writes_open and not closed
                grants[name] = replace(have, lease_until_s=bank.lease_until_s, writes_open=is_open)
                changed = True
        return self._next(grants=grants) if changed else None

    # The executor.

    def allowance(self, bank: str, now_s: float) -> Allowance:
        """Return what a bank may draw now; the first moment without a living grant pins it for good."""
        state = self._bank(bank)
        if state.grant is not None and not self._is_lapsed(state, now_s):
            watts = max(0.0, state.grant.grant_w - state.trim_w)
            return Allowance(
                watts=watts, may_raise=state.trim_w == 0.0, why="granted" if not state.trim_w else "trimmed"
            )
        return Allowance(watts=self._fall(state, now_s), may_raise=False, why="lost" if state.is_lost else "lapsed")

    def start_write(
        self, bank: str, device: str, *, raises: bool, now_s: float, counted_w: float | None = None
    ) -> WriteStart:
        """Ask to write to a device: one write in flight each, no raise in quarantine or without a living grant.

        With `counted_w` (what the device will count at), a raise that would take the bank's counted watts above its
        allowance is refused too; it needs one full read-back first.
        """
        state = self._bank(bank)
        if device in state.in_flight:
            return WriteStart(may_write=False, why="a write is in flight")
        if raises:
            if not self.allowance(bank, now_s).may_raise:
                return WriteStart(may_write=False, why="nothing may be raised")
            if now_s < state.quarantine.get(device, -math.inf):
                return WriteStart(may_write=False, why="a timed-out write may still land")
            if counted_w is not None and not self._has_room(state, device, counted_w, now_s):
                return WriteStart(may_write=False, why="the grant has no room for it")
        if counted_w is not None:
            state.device_w[device] = max(counted_w, state.device_w.get(device, 0.0))
        state.in_flight[device] = raises
        state.last_write_s = now_s
        state.applied = None
        if raises and state.grant is not None and not state.grant.writes_open:
            grants = dict(self._staged.grants)
            grants[bank] = replace(grants[bank], writes_open=True)
            return WriteStart(may_write=True, why="granted", persist=self._next(grants=grants))
        return WriteStart(may_write=True, why="granted")

    def finish_write(self, bank: str, device: str, now_s: float) -> None:
        """Note that a write was answered; only a later read-back shows what it did."""
        state = self._bank(bank)
        state.in_flight.pop(device, None)
        state.last_write_s = max(state.last_write_s, now_s)

    def time_out_write(self, bank: str, device: str, now_s: float) -> None:
        """Note that a write was not answered: it may land later, so the device counts at its ceiling until it cannot."""
        state = self._bank(bank)
        state.in_flight.pop(device, None)
        state.last_write_s = max(state.last_write_s, now_s)
        state.quarantine[device] = now_s + self._settings.quarantine_s

    def observe(
        self, bank: str, *, counted_w: Mapping[str, float | None], base_w: float, begun_s: float, now_s: float
    ) -> AppliedNow | None:
        """Take in one full read-back and return Applied where it holds.

        Args:
            counted_w: per device the watts it counts at as enforced and read back; None where it was not read.
            base_w: host and cooling at nameplate, at the feeder.
            begun_s: when the first device of this sweep was read.
        """
        state = self._bank(bank)
        for device in [d for d, until_s in state.quarantine.items() if until_s <= begun_s]:
            del state.quarantine[device]
        devices_w = 0.0
        known_w = 0.0
        unheld = 0
        for device in state.shape.devices:
            watts = counted_w.get(device)
            if watts is not None:
                state.read_w[device] = watts
            known_w += state.read_w.get(device, 0.0)
            if watts is None or device in state.in_flight or device in state.quarantine:
                watts = state.shape.device_ceiling_w if watts is None else max(watts, state.shape.device_ceiling_w)
                unheld += 1
            state.device_w[device] = watts
            devices_w += watts
        state.base_w = base_w
        state.known_w = base_w + known_w * (1.0 + state.shape.overhead_ratio)
        state.counted_w = base_w + devices_w * (1.0 + state.shape.overhead_ratio)
        state.unheld = unheld
        if self._is_lapsed(state, now_s):
            self._fall(state, now_s)
        grant = state.grant
        is_complete = (
            grant is not None
            and not state.in_flight
            and begun_s >= state.last_write_s
            and begun_s >= state.accepted_s
            and state.counted_w <= grant.grant_w + TOLERANCE_W
        )
        if not is_complete or grant is None:
            state.applied = None
        elif state.applied is None:
            state.applied = AppliedNow(
                epoch=grant.epoch,
                generation=grant.generation,
                at_s=now_s,
                counted_w=state.counted_w,
                unheld_count=unheld,
            )
        elif (state.applied.counted_w, state.applied.unheld_count) != (state.counted_w, unheld):
            state.applied = replace(state.applied, counted_w=state.counted_w, unheld_count=unheld)
        return state.applied

    def observe_draw(self, bank: str, drawn_w: float, now_s: float) -> None:
        """Take in what the bank surely draws: above its allowance in two samples, it sheds unasked."""
        state = self._bank(bank)
        if state.grant is None:
            return
        over_w = drawn_w - state.grant.grant_w
        if over_w <= TOLERANCE_W:
            state.above = 0
            return
        state.above += 1
        if state.above >= self._settings.above_count:
            # The trim stays until a newer grant: a bank that lied once is the controller's to judge.
            state.trim_w = min(state.grant.grant_w, state.trim_w + over_w)
            state.above = 0

    def report(self, bank: str, now_s: float) -> GovernorReport:
        """Return what to tell the controller of a bank now."""
        state = self._bank(bank)
        grant = state.grant
        lapsed = grant is None or self._is_lapsed(state, now_s)
        reported_w: float | None
        if grant is not None and not lapsed:
            reported_w = grant.grant_w
        else:
            reported_w = self._fall(state, now_s)
            if state.known_w is None:
                reported_w = None  # not read back yet: it cannot say where a grant would be no raise
        return GovernorReport(
            bank=bank,
            instance=self._instance,
            boot_id=self._boot_id,
            fence_epoch=self._durable.fence_epoch,
            fence_instance=self._durable.fence_instance,
            grant_epoch=0 if grant is None else grant.epoch,
            grant_generation=0 if grant is None else grant.generation,
            grant_w=None if grant is None else grant.grant_w,
            reported_w=reported_w,
            is_lapsed=lapsed,
            is_lost=state.is_lost,
            applied=state.applied,
        )

    def safe_shares(self, bank: str) -> tuple[SafeShareStep, ...]:
        """Return the schedule in force, to be told to the controller: only what is on disk is acknowledged."""
        return self._durable.safe_shares.get(bank, self._bank(bank).shape.schedule)

    def counted_w(self, bank: str) -> float | None:
        """Return what the bank counted at in the last read-back, None before the first."""
        return self._bank(bank).counted_w

    def device_counts_w(self, bank: str) -> Mapping[str, float]:
        """Return what each device counts at now: as read back or written since, its ceiling where it is not held."""
        return MappingProxyType(self._bank(bank).device_w)

    # Inner.

    def _has_room(self, state: _Bank, device: str, counted_w: float, now_s: float) -> bool:
        if state.counted_w is None:
            return False
        others_w = sum(watts for name, watts in state.device_w.items() if name != device)
        total_w = state.base_w + (others_w + counted_w) * (1.0 + state.shape.overhead_ratio)
        return total_w <= self.allowance(state.shape.name, now_s).watts + TOLERANCE_W

    def _fall(self, state: _Bank, now_s: float) -> float:
        """Return min(durable grant, safe share so far, what was read back since), never rising.

        Each step down is dated: a grant decided before it was told of meant no raise from there.
        """
        schedule = self._durable.safe_shares.get(state.shape.name, state.shape.schedule)
        watts = safe_share_w(schedule, state.shape.safe_share_w, now_s)
        if state.grant is not None:
            watts = min(watts, state.grant.grant_w)
        if state.known_w is not None:
            watts = min(watts, state.known_w)
        if watts < state.fallen_w - TOLERANCE_W:
            state.fallen_s = now_s
        state.fallen_w = min(state.fallen_w, watts)
        return state.fallen_w

    def _is_lapsed(self, state: _Bank, now_s: float) -> bool:
        if state.fallen_w < math.inf:
            return True  # once fallen, only a newer grant lifts it
        return now_s >= state.lease_until_s

    def _next(
        self,
        *,
        grants: Mapping[str, DurableGrant],
        fence: tuple[int, str] | None = None,
        safe_shares: Mapping[str, tuple[SafeShareStep, ...]] | None = None,
    ) -> DurableState:
        epoch, instance = fence or (self._staged.fence_epoch, self._staged.fence_instance)
        self._staged = DurableState(
            boot_id=self._boot_id,
            fence_epoch=epoch,
            fence_instance=instance,
            grants=grants,
            safe_shares=self._staged.safe_shares if safe_shares is None else safe_shares,
            revision=self._staged.revision + 1,
        )
        return self._staged

    def _bank(self, bank: str) -> _Bank:
        try:
            return self._banks[bank]
        except KeyError:
            raise NotFound(f"this agent has no bank {bank!r}.", reason="NO_SUCH_BANK") from None
