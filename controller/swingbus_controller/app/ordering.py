"""Orders: the complete desired state of each agent, made from what is recorded, and handed to whoever waits for it.

Invariant: an order is made only from folded records and for banks that were adopted in this epoch; it is sent again and again until a
newer one exists, and the agent's fence decides which is newest.
"""

from __future__ import annotations

import asyncio

from swingbus_controller.domain.fleet.orders import (
    AdoptOrder,
    AgentOrder,
    BankOrder,
    PointOrder,
    SafeShareStep,
    Urgency,
)
from swingbus_controller.domain.flips.placement import BankModel, counting, point_orders
from swingbus_controller.domain.power.budget_events import GrantKind
from swingbus_controller.domain.site_state import SiteState


class OrderBook:
    """The newest order of each agent."""

    def __init__(self, state: SiteState, instance: str) -> None:
        self._state = state
        self._instance = instance
        self._orders: dict[str, AgentOrder] = {}
        self._changed: dict[str, asyncio.Event] = {}
        # An order follows from its banks' records alone: it is made anew where one of those was folded, and nowhere else.
        self._changed_banks = state.changed_banks()

    def adopt_order(self, agent: str) -> AdoptOrder:
        """Return what fences the agent to our epoch and tells it how its banks are counted."""
        return AdoptOrder(
            epoch=self._state.ledger.epoch,
            controller_instance=self._instance,
            counting=tuple(counting(m) for m in self._state.models_of.get(agent, ())),
        )

    def order_for(self, agent: str) -> AgentOrder | None:
        """Return the newest order of our epoch, None before the first."""
        order = self._orders.get(agent)
        return order if order is not None and order.epoch == self._state.ledger.epoch else None

    async def wait_order(self, agent: str, after_generation: int) -> AgentOrder:
        """Return when an order newer than `after_generation` is there."""
        while True:
            order = self.order_for(agent)
            if order is not None and order.generation > after_generation:
                return order
            await self._changed.setdefault(agent, asyncio.Event()).wait()

    def refresh(self, agent: str | None = None) -> tuple[str, ...]:
        """Make orders anew, of one agent or of all; return agents whose order changed."""
        if agent is None:
            changed = dict.fromkeys(self._state.models[bank].declared.agent for bank in self._changed_banks)
            return tuple(name for name in sorted(changed) if self._refresh(name))
        return (agent,) if self._refresh(agent) else ()

    def _refresh(self, agent: str) -> bool:
        names = {model.name for model in self._state.models_of[agent]}
        if not names & self._changed_banks:
            return False
        self._changed_banks -= names
        banks = tuple(
            order for order in (self._bank_order(m) for m in self._state.models_of[agent]) if order is not None
        )
        old = self._orders.get(agent)
        epoch = self._state.ledger.epoch
        if not banks or (old is not None and old.epoch == epoch and old.banks == banks):
            return False
        # Generations rise across our own epochs too: whoever waits for a newer order waits by this number.
        self._orders[agent] = AgentOrder(
            epoch=epoch,
            controller_instance=self._instance,
            generation=1 if old is None else old.generation + 1,
            banks=banks,
            ttl_s=self._state.site.protocol.ttl_s,
        )
        event = self._changed.pop(agent, None)
        if event is not None:
            event.set()
        return True

    def ordered_points(self, model: BankModel) -> tuple[PointOrder, ...]:
        """Return what the bank is ordered to in the newest order; empty before the first."""
        order = self.order_for(model.declared.agent)
        if order is None:
            return ()
        return next((b.points for b in order.banks if b.bank == model.declared.bank), ())

    def generation(self, agent: str) -> int:
        """Return the generation of the newest order, 0 before the first."""
        order = self.order_for(agent)
        return 0 if order is None else order.generation

    def _bank_order(self, model: BankModel) -> BankOrder | None:
        ledger = self._state.ledger
        newest = ledger.newest_grant(model.name)
        holdings = self._state.holdings.get(model.name)
        if newest is None or holdings is None:
            return None
        spec = model.spec
        flips = self._state.open_flips(model.name)
        fixed_w = spec.host_w + spec.cooling_w + spec.start_peak_w
        budget_w = (newest.grant_w / (1.0 + spec.losses_ratio) - fixed_w) / (1.0 + spec.cooling_ratio)
        is_urgent = newest.kind is GrantKind.SAFETY or any(f.is_safety for f in flips)
        locked = model.name in self._state.lockouts
        return BankOrder(
            bank=model.declared.bank,
            generation=newest.generation,
            grant_w=newest.grant_w,
            device_budget_w=max(0.0, budget_w),
            points=point_orders(model, holdings, flips, is_locked_out=locked),
            urgency=Urgency.EMERGENCY if is_urgent else Urgency.PLANNED,
            safe_shares=(SafeShareStep(start_unix_s=None, power_w=spec.safe_share_w),),
            locked_out=locked,
            starts_per_s=_starts_per_s(self._state),
            for_instance=newest.for_instance,
        )


def _starts_per_s(state: SiteState) -> float:
    protocol = state.site.protocol
    return 0.0 if protocol.inrush_count is None else protocol.inrush_count / protocol.inrush_window_s
