"""Banks as the planner sees them, worked out anew only where something changed: most plans meet most banks as they were.

Decides nothing. Invariant: what is returned never depends on what was asked before; where nothing changed it is the same object.
"""

from __future__ import annotations

from dataclasses import dataclass

from swingbus_controller.domain.flips.flip import Flip
from swingbus_controller.domain.flips.placement import BankModel, Holdings, stuck_counts
from swingbus_controller.domain.planning.plan import Authority, Availability, BankView, Holding, Transit
from swingbus_controller.domain.planning.points import DeviceKind, Mode
from swingbus_controller.domain.power.bank import BankState
from swingbus_controller.domain.site_state import SiteState

_AVAILABILITY = {
    BankState.HELD: Availability.HELD,
    BankState.GROWING: Availability.SHRINK_ONLY,
    BankState.SHRINKING: Availability.SHRINK_ONLY,
    BankState.ADOPTING: Availability.SHRINK_ONLY,
    BankState.DARK: Availability.DARK,
    BankState.DISOBEYING: Availability.DISOBEYING,
    BankState.ISOLATED: Availability.ISOLATED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """All that a view comes from, besides the bank's model."""

    holdings: Holdings
    open_flips: tuple[Flip, ...]
    ignoring_count: int
    availability: Availability
    note: str | None
    held_claim_w: float | None
    pinned_reason: str | None

    def is_same(self, other: _Source) -> bool:
        """Tell whether nothing has changed. Holdings and flips are replaced, never changed: the same object says the same."""
        if self.holdings is not other.holdings or self.open_flips is not other.open_flips:
            return False
        return (
            self.ignoring_count == other.ignoring_count
            and self.availability is other.availability
            and self.note == other.note
            and self.held_claim_w == other.held_claim_w
            and self.pinned_reason == other.pinned_reason
        )


class BankViews:
    """The views of one site's banks."""

    def __init__(self, state: SiteState) -> None:
        self._state = state
        self._known: dict[str, tuple[_Source, BankView]] = {}

    def view(self, name: str, holdings: Holdings, now_s: float, now_unix_s: float) -> BankView:
        """Return a bank as it is now; `holdings` are those recorded or, below CONTROL, those reported."""
        state, model = self._state, self._state.models[name]
        availability, note = _availability(state, model, now_s)
        pin = state.pins.get(name)
        source = _Source(
            holdings=holdings,
            open_flips=state.open_flips(name),
            ignoring_count=state.ignoring_count(name),
            availability=availability,
            note=note,
            held_claim_w=None
            if availability in (Availability.HELD, Availability.SHRINK_ONLY)
            else state.ledger.claim_w(name),
            pinned_reason=f"pinned by {pin.author}: {pin.reason}"
            if pin is not None and pin.holds(now_unix_s)
            else None,
        )
        known = self._known.get(name)
        if known is None or not known[0].is_same(source):
            known = self._known[name] = (source, _view(model, source))
        return known[1]


def _view(model: BankModel, source: _Source) -> BankView:
    holdings, open_flips = source.holdings, source.open_flips
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
    stuck = stuck_counts(model, mining, source.ignoring_count)
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
        availability=source.availability,
        held_claim_w=source.held_claim_w,
        pinned_reason=source.pinned_reason,
        note=source.note,
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
    availability = _AVAILABILITY[ledger.state(model.name, now_s)]
    if availability is Availability.HELD and now_s < ledger.disturbed_until_s:
        return Availability.SHRINK_ONLY, "a disturbance is too fresh"
    return availability, None if availability is Availability.HELD else ledger.state(model.name, now_s).value
