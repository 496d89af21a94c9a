"""What to tell the controller of one bank: the governor's part and the execution's, side by side."""

from __future__ import annotations

import math

from swingbus_agent.domain.execution import BankExecution
from swingbus_agent.domain.governor import Governor
from swingbus_agent.domain.orders import BankOrder, BankReport


def bank_report(
    governor: Governor, execution: BankExecution, *, name: str, order: BankOrder | None, now_s: float
) -> BankReport:
    """Return the report; Applied is told only once nothing is on its way to its target any more."""
    told = governor.report(name, now_s)
    allowance = governor.allowance(name, now_s)
    is_moving = execution.is_in_progress(now_s)
    applied = None if is_moving else told.applied
    reported_w = told.reported_w if told.reported_w is not None and math.isfinite(told.reported_w) else None
    return BankReport(
        bank=name,
        epoch=told.grant_epoch,
        generation=told.grant_generation,
        grant_w=told.grant_w or 0.0,
        allowed_w=allowance.watts if math.isfinite(allowance.watts) else 0.0,
        applied_generation=0 if applied is None else applied.generation,
        applied_boottime_s=0.0 if applied is None else applied.at_s,
        has_in_flight=is_moving,
        held_count=execution.held_count(),
        observed=execution.observed(),
        stragglers=execution.stragglers(now_s),
        counted_power_w=governor.counted_w(name) or 0.0,
        safe_shares=() if order is None else order.safe_shares,
        ready_workloads=execution.ready_workloads(),
        failed_workloads=execution.failed_workloads(),
        released_units=execution.released_units(),
        reported_w=reported_w,
        is_lapsed=told.is_lapsed,
        is_lost=told.is_lost,
        unheld_count=0 if told.applied is None else told.applied.unheld_count,
        locked_out=order is not None and order.locked_out,
        locked_devices=() if order is None else order.locked_devices,
        unit_holdings=execution.unit_holdings(),
    )
