"""Planning: show the planner the fleet as the ledger believes it, and turn admitted moves into recorded flips.

Refuses to decide anything itself: `planner.plan` and `admission.admit` do. A plan never changes a watt; only flips do, one record each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from swingbus_controller.app.bank_views import BankViews
from swingbus_controller.domain.flips.admission import Admission, admit, flip_of
from swingbus_controller.domain.flips.boot_axis import axis_at
from swingbus_controller.domain.flips.flip import Direction, Flip, WattState
from swingbus_controller.domain.flips.flip_events import Begun
from swingbus_controller.domain.flips.flip_steps import step
from swingbus_controller.domain.flips.placement import Holdings
from swingbus_controller.domain.planning.market import MarketView
from swingbus_controller.domain.planning.outcome import standing_room
from swingbus_controller.domain.planning.packing import EPSILON_W
from swingbus_controller.domain.planning.plan import (
    Askers,
    Authority,
    BankView,
    FeederView,
    Plan,
    PlanView,
)
from swingbus_controller.domain.planning.planner import plan
from swingbus_controller.domain.planning.policy import FlipTimes
from swingbus_controller.domain.power.limits import Limit, lowest_limit_w
from swingbus_controller.domain.site.reservation import needs_at
from swingbus_controller.domain.site_state import SiteState

# A limit that comes within this time is planned for: a shed with its evidence takes about so long.
LOOK_AHEAD_S = 45.0
PLANNER = "planner"


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


class InCluster(Protocol):
    """What a cluster adds to banks whose workloads are pods."""

    def bank_view(self, view: BankView, now_s: float) -> BankView:
        """Return a bank as the planner is to see it."""

    def askers(self) -> Mapping[str, Askers]:
        """Return who asks for inference in such banks, by bank."""


def plan_view(
    state: SiteState,
    views: BankViews,
    holdings: Mapping[str, Holdings],
    revision: int,
    now_s: float,
    now_unix_s: float,
    cluster: InCluster | None = None,
) -> PlanView:
    """Return the fleet as the planner sees it; banks that nobody has reported yet are left out, but for what they may claim.

    Args:
        views: of this state's banks.
        cluster: where workloads of banks are pods.
    """
    banks = (views.view(name, held, now_s, now_unix_s) for name, held in sorted(holdings.items()))
    return PlanView(
        revision=revision,
        site=state.site.name,
        feeders=feeder_views(state, holdings, now_s, now_unix_s),
        banks=tuple(banks if cluster is None else (cluster.bank_view(bank, now_s) for bank in banks)),
        firm_needs=needs_at(state.reservations.values(), now_unix_s),
        askers={} if cluster is None else cluster.askers(),
        authority=state.authority,
    )


def make_plan(
    state: SiteState,
    views: BankViews,
    holdings: Mapping[str, Holdings],
    market: MarketView,
    revision: int,
    now_s: float,
    now_unix_s: float,
    *,
    cluster: InCluster | None = None,
) -> tuple[Plan, Admission]:
    """Return a plan for now and which of its moves may begin; `holdings` are those recorded or, below CONTROL, those reported."""
    view = plan_view(state, views, holdings, revision, now_s, now_unix_s, cluster)
    made = plan(view, market, state.site.policy, now_unix_s)
    return made, admit(made, view, now_unix_s)


def overtaken_growth(
    state: SiteState,
    views: BankViews,
    holdings: Mapping[str, Holdings],
    revision: int,
    now_s: float,
    now_unix_s: float,
) -> list[Flip]:
    """Return growth of earlier plans that only waits for watts, where limits soon in force leave no room for it beside all that works,
    newest first.

    It has touched nothing, so it gives way before any machine rests for it. What an operator asked for is made room for.
    """
    waiting = [f for f in state.open_flips() if f.author == PLANNER and is_waiting_growth(f) and f.bank in holdings]
    if not waiting:
        return []
    view = plan_view(state, views, holdings, revision, now_s, now_unix_s)
    room = standing_room(view.wary())
    overtaken: list[Flip] = []
    for flip in reversed(waiting):
        path = room.path(state.models[flip.bank].declared.feeder, flip.bank)
        if any(room.free_w[feeder] < -EPSILON_W for feeder, _ in path):
            room.take(path, -flip.count * flip.claim_delta_w)
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
