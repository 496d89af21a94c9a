"""CapacityService: thin; proto to domain and back, every decision is the engine's or `Commands`'.

Below ADVISE no engine is built and `NoCapacity` answers instead: it says why, and what to do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

import grpc

from swingbus.capacity.v1alpha import capacity_pb2 as pb
from swingbus.capacity.v1alpha import capacity_service_pb2 as rpc
from swingbus.capacity.v1alpha import capacity_service_pb2_grpc
from swingbus.clock import Clock
from swingbus.faults import InvalidInput, NotFound
from swingbus.fleet.v1alpha import fleet_pb2
from swingbus.link.v1alpha import link_pb2
from swingbus.names import BankName, CurtailmentName, FeederName, FlipName, ReservationName, SiteName, parse_id
from swingbus.rpc.caller import current_caller
from swingbus_controller.api.codec import duration, timestamp, unix_s
from swingbus_controller.app.commands import Commands, Order
from swingbus_controller.app.engine import SiteEngine
from swingbus_controller.domain.flips.flip import Flip
from swingbus_controller.domain.flips.flip import Phase as FlipPhase
from swingbus_controller.domain.planning.explain import explain, why_not
from swingbus_controller.domain.planning.plan import Authority, Plan
from swingbus_controller.domain.planning.points import Mode
from swingbus_controller.domain.power.settle import NotSettled
from swingbus_controller.domain.site.curtailment import OVER, Curtailment
from swingbus_controller.domain.site.reservation import CreditStep, Reservation

MODES: dict[Mode, link_pb2.Mode] = {
    Mode.MINING: link_pb2.MODE_MINING,
    Mode.INFERENCE: link_pb2.MODE_INFERENCE,
    Mode.STANDBY: link_pb2.MODE_STANDBY,
    Mode.OFF: link_pb2.MODE_OFF,
}
PHASES: dict[FlipPhase, pb.FlipPhase] = {
    FlipPhase.PLANNED: pb.FLIP_PHASE_PLANNED,
    FlipPhase.DRAINING: pb.FLIP_PHASE_DRAINING,
    FlipPhase.RELEASED: pb.FLIP_PHASE_RELEASED,
    FlipPhase.SETTLING: pb.FLIP_PHASE_SETTLING,
    FlipPhase.STARTING: pb.FLIP_PHASE_STARTING,
    FlipPhase.VERIFYING: pb.FLIP_PHASE_VERIFYING,
    FlipPhase.ACTIVE: pb.FLIP_PHASE_ACTIVE,
    FlipPhase.ROLLED_BACK: pb.FLIP_PHASE_ROLLED_BACK,
    FlipPhase.FAILED: pb.FLIP_PHASE_FAILED,
}
AUTHORITIES: dict[fleet_pb2.Authority, Authority] = {
    fleet_pb2.AUTHORITY_OBSERVE: Authority.OBSERVE,
    fleet_pb2.AUTHORITY_ADVISE: Authority.ADVISE,
    fleet_pb2.AUTHORITY_CONTROL: Authority.CONTROL,
}
MAX_PAGE, DEFAULT_PAGE = 1000, 100
Item = TypeVar("Item")
Context = grpc.aio.ServicerContext[Any, Any]


class CapacityService(capacity_service_pb2_grpc.CapacityServiceServicer):
    """Plans, flips and orders of one site."""

    def __init__(self, engine: SiteEngine, commands: Commands, clock: Clock) -> None:
        self._engine = engine
        self._state = engine.state
        self._commands = commands
        self._clock = clock
        self._site = engine.state.site.name

    # Reads.

    async def GetPlan(self, request: rpc.GetPlanRequest, context: Context) -> rpc.GetPlanResponse:
        self._check_site(request.parent)
        return rpc.GetPlanResponse(plan=self._plan(self._newest_plan()))

    async def ExplainBank(self, request: rpc.ExplainBankRequest, context: Context) -> rpc.ExplainBankResponse:
        bank = self._bank(request.name)
        made = self._newest_plan()
        if request.why_not == link_pb2.MODE_UNSPECIFIED:
            told = explain(made, bank)
            facts = {f"{e.point}.count": str(e.count) for e in told}
            for e in told:
                if e.strike_usd_per_mwh is not None:
                    facts[f"{e.point}.strike_usd_per_mwh"] = f"{e.strike_usd_per_mwh:.2f}"
                facts[f"{e.point}.one_more_kw_usd_per_mwh"] = f"{e.one_more_kw_usd_per_mwh:.2f}"
            sentence = "\n".join(e.sentence for e in told)
            waiting = [
                f"flip {f.id} waits: {why}"
                for f in self._state.open_flips(bank)
                if (why := self._engine.flips.refusals.get(f.id))
            ]
            return rpc.ExplainBankResponse(explanation="\n".join([sentence, *waiting]), facts=facts)
        answer = why_not(made, bank, _mode(request.why_not))
        facts = {"code": answer.code.value, **{name: f"{value:g}" for name, value in answer.facts.items()}}
        return rpc.ExplainBankResponse(explanation=answer.sentence, facts=facts)

    async def ListFlips(self, request: rpc.ListFlipsRequest, context: Context) -> rpc.ListFlipsResponse:
        self._check_site(request.parent)
        flips = [f for f in reversed(list(self._state.flips.values())) if not (request.open_only and f.is_over)]
        page, token = _page(flips, request.page_size, request.page_token)
        return rpc.ListFlipsResponse(flips=[self._flip(f) for f in page], next_page_token=token)

    async def GetFlip(self, request: rpc.GetFlipRequest, context: Context) -> rpc.GetFlipResponse:
        name = FlipName.parse(request.name)
        self._check_site(f"sites/{name.site}")
        return rpc.GetFlipResponse(flip=self._flip(self._commands.flip(name.flip)))

    async def ListCurtailments(
        self, request: rpc.ListCurtailmentsRequest, context: Context
    ) -> rpc.ListCurtailmentsResponse:
        self._check_site(request.parent)
        orders = list(reversed(list(self._state.curtailments.values())))
        page, token = _page(orders, request.page_size, request.page_token)
        return rpc.ListCurtailmentsResponse(curtailments=[self._curtailment(c) for c in page], next_page_token=token)

    async def GetCurtailment(self, request: rpc.GetCurtailmentRequest, context: Context) -> rpc.GetCurtailmentResponse:
        name = CurtailmentName.parse(request.name)
        self._check_site(f"sites/{name.site}")
        found = self._commands.curtailment(name.curtailment)
        return rpc.GetCurtailmentResponse(curtailment=self._curtailment(found))

    async def ListPins(self, request: rpc.ListPinsRequest, context: Context) -> rpc.ListPinsResponse:
        self._check_site(request.parent)
        now_unix_s = self._clock.now().timestamp()
        return rpc.ListPinsResponse(
            pins=[self._pin(bank) for bank, pin in sorted(self._state.pins.items()) if pin.holds(now_unix_s)]
        )

    async def ListLockouts(self, request: rpc.ListLockoutsRequest, context: Context) -> rpc.ListLockoutsResponse:
        self._check_site(request.parent)
        return rpc.ListLockoutsResponse(lockouts=[self._lockout(bank) for bank in sorted(self._state.lockouts)])

    async def ListReservations(
        self, request: rpc.ListReservationsRequest, context: Context
    ) -> rpc.ListReservationsResponse:
        self._check_site(request.parent)
        found = [self._reservation(r) for _, r in sorted(self._state.reservations.items())]
        return rpc.ListReservationsResponse(reservations=found)

    # Writes.

    async def RequestFlip(self, request: rpc.RequestFlipRequest, context: Context) -> rpc.RequestFlipResponse:
        flip = self._commands.request_flip(
            self._order(request),
            bank=self._bank(request.bank),
            count=request.device_count,
            from_mode=_mode(request.from_mode),
            to_mode=_mode(request.to_mode),
        )
        return rpc.RequestFlipResponse(flip=self._flip(flip))

    async def CancelFlip(self, request: rpc.CancelFlipRequest, context: Context) -> rpc.CancelFlipResponse:
        name = FlipName.parse(request.name)
        self._check_site(f"sites/{name.site}")
        return rpc.CancelFlipResponse(flip=self._flip(self._commands.cancel_flip(self._order(request), flip=name.flip)))

    async def StartCurtailment(
        self, request: rpc.StartCurtailmentRequest, context: Context
    ) -> rpc.StartCurtailmentResponse:
        self._check_site(request.parent)
        made = self._commands.start_curtailment(
            self._order(request),
            feeder=request.feeder,
            limit_w=request.limit_w,
            notice_s=request.notice.ToTimedelta().total_seconds(),
            ramp_s=request.ramp.ToTimedelta().total_seconds(),
            duration_s=request.duration.ToTimedelta().total_seconds(),
            window_s=request.window.ToTimedelta().total_seconds(),
            payment=_decimal_text(request.payment_usd_per_mwh, "payment_usd_per_mwh"),
            penalty=_decimal_text(request.penalty_usd_per_mwh, "penalty_usd_per_mwh"),
        )
        preview = self._commands.preview_curtailment(made)
        return rpc.StartCurtailmentResponse(curtailment=self._curtailment(made), preview=preview)

    async def EndCurtailment(self, request: rpc.EndCurtailmentRequest, context: Context) -> rpc.EndCurtailmentResponse:
        name = CurtailmentName.parse(request.name)
        self._check_site(f"sites/{name.site}")
        ended = self._commands.end_curtailment(self._order(request), curtailment=name.curtailment)
        return rpc.EndCurtailmentResponse(curtailment=self._curtailment(ended))

    async def SetFeederLimit(self, request: rpc.SetFeederLimitRequest, context: Context) -> rpc.SetFeederLimitResponse:
        name = FeederName.parse(request.name)
        self._check_site(f"sites/{name.site}")
        limit_w = request.limit_w if request.HasField("limit_w") else None
        self._commands.set_feeder_limit(self._order(request), feeder=name.feeder, limit_w=limit_w)
        now_s = self._clock.boottime_s()
        ledger = self._state.ledger
        feeder = fleet_pb2.Feeder(
            name=request.name,
            limits=[
                fleet_pb2.Limit(limit_w=lim.limit_w, source=lim.source, window=duration(lim.window_s))
                for lim in ledger.limits(name.feeder)
            ],
            limit_w=ledger.limit_w(name.feeder, now_s),
            claimed_power_w=ledger.claimed_w(name.feeder),
            headroom_w=ledger.headroom_w(name.feeder, now_s),
        )
        return rpc.SetFeederLimitResponse(feeder=feeder)

    async def SetPin(self, request: rpc.SetPinRequest, context: Context) -> rpc.SetPinResponse:
        bank = self._bank(request.bank)
        span_s = request.duration.ToTimedelta().total_seconds() if request.HasField("duration") else None
        order = self._order(request)
        pin = self._commands.set_pin(order, bank=bank, pinned=request.pinned, duration_s=span_s)
        if pin is None or order.validate_only:
            return rpc.SetPinResponse()
        return rpc.SetPinResponse(pin=self._pin(bank))

    async def SetLockout(self, request: rpc.SetLockoutRequest, context: Context) -> rpc.SetLockoutResponse:
        bank = self._bank(request.bank)
        order = self._order(request)
        lockout = self._commands.set_lockout(
            order, bank=bank, locked_out=request.locked_out, cleared_by=request.cleared_by
        )
        if lockout is None or order.validate_only:
            return rpc.SetLockoutResponse()
        return rpc.SetLockoutResponse(lockout=self._lockout(bank))

    async def SetAuthority(self, request: rpc.SetAuthorityRequest, context: Context) -> rpc.SetAuthorityResponse:
        self._check_site(request.name)
        authority = AUTHORITIES.get(request.authority)
        if authority is None:
            raise InvalidInput("authority is one of observe, advise, control.", reason="BAD_AUTHORITY")
        self._commands.set_authority(self._order(request), authority=authority)
        wire = next(number for number, known in AUTHORITIES.items() if known is self._state.authority)
        return rpc.SetAuthorityResponse(site=fleet_pb2.Site(name=request.name, authority=wire))

    async def CreateReservation(
        self, request: rpc.CreateReservationRequest, context: Context
    ) -> rpc.CreateReservationResponse:
        self._check_site(request.parent)
        asked = request.reservation
        made = Reservation(
            id=parse_id(request.reservation_id, "reservation_id"),
            inference_class=asked.device_class,
            device_count=asked.gpu_count,
            from_s=unix_s(asked.start_time),
            until_s=unix_s(asked.end_time),
            price_usd_per_device_h=_decimal(asked.price_usd_per_gpu_h, "price_usd_per_gpu_h"),
            uptime_ratio=asked.uptime_ratio,
            credit_steps=tuple(_credit_step(text) for text in asked.credit_steps),
            author=current_caller().name,
        )
        accepted = self._commands.create_reservation(self._order(request), made)
        return rpc.CreateReservationResponse(reservation=self._reservation(accepted))

    async def EndReservation(self, request: rpc.EndReservationRequest, context: Context) -> rpc.EndReservationResponse:
        name = ReservationName.parse(request.name)
        self._check_site(f"sites/{name.site}")
        ended = self._commands.end_reservation(self._order(request), reservation=name.reservation)
        return rpc.EndReservationResponse(reservation=self._reservation(ended))

    # Shapes.

    def _order(self, request: Any) -> Order:
        content = type(request)()
        content.CopyFrom(request)
        content.options.ClearField("validate_only")
        digest = hashlib.sha256(
            type(request).__name__.encode() + content.SerializeToString(deterministic=True)
        ).hexdigest()
        return Order(
            author=current_caller().name,
            request_id=request.options.request_id,
            reason=request.options.reason,
            digest=digest,
            validate_only=request.options.validate_only,
        )

    def _check_site(self, name: str) -> None:
        site = SiteName.parse(name).site
        if site != self._site:
            raise NotFound(f"no site {site!r} here; this controller runs {self._site}.", reason="NO_SUCH_SITE")

    def _bank(self, name: str) -> str:
        parsed = BankName.parse(name)
        self._check_site(f"sites/{parsed.site}")
        return f"{parsed.agent}/{parsed.bank}"

    def _bank_name(self, bank: str) -> str:
        agent, _, short = bank.partition("/")
        return str(BankName(site=self._site, agent=agent, bank=short))

    def _newest_plan(self) -> Plan:
        if self._engine.plan is None:
            raise NotFound("no plan yet: no bank has reported; look again in a few seconds.", reason="NO_PLAN_YET")
        return self._engine.plan

    def _plan(self, made: Plan) -> pb.Plan:
        banks: list[pb.PlannedBank] = []
        for target in made.targets:
            view = next(b for b in made.view.banks if b.bank == target.bank)
            told = explain(made, target.bank)
            values = {e.point: e.strike_usd_per_mwh for e in told}
            points = [
                pb.PlannedPoint(
                    point=name,
                    mode=MODES[view.point(name).mode],
                    counted_power_w=view.point(name).claim_w,
                    count=count,
                    value_usd_per_mwh=values.get(name),
                )
                for name, count in target.counts
            ]
            move = next((m for m in made.moves if m.bank == target.bank), None)
            banks.append(
                pb.PlannedBank(
                    bank=self._bank_name(target.bank),
                    points=points,
                    explanation="; ".join(e.sentence for e in told),
                    reason="stays" if move is None else move.reason.value,
                )
            )
        refusals = () if self._engine.admission is None else self._engine.admission.refused
        market = made.market
        quotes = {
            "power_price_usd_per_mwh": market.power_price_usd_per_mwh,
            "hashprice_usd_per_th_day": market.hashprice_usd_per_th_day,
            **{f"inference_price_usd_per_gpu_h/{k}": q for k, q in market.inference_price_usd_per_gpu_h.items()},
            **{f"inference_demand_gpu_count/{k}": q for k, q in market.inference_demand_gpus.items()},
            **{f"gpu_mining_price_usd_per_gpu_h/{k}": q for k, q in market.gpu_mining_usd_per_gpu_h.items()},
        }
        return pb.Plan(
            name=f"sites/{self._site}/plans/{made.basis_revision}",
            basis_revision=made.basis_revision,
            create_time=timestamp(made.made_at_s),
            banks=banks,
            marginal_value_usd_per_kw_h={f.feeder: f.marginal_usd_per_mwh / 1000.0 for f in made.feeders},
            refusals=[
                f"{r.move.bank}: {r.count} x {r.move.from_point} to {r.move.to_point}: {r.code.value}: {r.detail}"
                for r in refusals
            ],
            signals=[f"{name}={quote.value:g} ({quote.source})" for name, quote in quotes.items() if quote is not None],
        )

    def _flip(self, flip: Flip) -> pb.Flip:
        history = [f"{e.event}: {e.phase.value}{f' ({e.note})' if e.note else ''}" for e in flip.history]
        return pb.Flip(
            name=f"sites/{self._site}/flips/{flip.id}",
            bank=self._bank_name(flip.bank),
            device_count=flip.count,
            units=[int(u) for u in flip.unit_ids],
            from_mode=MODES[flip.origin.mode],
            to_mode=MODES[flip.aim.mode],
            from_point=flip.origin.name,
            to_point=flip.aim.name,
            phase=PHASES[flip.phase],
            create_time=timestamp(flip.axis.unix_s(flip.created_at_s)),
            phase_time=timestamp(flip.axis.unix_s(flip.since_s)),
            end_time=timestamp(flip.axis.unix_s(flip.since_s)) if flip.is_over else None,
            deadline_time=None if flip.is_over else timestamp(flip.axis.unix_s(flip.deadline_s)),
            author=flip.author,
            reason=flip.reason if flip.undo_cause is None else f"{flip.reason}; undone: {flip.undo_cause}",
            history=history,
            is_cap=not flip.is_mode_flip,
        )

    def _curtailment(self, order: Curtailment) -> pb.Curtailment:
        windows = self._engine.windows(order.feeder)
        return pb.Curtailment(
            name=f"sites/{self._site}/curtailments/{order.id}",
            feeder=str(FeederName(site=self._site, feeder=order.feeder)),
            limit_w=order.limit_w,
            create_time=timestamp(order.created_unix_s),
            start_time=timestamp(order.start_unix_s),
            end_time=timestamp(order.end_unix_s),
            ramp=duration(order.ramp_s),
            window=duration(order.window_s),
            state=order.state.value,
            author=order.author,
            reason=order.reason,
            met_time=None if order.met_unix_s is None else timestamp(order.met_unix_s),
            baseline_power_w=order.baseline_w,
            metered_power_w=windows[-1].power_w if windows and order.state not in OVER else None,
            evidence=[self._own_proof(order), *self._group_proofs(order)],
            payment_usd_per_mwh=order.payment_usd_per_mwh,
            penalty_usd_per_mwh=order.penalty_usd_per_mwh,
        )

    def _own_proof(self, order: Curtailment) -> pb.Evidence:
        return pb.Evidence(
            group=order.feeder,
            settled=order.met_unix_s is not None,
            reason="" if order.met_unix_s is not None else "TooFewWindows",
            settle_time=None if order.met_unix_s is None else timestamp(order.met_unix_s),
            windows=[
                pb.EvidenceWindow(
                    meter=self._state.site.feeder_notes[order.feeder].meter,
                    start_boottime_s=w.start_boottime_s,
                    end_boottime_s=w.end_boottime_s,
                    power_w=w.power_w,
                    upper_power_w=w.upper_power_w,
                    granted_power_w=order.limit_w,
                )
                for w in order.windows
            ],
        )

    def _group_proofs(self, order: Curtailment) -> list[pb.Evidence]:
        ledger = self._state.ledger
        inside = self._state.site.tree.subtree(order.feeder)
        proofs: list[pb.Evidence] = []
        for group in ledger.groups():
            if group not in inside:
                continue
            banks = ledger.group_banks(group)
            refusal: NotSettled | None = self._engine.not_settled(group)
            settled = all(ledger.is_settled(b) for b in banks)
            stragglers = [
                f"{b}/{s.device}: {s.reason}"
                for b in banks
                if (r := self._engine.report_of(b)) is not None
                for s in r.stragglers
            ]
            windows = () if refusal is None or settled else refusal.windows
            proofs.append(
                pb.Evidence(
                    group=group,
                    settled=settled,
                    reason="" if settled or refusal is None else refusal.reason.value,
                    stragglers=stragglers,
                    windows=[
                        pb.EvidenceWindow(
                            meter=self._state.site.feeder_notes[group].meter,
                            start_boottime_s=w.start_s,
                            end_boottime_s=w.end_s,
                            power_w=w.mean_w,
                            upper_power_w=w.upper_w,
                            granted_power_w=ledger.group_claim_w(group),
                        )
                        for w in windows
                    ],
                )
            )
        return proofs

    def _pin(self, bank: str) -> pb.Pin:
        pin = self._state.pins[bank]
        return pb.Pin(
            bank=self._bank_name(bank),
            author=pin.author,
            reason=pin.reason,
            create_time=timestamp(pin.created_unix_s),
            expire_time=None if pin.expire_unix_s is None else timestamp(pin.expire_unix_s),
        )

    def _lockout(self, bank: str) -> pb.Lockout:
        lockout = self._state.lockouts[bank]
        return pb.Lockout(
            bank=self._bank_name(bank),
            author=lockout.author,
            reason=lockout.reason,
            create_time=timestamp(lockout.created_unix_s),
        )

    def _reservation(self, reservation: Reservation) -> pb.Reservation:
        served = 0
        for bank, held in self._state.holdings.items():
            model = self._state.models[bank]
            if model.device_class.inference_class == reservation.inference_class:
                served += sum(p.count for p in held.placements if model.points[p.point].mode is Mode.INFERENCE)
        return pb.Reservation(
            name=f"sites/{self._site}/reservations/{reservation.id}",
            device_class=reservation.inference_class,
            gpu_count=reservation.device_count,
            start_time=timestamp(reservation.from_s),
            end_time=timestamp(reservation.until_s),
            price_usd_per_gpu_h=str(reservation.price_usd_per_device_h),
            uptime_ratio=reservation.uptime_ratio,
            credit_steps=[f"{s.below_uptime_ratio:g}:{s.credit_ratio}" for s in reservation.credit_steps],
            author=reservation.author,
            served_gpu_count=min(served, reservation.device_count),
        )


def _mode(wire: link_pb2.Mode) -> Mode:
    mode = next((m for m, number in MODES.items() if number == wire), None)
    if mode is None:
        raise InvalidInput("mode is one of mining, inference, standby, off.", reason="BAD_MODE")
    return mode


def _page(items: Sequence[Item], size: int, token: str) -> tuple[Sequence[Item], str]:
    if size < 0 or size > MAX_PAGE:
        raise InvalidInput(f"page_size is {size}: give 0 (for {DEFAULT_PAGE}) to {MAX_PAGE}.", reason="BAD_PAGE_SIZE")
    try:
        start = int(token) if token else 0
    except ValueError:
        start = -1
    if start < 0:
        raise InvalidInput("page_token is not one of ours: start again without it.", reason="BAD_PAGE_TOKEN")
    end = start + (size or DEFAULT_PAGE)
    return items[start:end], str(end) if end < len(items) else ""


def _decimal(text: str, field: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite():
        raise InvalidInput(
            f"{field} is {text!r}: write a decimal number such as 2.35.",
            reason="BAD_DECIMAL",
            metadata={"field": field},
        )
    return value


def _decimal_text(text: str, field: str) -> str:
    return str(_decimal(text, field)) if text else ""


def _credit_step(text: str) -> CreditStep:
    below, _, share = text.partition(":")
    return CreditStep(
        below_uptime_ratio=float(_decimal(below, "credit_steps")), credit_ratio=_decimal(share, "credit_steps")
    )
