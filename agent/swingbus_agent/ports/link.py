"""The controller as the agent's loops see it: two sessions that open, carry messages and end."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from swingbus_agent.domain.orders import AdoptOrder, AgentOrder, AgentReport, RenewalReply
from swingbus_agent.domain.readings import Inventory
from swingbus_agent.domain.spool_policy import Acknowledged


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryHello:
    """How a telemetry session begins."""

    spool_uid: str
    oldest_sequence: int
    newest_sequence: int
    inventory: Inventory


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The controller's answer; `period_s` is 0 where it wishes none."""

    acknowledged: Acknowledged
    credit: int
    period_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """Sequences that the controller holds durably, and those that it refuses for ever with the reason."""

    acknowledged: Acknowledged
    rejected: tuple[tuple[int, str], ...] = ()


class TelemetrySession(Protocol):
    """One open telemetry stream; the writer and the reader are one task each."""

    @property
    def welcome(self) -> Welcome: ...

    async def send_batch(self, payload: bytes) -> None: ...

    async def send_inventory(self, inventory: Inventory) -> None: ...

    async def receive(self) -> Acknowledgement:
        """Return the next acknowledgement. Raises a SwingbusError when the stream ends."""
        ...


ControlMessage = AdoptOrder | AgentOrder | RenewalReply


@dataclass(frozen=True, slots=True, kw_only=True)
class MalformedOrder:
    """A desired state that cannot be understood; the agent says why and carries on."""

    reason: str


class ControlSession(Protocol):
    """One open control stream; the writer and the reader are one task each."""

    async def send_report(self, report: AgentReport) -> None: ...

    async def send_renewal(self, sent_boottime_ns: int, ticket: str) -> None: ...

    async def receive(self) -> ControlMessage | MalformedOrder:
        """Return the next message. Raises a SwingbusError when the stream ends."""
        ...


class ControllerLink(Protocol):
    """Opens sessions over one channel. Opening raises a SwingbusError (Unreachable, Unauthenticated, ...)."""

    def open_telemetry(self, hello: TelemetryHello) -> AbstractAsyncContextManager[TelemetrySession]: ...

    def open_control(self, report: AgentReport, ticket: str) -> AbstractAsyncContextManager[ControlSession]: ...

    async def aclose(self) -> None: ...
