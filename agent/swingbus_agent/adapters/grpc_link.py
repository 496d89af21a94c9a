"""The agent link over gRPC: two streams on one channel, which lives until the certificate is renewed.

Decides nothing about telemetry or control. Invariants: the first message of a stream is its hello; whatever gRPC raises leaves here
as a SwingbusError; nothing waits without a deadline but the reading of the next message, which keepalive ends; no open session is
cut off for the sake of a new certificate.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import grpc
import grpc.aio

from swingbus.faults import InvalidInput, SwingbusError, TimedOut, Unreachable
from swingbus.link.v1alpha import agent_link_service_pb2 as pb
from swingbus.link.v1alpha import link_pb2
from swingbus.link.v1alpha.agent_link_service_pb2_grpc import AgentLinkServiceStub
from swingbus.rpc.status import fault_from_rpc_error
from swingbus_agent.codec import (
    adopt_from_proto,
    duration_s,
    inventory_to_proto,
    order_from_proto,
    renewed_from_proto,
    report_to_proto,
)
from swingbus_agent.domain.orders import AgentReport
from swingbus_agent.domain.readings import Inventory
from swingbus_agent.domain.spool_policy import Acknowledged, parse_ranges
from swingbus_agent.ports.link import (
    Acknowledgement,
    ControlMessage,
    MalformedOrder,
    TelemetryHello,
    Welcome,
)


class ChannelSource(Protocol):
    """Opens channels to the controller."""

    @property
    def endpoint(self) -> str: ...

    def is_renewed(self) -> bool:
        """Tell whether a channel that is opened now is another one than the last."""
        ...

    def open(self) -> grpc.aio.Channel: ...


class _Line:
    """One channel, and how many sessions use it."""

    def __init__(self, channel: grpc.aio.Channel, target: str) -> None:
        self.stub: Any = AgentLinkServiceStub(channel)
        self.channel = channel
        self.target = target
        self.session_count = 0


class GrpcLink:
    """Opens sessions for one agent; a channel is made at the first use, and anew when its source is renewed."""

    def __init__(self, *, agent: str, instance_uid: str, channels: ChannelSource, timeout_s: float) -> None:
        self._agent = agent
        self._instance_uid = instance_uid
        self._channels = channels
        self._timeout_s = timeout_s
        self._line: _Line | None = None

    @asynccontextmanager
    async def _open_line(self) -> AsyncIterator[_Line]:
        """Lend the newest channel to one session; the last session on an older one closes it."""
        before = self._line
        if before is None or self._channels.is_renewed():
            self._line = _Line(self._channels.open(), f"the controller at {self._channels.endpoint}")
            if before is not None and not before.session_count:
                await before.channel.close(grace=None)
        line = self._line
        assert line is not None
        line.session_count += 1
        try:
            yield line
        finally:
            line.session_count -= 1
            if line is not self._line and not line.session_count:
                await line.channel.close(grace=None)

    @asynccontextmanager
    async def open_telemetry(self, hello: TelemetryHello) -> AsyncIterator[GrpcTelemetrySession]:
        async with self._open_line() as line:
            # Not compressed: gzip would halve 15 kB a round and cost the controller a third of its ingest.
            call = line.stub.StreamTelemetry()
            try:
                first = pb.TelemetryHello(
                    agent=self._agent,
                    instance_uid=self._instance_uid,
                    spool_uid=hello.spool_uid,
                    oldest_sequence=hello.oldest_sequence,
                    newest_sequence=hello.newest_sequence,
                    inventory=inventory_to_proto(hello.inventory),
                )
                await _write(call, pb.StreamTelemetryRequest(hello=first), self._timeout_s, line.target)
                answer = await _read(call, self._timeout_s, line.target)
                if answer.WhichOneof("message") != "welcome":
                    raise Unreachable(
                        f"{line.target} began telemetry with {answer.WhichOneof('message')}, not with a welcome",
                        reason="PROTOCOL_BROKEN",
                    )
                welcome = Welcome(
                    acknowledged=Acknowledged(
                        up_to=answer.welcome.acked_sequence, ranges=parse_ranges(answer.welcome.acked_ranges)
                    ),
                    credit=answer.welcome.credit,
                    period_s=duration_s(answer.welcome.period),
                )
                yield GrpcTelemetrySession(call, welcome, timeout_s=self._timeout_s, target=line.target)
            finally:
                call.cancel()

    @asynccontextmanager
    async def open_control(self, report: AgentReport, ticket: str) -> AsyncIterator[GrpcControlSession]:
        async with self._open_line() as line:
            call = line.stub.StreamControl()
            try:
                hello = pb.ControlHello(
                    agent=self._agent, instance_uid=self._instance_uid, effective=report_to_proto(report), ticket=ticket
                )
                await _write(call, pb.StreamControlRequest(hello=hello), self._timeout_s, line.target)
                yield GrpcControlSession(call, timeout_s=self._timeout_s, target=line.target)
            finally:
                call.cancel()

    async def aclose(self) -> None:
        """Close the channel; nothing is told to the devices: leaving is not a command."""
        if self._line is not None:
            await self._line.channel.close(grace=None)
            self._line = None


class GrpcTelemetrySession:
    """One telemetry stream after its welcome."""

    def __init__(self, call: Any, welcome: Welcome, *, timeout_s: float, target: str) -> None:
        self._call = call
        self._welcome = welcome
        self._timeout_s = timeout_s
        self._target = target

    @property
    def welcome(self) -> Welcome:
        return self._welcome

    async def send_batch(self, payload: bytes) -> None:
        batch = link_pb2.TelemetryBatch.FromString(payload)
        await _write(self._call, pb.StreamTelemetryRequest(batch=batch), self._timeout_s, self._target)

    async def send_inventory(self, inventory: Inventory) -> None:
        message = pb.StreamTelemetryRequest(inventory=inventory_to_proto(inventory))
        await _write(self._call, message, self._timeout_s, self._target)

    async def receive(self) -> Acknowledgement:
        while True:
            answer = await _read(self._call, None, self._target)
            if answer.WhichOneof("message") == "ack":
                ack = answer.ack
                return Acknowledgement(
                    acknowledged=Acknowledged(up_to=ack.acked_sequence, ranges=parse_ranges(ack.acked_ranges)),
                    rejected=tuple((each.sequence, each.reason) for each in ack.rejected),
                )


class GrpcControlSession:
    """One control stream."""

    def __init__(self, call: Any, *, timeout_s: float, target: str) -> None:
        self._call = call
        self._timeout_s = timeout_s
        self._target = target

    async def send_report(self, report: AgentReport) -> None:
        message = pb.StreamControlRequest(effective=report_to_proto(report))
        await _write(self._call, message, self._timeout_s, self._target)

    async def send_renewal(self, sent_boottime_ns: int, ticket: str) -> None:
        message = pb.StreamControlRequest(renewal=pb.Renewal(sent_boottime_ns=sent_boottime_ns, ticket=ticket))
        await _write(self._call, message, self._timeout_s, self._target)

    async def receive(self) -> ControlMessage | MalformedOrder:
        while True:
            answer = await _read(self._call, None, self._target)
            match answer.WhichOneof("message"):
                case "adopt":
                    return adopt_from_proto(answer.adopt)
                case "renewed":
                    return renewed_from_proto(answer.renewed)
                case "desired":
                    try:
                        return order_from_proto(answer.desired)
                    except InvalidInput as error:
                        return MalformedOrder(reason=str(error))
                case _:
                    continue  # a newer controller's message: not known, not fatal


async def _write(call: Any, message: object, timeout_s: float, target: str) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await call.write(message)
    except TimeoutError as error:
        raise TimedOut(f"{target} did not take a message within {timeout_s:g} s", reason="LINK_STALLED") from error
    except asyncio.InvalidStateError as error:  # the stream ended before: its status says why
        raise await _ended(call, timeout_s, target) from error
    except grpc.RpcError as error:
        raise fault_from_rpc_error(error, target) from error


async def _read(call: Any, timeout_s: float | None, target: str) -> Any:
    try:
        async with asyncio.timeout(timeout_s):
            answer = await call.read()
    except TimeoutError as error:
        raise TimedOut(f"{target} did not answer within {timeout_s:g} s", reason="LINK_STALLED") from error
    except grpc.RpcError as error:
        raise fault_from_rpc_error(error, target) from error
    if answer is grpc.aio.EOF:
        raise await _ended(call, 5.0, target)
    return answer


async def _ended(call: Any, timeout_s: float, target: str) -> SwingbusError:
    try:
        async with asyncio.timeout(timeout_s):
            code = await call.code()
            details = await call.details()
    except TimeoutError:
        return Unreachable(f"{target} ended the stream without a status", reason="STREAM_ENDED")
    if code is grpc.StatusCode.OK:
        return Unreachable(f"{target} ended the stream", reason="STREAM_ENDED")
    trailing = await call.trailing_metadata()
    return fault_from_rpc_error(
        grpc.aio.AioRpcError(code, await call.initial_metadata(), trailing, details=details), target
    )
