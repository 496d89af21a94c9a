"""What the devices of a bank draw by their own word, as far as it may be held against them. Pure.

Firmware reports watts late, and a machine that was told to rest ramps down for a while. So a device that was written to lately is
taken at what is read back of it, if it says more; one that had its firmware's longest known delay is taken at its word. Reading
errors need no allowance of their own: the factors that the grant was counted with hold them.
"""

from __future__ import annotations

from swingbus_agent.domain.views import DeviceView


def sure_draw_w(view: DeviceView, *, counted_w: float | None, told_s: float, delay_s: float) -> float:
    """Return the watts that a device surely draws by its newest reading.

    Args:
        view: the reading.
        counted_w: what it counts at as read back; None where that is not known.
        told_s: when the last write to it ended, or this run of the agent first saw it.
        delay_s: how long its firmware may take until a write shows in everything that it reports.
    """
    if view.power_w is None:
        return 0.0
    is_settled = view.read_started_s >= told_s + delay_s
    return view.power_w if is_settled or counted_w is None else min(view.power_w, counted_w)
