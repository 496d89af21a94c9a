"""Whether a unit of GPUs is empty, by readings that began after whatever held it was seen to go. Pure.

Decides when nothing is left on a unit's GPUs, and what to tell of who holds it. Knows no orders. Invariant: a GPU that does not answer,
or whose processes were not read since, is not empty: a pod that is off every list may still draw.
"""

from __future__ import annotations

from collections.abc import Sequence

from swingbus_agent.domain.orders import HoldingReport
from swingbus_agent.domain.readings import Condition
from swingbus_agent.domain.views import DeviceView, UnitView

_MOST_HOLDERS = 200  # the controller takes 256; kubelets before 1.34 list every pod that has ended


def why_not_empty(state: UnitView, views: Sequence[DeviceView | None]) -> str:
    """Return what says that a process may be on the unit's GPUs; empty where later readings show none.

    Args:
        state: what is known of the unit's workload.
        views: the newest reading of each of its GPUs, None where there was none.
    """
    if state.has_process:
        return state.reason or "its workload lives"
    for view in views:
        if view is None:
            return "a GPU of it was not read yet"
        if view.condition is not Condition.OK:
            return f"{view.device} is {view.condition.name.lower()}: what runs on it cannot be read"
        if view.process_count is None or view.processes_read_s < state.since_s:
            return f"the processes on {view.device} were not read since"
        if view.process_count:
            return f"processes on {view.device}: {view.process_count}"
    return ""


def report_holding(state: UnitView, views: Sequence[DeviceView | None]) -> HoldingReport | None:
    """Return who holds a unit, None where pods are not the workloads."""
    if state.holders is None:
        return None
    why = why_not_empty(state, views)
    reason = state.reason
    if why and not state.has_process:
        # Off every list, and yet not free: a person must see which of the two it is.
        reason = f"{state.reason or 'no pod holds it'}; {why}"
    return HoldingReport(
        unit=state.unit,
        holders=state.holders[:_MOST_HOLDERS],
        workload=state.workload if state.holders else "",
        has_process=bool(why),
        reason=reason,
    )
