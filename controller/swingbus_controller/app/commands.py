"""What operators may order, checked, recorded, then done by the engine's next round.

Decides whether an order is acceptable now. Invariants: every write has an author and a reason on the record; the same request id with
the same content answers with the same subject and changes nothing, with other content it is refused; with `validate_only` every check
is made and nothing is recorded; nothing here can raise a declared limit.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

from swingbus.clock import Clock
from swingbus.faults import AlreadyExists, Forbidden, InvalidInput, NotFound, OverBudget, WrongState
from swingbus_controller.app.engine import SiteEngine
from swingbus_controller.app.protecting import free_devices, shed_steps
from swingbus_controller.app.recording import bank_subject
from swingbus_controller.domain.flips.boot_axis import axis_at
from swingbus_controller.domain.flips.flip import Flip, new_flip
from swingbus_controller.domain.flips.flip_steps import InvalidTransition
from swingbus_controller.domain.flips.placement import BankModel, Holdings, needed_w
from swingbus_controller.domain.planning.plan import Authority
from swingbus_controller.domain.planning.points import DeviceKind, Mode, OperatingPoint
from swingbus_controller.domain.power.bank import BankState
from swingbus_controller.domain.power.budget_events import LimitRemoved
from swingbus_controller.domain.power.limits import Limit
from swingbus_controller.domain.site.curtailment import OVER, Curtailment, CurtailmentState
from swingbus_controller.domain.site.directives import Answered, Lockout, Pin
from swingbus_controller.domain.site.reservation import FirmBank, FirmFeeder, Reservation, check_acceptance
from swingbus_controller.domain.site_state import payload
from swingbus_controller.ports.journal import JournalEntry

OPERATOR_LIMIT = "operator"
MAX_REASON = 500
RANKS = (Authority.OBSERVE, Authority.ADVISE, Authority.CONTROL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What every write carries; `digest` stands for its content."""

    author: str
    request_id: str
    reason: str
    digest: str
    validate_only: bool

    def __post_init__(self) -> None:
        if not 1 <= len(self.request_id) <= 64:
            raise InvalidInput(
                f"request_id has {len(self.request_id)} characters; choose 1 to 64 (a UUID will do).",
                reason="BAD_REQUEST_ID",
            )
        if not self.reason.strip() or len(self.reason) > MAX_REASON:
            raise InvalidInput(
                f"reason is kept on the record: write 1 to {MAX_REASON} characters.", reason="BAD_REASON"
            )


class Commands:
    """Writes to one site."""

    def __init__(self, engine: SiteEngine, clock: Clock) -> None:
        self._engine = engine
        self._state = engine.state
        self._recorder = engine.recorder
        self._clock = clock

    def repeated(self, order: Order) -> str | None:
        """Return the subject that this request id has answered with, None if it is new."""
        known = self._state.answered.get(order.request_id)
        if known is None:
            return None
        if known.digest != order.digest:
            raise AlreadyExists(
                f"request id {order.request_id} was used for something else ({known.subject}); choose a new one.",
                reason="REQUEST_ID_REUSED",
                metadata={"request_id": order.request_id},
            )
        return known.subject

    def start_curtailment(
        self,
        order: Order,
        *,
        feeder: str,
        limit_w: float,
        notice_s: float,
        ramp_s: float,
        duration_s: float,
        window_s: float,
        payment: str,
        penalty: str,
    ) -> Curtailment:
        """Lower a feeder's limit for a while."""
        self._need_control()
        tree = self._state.site.tree
        feeder = feeder or tree.root
        tree.feeder(feeder)
        if not 0.0 <= limit_w < 1e12:
            raise InvalidInput(f"limit_w is {limit_w}: give watts of 0 or more.", reason="BAD_LIMIT")
        spans = (
            ("notice", notice_s, 0.0),
            ("ramp", ramp_s, 0.0),
            ("duration", duration_s, 1.0),
            ("window", window_s, 0.0),
        )
        for name, value, low in spans:
            if not low <= value <= 366 * 86_400.0:
                raise InvalidInput(f"{name} is {value:g} s: it must be {low:g} s to 366 days.", reason="BAD_SPAN")
        subject = self.repeated(order)
        if subject is not None:
            return self.curtailment(subject)
        now_s = self._clock.boottime_s()
        now_unix_s = self._clock.now().timestamp()
        ledger = self._state.ledger
        in_force_w = ledger.limit_w(feeder, now_s)
        windows = self._engine.windows(feeder)
        starts_s = now_s + notice_s
        made = Curtailment(
            id=f"c-{ledger.epoch}-{len(self._state.curtailments) + 1}",
            feeder=feeder,
            limit_w=limit_w,
            created_unix_s=now_unix_s,
            start_unix_s=now_unix_s + notice_s,
            end_unix_s=now_unix_s + notice_s + ramp_s + duration_s,
            boot_id=ledger.boot_id,
            start_s=starts_s,
            end_s=starts_s + ramp_s + duration_s,
            ramp_s=ramp_s if in_force_w > limit_w else 0.0,
            ramp_from_w=max(limit_w, min(in_force_w, 1e12)),
            window_s=window_s or 60.0,
            author=order.author,
            reason=order.reason,
            baseline_w=windows[-1].power_w if windows else None,
            payment_usd_per_mwh=payment,
            penalty_usd_per_mwh=penalty,
        )
        self._record(
            order,
            made.id,
            self._curtailment_entry(made, "curtailment_ordered"),
            self._engine.limit_entry(feeder, made.limit(), author=order.author, reason=order.reason),
        )
        return made

    def preview_curtailment(self, curtailment: Curtailment) -> list[str]:
        """Say what would be shed, in the order of giving way."""
        ledger = self._state.ledger
        now_s = self._clock.boottime_s()
        seen = ledger.feeder_view(curtailment.feeder, now_s)
        lowered_margin_w = ledger.margin_w(curtailment.feeder, curtailment.limit_w)
        need_w = seen.claimed_w + seen.uncontrolled_w + lowered_margin_w - curtailment.limit_w
        if need_w <= 0.0:
            return [f"nothing: claims, uncontrolled load and margin are {-need_w / 1000:.1f} kW below the limit"]
        lines: list[str] = []
        inside = self._state.site.tree.subtree(curtailment.feeder)
        here_w = {
            name: needed_w(self._state.models[name], held, self._state.open_flips(name))
            for name, held in self._state.holdings.items()
        }
        for step in shed_steps(self._state, self._clock.now().timestamp()):
            if need_w <= 0.0:
                break
            model = self._state.models[step.bank]
            free_w = here_w[step.bank] - step.to_w
            if model.declared.feeder not in inside or free_w <= 0.0:
                continue
            loss = self._state.site.tree.loss_factor(model.declared.feeder, curtailment.feeder)
            given_w = min(free_w, need_w / loss)
            here_w[step.bank] -= given_w
            need_w -= given_w * loss
            lines.append(f"{step.bank}: {given_w / 1000:.1f} kW, to {here_w[step.bank] / 1000:.1f} kW")
        if need_w > 1.0:
            lines.append(f"{need_w / 1000:.1f} kW could not be shed by anything that is managed here")
        return lines

    def end_curtailment(self, order: Order, *, curtailment: str) -> Curtailment:
        """End a curtailment before its time."""
        self._need_control()
        found = self.curtailment(curtailment)
        if self.repeated(order) is not None:
            return found
        if found.state in OVER:
            raise WrongState(f"{found.id} is {found.state.value} already.", reason="CURTAILMENT_OVER")
        ended = replace(found, state=CurtailmentState.CANCELLED)
        gone = LimitRemoved(feeder=found.feeder, name=found.id, at_s=self._clock.boottime_s())
        self._record(
            order,
            found.id,
            self._curtailment_entry(ended, "curtailment_cancelled", author=order.author, reason=order.reason),
            self._recorder.budget(gone, author=order.author, reason=order.reason),
        )
        return ended

    def curtailment(self, name: str) -> Curtailment:
        """Return one curtailment."""
        found = self._state.curtailments.get(name)
        if found is None:
            raise NotFound(f"no curtailment {name!r}; swingctl curtail list shows them.", reason="NO_SUCH_CURTAILMENT")
        return found

    def set_feeder_limit(self, order: Order, *, feeder: str, limit_w: float | None) -> None:
        """Set or clear the operator's own limit; it counts beside the declared ones, the lowest holds."""
        self._state.site.tree.feeder(feeder)
        if self.repeated(order) is not None:
            return
        now_s = self._clock.boottime_s()
        if limit_w is None:
            gone = LimitRemoved(feeder=feeder, name=OPERATOR_LIMIT, at_s=now_s)
            self._record(order, feeder, self._recorder.budget(gone, author=order.author, reason=order.reason))
            return
        limit = Limit(name=OPERATOR_LIMIT, limit_w=limit_w, source=f"operator {order.author}")
        self._record(order, feeder, self._engine.limit_entry(feeder, limit, author=order.author, reason=order.reason))

    def set_pin(self, order: Order, *, bank: str, pinned: bool, duration_s: float | None) -> Pin | None:
        """Pin a bank as it is, or lift its pin."""
        model = self.model(bank)
        now_unix_s = self._clock.now().timestamp()
        if duration_s is not None and not 0.0 < duration_s <= 366 * 86_400.0:
            raise InvalidInput(
                f"duration is {duration_s:g} s: it must be above 0 s and at most 366 days.", reason="BAD_SPAN"
            )
        if self.repeated(order) is not None:
            return self._state.pins.get(bank)
        if not pinned:
            record = {"unpin": {"bank": model.name}}
            entry = self._recorder.entry(
                "pin_lifted",
                bank_subject(bank),
                f"{bank} may move again",
                author=order.author,
                reason=order.reason,
                payload=record,
            )
            self._record(order, bank, entry)
            return None
        pin = Pin(
            bank=bank,
            author=order.author,
            reason=order.reason,
            created_unix_s=now_unix_s,
            expire_unix_s=None if duration_s is None else now_unix_s + duration_s,
        )
        entry = self._recorder.entry(
            "pin_set",
            bank_subject(bank),
            f"{bank} stays as it is",
            author=order.author,
            reason=order.reason,
            payload=payload("pin", pin),
        )
        self._record(order, bank, entry)
        return pin

    def set_lockout(self, order: Order, *, bank: str, locked_out: bool, cleared_by: str) -> Lockout | None:
        """Lock a bank out, or lift the lockout on the word of a named person on site."""
        self.model(bank)
        self._need_control()
        if self.repeated(order) is not None:
            return self._state.lockouts.get(bank)
        if not locked_out:
            if not cleared_by.strip():
                raise InvalidInput(
                    "a lockout is lifted on the word of a person on site: name who checked that no hands are inside (cleared_by).",
                    reason="NOT_CLEARED",
                )
            if bank not in self._state.lockouts:
                raise WrongState(f"{bank} is not locked out.", reason="NOT_LOCKED_OUT")
            entry = self._recorder.entry(
                "lockout_lifted",
                bank_subject(bank),
                f"{bank} cleared by {cleared_by}",
                author=order.author,
                reason=order.reason,
                facts={"cleared_by": cleared_by},
                payload={"lockout_lifted": {"bank": bank}},
            )
            self._record(order, bank, entry)
            return None
        lockout = Lockout(
            bank=bank, author=order.author, reason=order.reason, created_unix_s=self._clock.now().timestamp()
        )
        self._record(order, bank, self._recorder.lockout(lockout))
        return lockout

    def set_authority(self, order: Order, *, authority: Authority) -> None:
        """Change what Swingbus may do here; the site file's authority holds again only if nobody ever ordered another."""
        ceiling = self._state.site.authority
        if RANKS.index(authority) > RANKS.index(ceiling):
            raise Forbidden(
                f"the site file of {self._state.site.name} allows {ceiling.value} at most: change it there and restart.",
                reason="ABOVE_SITE_FILE",
                metadata={"ceiling": ceiling.value},
            )
        if self.repeated(order) is not None:
            return
        entry = self._recorder.entry(
            "authority_set",
            "",
            f"authority is {authority.value}",
            author=order.author,
            reason=order.reason,
            payload={"authority": {"authority": authority.value}},
        )
        is_new = authority is not self._state.authority
        self._record(order, authority.value, entry)
        if is_new and not order.validate_only:
            self._engine.meet_authority()

    def request_flip(self, order: Order, *, bank: str, count: int, from_mode: Mode, to_mode: Mode) -> Flip:
        """Ask for a flip by hand; pins, lockouts, dwell and watts are checked as for any other."""
        self._need_control()
        model = self.model(bank)
        subject = self.repeated(order)
        if subject is not None:
            return self.flip(subject)
        holdings = self._state.holdings.get(bank)
        state = self._state.ledger.state(bank, self._clock.boottime_s())
        if holdings is None or state in (BankState.DARK, BankState.ADOPTING, BankState.ISOLATED):
            raise WrongState(f"{bank} is {state.value}: a flip needs its agent.", reason="BANK_UNAVAILABLE")
        if bank in self._state.lockouts:
            raise Forbidden(f"{bank} is locked out by {self._state.lockouts[bank].author}.", reason="LOCKED_OUT")
        now_s, now_unix_s = self._clock.boottime_s(), self._clock.now().timestamp()
        pin = self._state.pins.get(bank)
        if pin is not None and pin.holds(now_unix_s):
            raise WrongState(
                f"{bank} is pinned by {pin.author} ({pin.reason}): lift the pin first.",
                reason="PINNED",
                metadata={"bank": bank},
            )
        origin = self._point_with_devices(model, from_mode)
        aim = _best_point(model, to_mode)
        size = model.device_class.unit_size if model.kind is DeviceKind.GPU else 1
        if count < 1 or count % size:
            raise InvalidInput(f"{count} devices are no whole number of units of {size}.", reason="NOT_WHOLE_UNITS")
        flips = self._state.open_flips(bank)
        free = free_devices(model, holdings, flips).get(origin.name, (0, ()))
        if free[0] < count:
            raise OverBudget(
                f"{bank} has {free[0]} free devices at {origin.name}, {count} were asked for.",
                reason="NOT_ENOUGH_DEVICES",
            )
        ripe, units, left_s = self._ripe(model, holdings, origin, free, now_unix_s)
        if ripe < count:
            raise WrongState(
                f"{bank}: only {ripe} of {count} devices have served their minimum dwell; {left_s:.0f} s are left.",
                reason="DWELL",
                metadata={"bank": bank, "left_s": f"{left_s:.0f}"},
            )
        flip = new_flip(
            id=f"o-{self._state.ledger.epoch}-{hashlib.sha256(order.request_id.encode()).hexdigest()[:12]}",
            bank=bank,
            kind=model.kind,
            count=count,
            origin=origin,
            aim=aim,
            reason=order.reason,
            author=order.author,
            now_s=now_s,
            axis=axis_at(self._state.ledger.boot_id, now_s=now_s, now_unix_s=now_unix_s),
            times=self._state.site.policy.times,
            unit_ids=tuple(str(u) for u in units[: count // size]),
        )
        if not order.validate_only:
            # Together: a repeat after a crash in between would make a second flip.
            self._engine.flips.begin([flip], beside=[self._answer(order, flip.id)])
            self._engine.replan()
        return flip

    def cancel_flip(self, order: Order, *, flip: str) -> Flip:
        """Undo an open flip."""
        self._need_control()
        found = self.flip(flip)
        if self.repeated(order) is not None:
            return found
        if found.is_over:
            raise WrongState(f"flip {flip} is {found.phase.value} already.", reason="FLIP_OVER")
        if order.validate_only:
            return found
        try:
            undone = self._engine.flips.cancel(
                found,
                author=order.author,
                reason=order.reason,
                now_s=self._clock.boottime_s(),
                beside=[self._answer(order, flip)],
            )
        except InvalidTransition as error:
            raise WrongState(str(error), reason="FLIP_NOT_CANCELLABLE") from error
        self._engine.replan()
        return undone

    def flip(self, name: str) -> Flip:
        """Return one flip."""
        found = self._state.flips.get(name)
        if found is None:
            raise NotFound(f"no flip {name!r}; swingctl flip list shows them.", reason="NO_SUCH_FLIP")
        return found

    def create_reservation(self, order: Order, reservation: Reservation) -> Reservation:
        """Accept a firm reservation if I4 holds with it."""
        subject = self.repeated(order)
        if subject is not None:
            return self.reservation(subject)
        if reservation.id in self._state.reservations:
            raise AlreadyExists(f"reservation {reservation.id} exists.", reason="RESERVATION_EXISTS")
        beside = [
            r
            for r in self._state.reservations.values()
            if r.from_s < reservation.until_s and reservation.from_s < r.until_s
        ]
        answer = check_acceptance([*beside, reservation], self._firm_feeders(), self._firm_banks())
        if not answer.accepted:
            raise OverBudget(f"the site cannot promise this: {answer.reason}.", reason="RESERVATION_DOES_NOT_FIT")
        words = f"{reservation.device_count} x {reservation.inference_class} reserved"
        entry = self._recorder.entry(
            "reservation_accepted",
            f"reservations/{reservation.id}",
            words,
            author=order.author,
            reason=order.reason,
            payload=payload("reservation", reservation),
        )
        self._record(order, reservation.id, entry)
        return reservation

    def end_reservation(self, order: Order, *, reservation: str) -> Reservation:
        """End a reservation now."""
        found = self.reservation(reservation)
        if self.repeated(order) is not None:
            return found
        now_unix_s = self._clock.now().timestamp()
        if found.until_s <= now_unix_s:
            raise WrongState(f"reservation {reservation} has ended already.", reason="RESERVATION_OVER")
        ended = replace(found, until_s=max(now_unix_s, found.from_s + 1e-3))
        entry = self._recorder.entry(
            "reservation_ended",
            f"reservations/{reservation}",
            f"{reservation} ends now",
            author=order.author,
            reason=order.reason,
            payload=payload("reservation", ended),
        )
        self._record(order, reservation, entry)
        return ended

    def reservation(self, name: str) -> Reservation:
        """Return one reservation."""
        found = self._state.reservations.get(name)
        if found is None:
            raise NotFound(
                f"no reservation {name!r}; swingctl reservation list shows them.", reason="NO_SUCH_RESERVATION"
            )
        return found

    def model(self, bank: str) -> BankModel:
        """Return a managed bank by `agent/bank`."""
        found = self._state.models.get(bank)
        if found is None:
            raise NotFound(
                f"no managed bank {bank!r}; the site file has {', '.join(sorted(self._state.models))}.",
                reason="NO_SUCH_BANK",
            )
        return found

    # Inner.

    def _need_control(self) -> None:
        if self._state.authority is not Authority.CONTROL:
            raise Forbidden(
                f"authority at {self._state.site.name} is {self._state.authority.value}: nothing may be written to it. "
                "An admin changes that with swingctl authority set.",
                reason="NO_AUTHORITY",
                metadata={"authority": self._state.authority.value},
            )

    def _record(self, order: Order, subject: str, *entries: JournalEntry) -> None:
        if order.validate_only:
            return
        self._recorder.record(*entries, self._answer(order, subject))
        self._engine.replan()

    def _answer(self, order: Order, subject: str) -> JournalEntry:
        answered = Answered(request_id=order.request_id, digest=order.digest, subject=subject)
        return self._recorder.entry(
            "request_answered",
            "",
            f"request {order.request_id}: {subject}",
            author=order.author,
            payload=payload("answered", answered),
        )

    def _ripe(
        self,
        model: BankModel,
        holdings: Holdings,
        origin: OperatingPoint,
        free: tuple[int, tuple[int, ...]],
        now_unix_s: float,
    ) -> tuple[int, tuple[int, ...], float]:
        """Return how many free devices (which units) have served their dwell, and how long the next one has left."""
        policy = self._state.site.policy
        is_gpu = model.kind is DeviceKind.GPU
        ripe, left_s = 0, math.inf
        units: list[int] = []
        for placement in holdings.placements:
            if placement.point != origin.name:
                continue
            served_s = now_unix_s - (placement.mode_since_s if is_gpu else placement.since_s)
            missing_s = (policy.gpu_dwell_s if is_gpu else policy.asic_dwell_s) - served_s
            if missing_s > 0.0:
                left_s = min(left_s, missing_s)
                continue
            ripe += placement.count
            units.extend(u for u in placement.units if u in free[1])
        if is_gpu:
            ripe = len(units) * model.device_class.unit_size
        return min(ripe, free[0]), tuple(units), 0.0 if left_s == math.inf else left_s

    def _curtailment_entry(self, made: Curtailment, kind: str, *, author: str = "", reason: str = "") -> JournalEntry:
        return self._recorder.entry(
            kind,
            f"curtailments/{made.id}",
            f"{made.feeder} to {made.limit_w / 1000:.1f} kW",
            author=author or made.author,
            reason=reason or made.reason,
            payload=payload("curtailment", made),
        )

    def _point_with_devices(self, model: BankModel, mode: Mode) -> OperatingPoint:
        holdings = self._state.holdings[model.name]
        there = [model.points[p.point] for p in holdings.placements if model.points[p.point].mode is mode and p.count]
        if not there:
            raise WrongState(f"{model.name} has no device in {mode.value}.", reason="NOTHING_IN_MODE")
        return max(there, key=lambda p: holdings.count_at(p.name))

    def _firm_feeders(self) -> list[FirmFeeder]:
        ledger = self._state.ledger
        now_s = self._clock.boottime_s()
        feeders: list[FirmFeeder] = []
        for name in self._state.site.feeders_in_order():
            feeder = self._state.site.tree.feeder(name)
            # The lowest limit that is set on it, at any time: a programme that was accepted may call it.
            lowest_w = min((limit.limit_w for limit in ledger.limits(name)), default=ledger.limit_w(name, now_s))
            feeders.append(
                FirmFeeder(
                    feeder=name,
                    parent=feeder.parent,
                    lowest_limit_w=lowest_w,
                    uncontrolled_max_w=self._state.site.tree.uncontrolled_max_w(name),
                    margin_w=ledger.margin_w(name, lowest_w),
                    loss_ratio=feeder.losses_ratio,
                )
            )
        return feeders

    def _firm_banks(self) -> list[FirmBank]:
        banks: list[FirmBank] = []
        for model in self._state.models.values():
            serving = [p.claim_w for p in model.points.values() if p.mode is Mode.INFERENCE]
            banks.append(
                FirmBank(
                    bank=model.name,
                    feeder=model.declared.feeder,
                    inference_class=model.device_class.inference_class or None,
                    device_count=model.declared.device_count,
                    unit_size=model.device_class.unit_size,
                    capped_floor_w=min(serving, default=0.0),
                    fixed_claim_w=model.fixed_claim_w + model.declared.device_count * model.rest.claim_w,
                    safe_share_w=model.spec.safe_share_w,
                )
            )
        return banks


def _best_point(model: BankModel, mode: Mode) -> OperatingPoint:
    of_mode = [p for p in model.points.values() if p.mode is mode]
    if not of_mode:
        raise InvalidInput(f"{model.name} has no operating point in {mode.value}.", reason="NO_SUCH_POINT")
    return max(of_mode, key=lambda p: (p.output, p.name))
