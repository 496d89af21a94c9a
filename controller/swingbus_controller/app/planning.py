"""Planning: show the planner the fleet as the ledger believes it, and turn admitted moves into recorded flips.

Refuses to decide anything itself: `planner.plan` and `admission.admit` do. A plan never changes a watt; only flips do, one record each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from swingbus_controller.domain.flips.admission import Admission, admit, flip_of
from swingbus_controller.domain.flips.boot_axis import axis_at
from swingbus_controller.domain.flips.flip import Direction, Flip, WattState, step
from swingbus_controller.domain.flips.flip_events import Begun
from swingbus_controller.domain.flips.placement import BankModel, Holdings, stuck_counts
from swingbus_controller.domain.planning.market import MarketView
from swingbus_controller.domain.planning.outcome import claim_fixed
from swingbus_controller.domain.planning.packing import EPSILON_W, Headroom
from swingbus_controller.domain.planning.plan import (
    PLANNABLE,
    Authority,
    Availability,
    BankView,
    FeederView,
    Holding,
    Plan,
    PlanView,
    Transit,
)
from swingbus_controller.domain.planning.planner import plan
from swingbus_controller.domain.planning.points import DeviceKind, Mode
from swingbus_controller.domain.planning.policy import FlipTimes
from swingbus_controller.domain.power.bank import BankState
from swingbus_controller.domain.power.limits import Limit, lowest_limit_w
from swingbus_controller.domain.site.reservation import needs_at
from swingbus_controller.domain.site_state import SiteState

# A limit that comes within this time is planned for: a shed with its evidence takes about so long.
LOOK_AHEAD_S = 45.0
PLANNER = "planner"

AVAILABILITY = {
    BankState.HELD: Availability.HELD,
    BankState.GROWING: Availability.SHRINK_ONLY,
    BankState.SHRINKING: Availability.SHRINK_ONLY,
    BankState.ADOPTING: Availability.SHRINK_ONLY,
    BankState.DARK: Availability.DARK,
    BankState.DISOBEYING: Availability.DISOBEYING,
    BankState.ISOLATED: Availability.ISOLATED,
}


def feeder_views(
    state: SiteState, holdings: Mapping[str, Holdings], now_s: float, now_unix_s: float
) -> tuple[FeederView, ...]:
    """Return what each feeder leaves for claims: its limit soon in force, less U, R, what groups draw beyond their claims, and banks
    that the planner can't see.
    """
    ledger = state.ledger
    is_control = state.authority is Authority.CONTROL  # else nobody is granted anything, and nobody proves anything
    unseen_w = dict.fromkeys(state.site.tree.feeders, 0.0)
    for bank in state.site.banks:
        if bank.name not in holdings:
            for above, loss in state.site.tree.path(bank.feeder):
                unseen_w[above] += ledger.claim_w(bank.name) * loss
    views: list[FeederView] = []
    for name in state.site.feeders_in_order():
        feeder = state.site.tree.feeder(name)
        limits = ledger.limits(name)
        limit_w = lowest_limit_w(limits, now_s, LOOK_AHEAD_S)
        taken_w = ledger.uncontrolled_w(name, now_s) + ledger.margin_w(name, limit_w)
        tightest = min(limits, key=lambda lim: _soon(lim, now_s), default=None)
        views.append(
            FeederView(
                feeder=name,
                parent=feeder.parent,
                available_w=limit_w - taken_w - ledger.beyond_w(name) - unseen_w[name],
                doubted_w=max(0.0, ledger.claimed_w(name, for_growth=True) - ledger.claimed_w(name))
                if is_control
                else 0.0,
                loss_ratio=feeder.losses_ratio,
                limit_reason="no limit" if tightest is None else tightest.source,
                limit_until_s=None
                if tightest is None or tightest.end_s is None
                else tightest.end_s - now_s + now_unix_s,
            )
        )
    return tuple(views)


def _soon(limit: Limit, now_s: float) -> float:
    watts = limit.lowest_w(now_s, LOOK_AHEAD_S)
    return float("inf") if watts is None else watts


def bank_view(state: SiteState, model: BankModel, holdings: Holdings, now_s: float, now_unix_s: float) -> BankView:
    """Return one bank as the planner sees it."""
    open_flips = state.open_flips(model.name)
    # Units of failed flips are out of use; their watts are in what is fixed.
    out_of_use = {int(u) for f in open_flips for u in f.unit_ids} | holdings.charged_units()
    in_flip_count: dict[str, int] = {}
    for flip in open_flips:
        in_flip_count[flip.origin.name] = in_flip_count.get(flip.origin.name, 0) + flip.count
    charged: dict[str, int] = {}
    for charge in holdings.charges:
        charged[charge.point] = charged.get(charge.point, 0) + charge.count
    mining = {
        name: holdings.count_at(name) - in_flip_count.get(name, 0) - charged.get(name, 0)
        for name in {p.point for p in holdings.placements if model.points[p.point].mode is Mode.MINING}
    }
    # Machines that ignore sleep stay where they are, whatever is planned: a plan that rests them would never be proven.
    stuck = stuck_counts(model, mining, state.ignoring_count(model.name))
    stuck_w = sum(count * model.points[name].claim_w for name, count in stuck.items())
    stuck_draw_w = sum(count * model.points[name].draw_w for name, count in stuck.items())
    held: list[Holding] = []
    for placement in holdings.placements:
        units = tuple(u for u in placement.units if u not in out_of_use)
        if model.kind is DeviceKind.GPU:
            count = len(units) * model.device_class.unit_size
        else:
            taken = min(placement.count, in_flip_count.get(placement.point, 0))
            in_flip_count[placement.point] = in_flip_count.get(placement.point, 0) - taken
            lost = min(placement.count - taken, charged.get(placement.point, 0))
            charged[placement.point] = charged.get(placement.point, 0) - lost
            kept = min(placement.count - taken - lost, stuck.get(placement.point, 0))
            stuck[placement.point] = stuck.get(placement.point, 0) - kept
            count = placement.count - taken - lost - kept
        if count > 0:
            held.append(
                Holding(
                    point=placement.point,
                    count=count,
                    since_s=placement.since_s,
                    mode_since_s=placement.mode_since_s,
                    unit_ids=tuple(str(u) for u in units),
                )
            )
    availability, note = _availability(state, model, now_s)
    pin = state.pins.get(model.name)
    return BankView(
        bank=model.name,
        feeder=model.declared.feeder,
        kind=model.kind,
        points=tuple(model.points.values()),
        holdings=tuple(held),
        transits=tuple(
            Transit(
                flip=f.id, from_point=f.source.name, to_point=f.destination.name, count=f.count, unit_ids=f.unit_ids
            )
            for f in open_flips
        ),
        fixed_claim_w=model.fixed_claim_w + sum(c.claim_w for c in holdings.charges) + stuck_w,
        fixed_draw_w=model.fixed_claim_w + stuck_draw_w,
        unit_size=model.device_class.unit_size,
        inference_class=model.device_class.inference_class or None,
        mining_class=model.device_class.mining_class or None,
        availability=availability,
        held_claim_w=None
        if availability in (Availability.HELD, Availability.SHRINK_ONLY)
        else state.ledger.claim_w(model.name),
        pinned_reason=f"pinned by {pin.author}: {pin.reason}" if pin is not None and pin.holds(now_unix_s) else None,
        note=note,
    )


def _availability(state: SiteState, model: BankModel, now_s: float) -> tuple[Availability, str | None]:
    lockout = state.lockouts.get(model.name)
    if lockout is not None:
        return Availability.LOCKED_OUT, f"locked out by {lockout.author}: {lockout.reason}"
    ledger = state.ledger
    if state.authority is not Authority.CONTROL:
        # Nothing is adopted or proven below CONTROL: a plan to look at takes machines as they report themselves.
        is_live = ledger.is_live(model.name, now_s)
        return (Availability.HELD, None) if is_live else (Availability.DARK, "its agent is silent")
    availability = AVAILABILITY[ledger.state(model.name, now_s)]
    if availability is Availability.HELD and now_s < ledger.disturbed_until_s:
        return Availability.SHRINK_ONLY, "a disturbance is too fresh"
    return availability, None if availability is Availability.HELD else ledger.state(model.name, now_s).value


def _as_it_is(view: BankView, now_s: float) -> BankView:
    return view


def plan_view(
    state: SiteState,
    holdings: Mapping[str, Holdings],
    revision: int,
    now_s: float,
    now_unix_s: float,
    *,
    in_cluster: Callable[[BankView, float], BankView] = _as_it_is,
) -> PlanView:
    """Return the fleet as the planner sees it; banks that nobody has reported yet are left out, but for what they may claim.

    Args:
        in_cluster: adds what the cluster says of a bank whose workloads are pods.
    """
    return PlanView(
        revision=revision,
        site=state.site.name,
        feeders=feeder_views(state, holdings, now_s, now_unix_s),
        banks=tuple(
            in_cluster(bank_view(state, state.models[name], held, now_s, now_unix_s), now_s)
            for name, held in sorted(holdings.items())
        ),
        firm_needs=needs_at(state.reservations.values(), now_unix_s),
        authority=state.authority,
    )


def make_plan(
    state: SiteState,
    holdings: Mapping[str, Holdings],
    market: MarketView,
    revision: int,
    now_s: float,
    now_unix_s: float,
    *,
    in_cluster: Callable[[BankView, float], BankView] = _as_it_is,
) -> tuple[Plan, Admission]:
    """Return a plan for now and which of its moves may begin; `holdings` are those recorded or, below CONTROL, those reported."""
    view = plan_view(state, holdings, revision, now_s, now_unix_s, in_cluster=in_cluster)
    made = plan(view, market, state.site.policy, now_unix_s)
    return made, admit(made, view, now_unix_s)


def overtaken_growth(
    state: SiteState, holdings: Mapping[str, Holdings], revision: int, now_s: float, now_unix_s: float
) -> list[Flip]:
    """Return growth of earlier plans that only waits for watts, where limits soon in force leave no room for it beside all that works,
    newest first.

    It has touched nothing, so it gives way before any machine rests for it. What an operator asked for is made room for.
    """
    waiting = [f for f in state.open_flips() if f.author == PLANNER and is_waiting_growth(f) and f.bank in holdings]
    if not waiting:
        return []
    view = plan_view(state, holdings, revision, now_s, now_unix_s)
    room = Headroom(view.wary().feeders)
    claim_fixed(room, view.banks)
    paths = {bank.bank: room.path(bank.feeder, bank.bank) for bank in view.banks}
    for bank in view.banks:
        if bank.availability in PLANNABLE:
            room.take(paths[bank.bank], sum(h.count * bank.point(h.point).claim_w for h in bank.holdings))
    overtaken: list[Flip] = []
    for flip in reversed(waiting):
        if any(room.free_w[feeder] < -EPSILON_W for feeder, _ in paths[flip.bank]):
            room.take(paths[flip.bank], -flip.count * flip.claim_delta_w)
            overtaken.append(flip)
    return overtaken


def pinned_growth(state: SiteState, now_unix_s: float) -> list[Flip]:
    """Return growth of earlier plans that only waits for watts in a bank that was pinned since: the bank stays as it is."""
    pins = {bank for bank, pin in state.pins.items() if pin.holds(now_unix_s)}
    return [f for f in state.open_flips() if f.bank in pins and f.author == PLANNER and is_waiting_growth(f)]


def is_waiting_growth(flip: Flip) -> bool:
    """Tell whether a flip has only asked for watts so far: nothing was drained, nothing was started."""
    return flip.watts is WattState.ASKED and flip.direction is Direction.FORWARD and flip.has_touched_nothing


def begun_flips(
    state: SiteState,
    made: Plan,
    admission: Admission,
    *,
    flip_id: str,
    now_s: float,
    now_unix_s: float,
    times_of: Callable[[str, FlipTimes], FlipTimes] = lambda bank, times: times,
) -> list[Flip]:
    """Return the admitted moves as flips that have begun, in the order in which they are to be carried out."""
    views = {b.bank: b for b in made.view.banks}
    flips: list[Flip] = []
    for number, admitted in enumerate(admission.admitted):
        flip = flip_of(
            admitted,
            views[admitted.move.bank],
            id=f"{flip_id}{number}",
            author=PLANNER,
            now_s=now_s,
            axis=axis_at(state.ledger.boot_id, now_s=now_s, now_unix_s=now_unix_s),
            times=times_of(admitted.move.bank, state.site.policy.times),
        )
        begun, _ = step(flip, Begun(event_id=f"{flip.id}.begun", at_s=now_s))
        flips.append(begun)
    return flips
