"""What the agent link needs of the part that decides. Below authority ADVISE no implementation is loaded at all."""

from __future__ import annotations

from typing import Protocol

from swingbus_controller.domain.fleet.frames import AgentInventory, BatchFrame
from swingbus_controller.domain.fleet.orders import AdoptOrder, AgentOrder, AgentReport, RenewalReply


class FrameSink(Protocol):
    """Takes telemetry the moment it is decoded (protection does not wait for the disk)."""

    def take_inventory(self, inventory: AgentInventory, now_s: float) -> None: ...

    def take_batch(self, batch: BatchFrame, now_s: float) -> None: ...


class ControlPlane(Protocol):
    """Takes agents' reports and says what each agent shall hold.

    All methods run in the event loop and return at once, but for the journal's fsync. `now_s` is the controller's
    CLOCK_BOOTTIME in seconds. The link service assigns markers: one counter per epoch, + 1 per control message sent, and asks just
    before it writes: None means that nothing may be written to this agent now (authority below CONTROL).
    """

    def take_report(self, report: AgentReport, *, is_hello: bool, now_s: float) -> None: ...

    def note_marker(self, agent: str, marker: int, now_s: float) -> None:
        """Tell that a control message with this marker was handed to the agent's stream."""
        ...

    def agent_gone(self, agent: str, now_s: float) -> None: ...

    def adopt_order(self, agent: str) -> AdoptOrder | None:
        """Return what fences the agent; it comes before anything else on a stream."""
        ...

    def renew(self, agent: str, sent_boottime_ns: int, now_s: float) -> RenewalReply | None: ...

    def order_for(self, agent: str) -> AgentOrder | None:
        """Return the newest journaled order, None also before the first."""
        ...

    async def wait_order(self, agent: str, after_generation: int) -> AgentOrder:
        """Return when an order newer than `after_generation` is journaled; whether it may be written is `order_for`'s to say."""
        ...
