"""The agent link on the server: two streams per agent, one writer task each.

Decides how messages flow: credit, one acknowledgement per commit, markers, who replaces whom. Refuses to know: watts. Invariants:
exactly one task writes to a stream (two writers at once lose messages); the name in Hello is the certificate's; a newer stream of
an agent ends the older one; below authority CONTROL not one control message is sent, whatever it was when the stream began: the
control plane (which OBSERVE lacks) is asked for each message at the moment of writing.

Telemetry arrives as bytes and is parsed here, so that what is stored is what was sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from swingbus.clock import Clock
from swingbus.faults import Forbidden, InvalidInput, OverBudget, StaleRevision, TimedOut
from swingbus.link.v1alpha import agent_link_service_pb2 as pb2
from swingbus.link.v1alpha import link_pb2
from swingbus.logs import get_logger
from swingbus.rpc.caller import Caller, current_caller
from swingbus_controller.api import codec
from swingbus_controller.api.report_reader import ReportReader
from swingbus_controller.app.ingest import Hello, Ingest, TelemetrySession
from swingbus_controller.domain.fleet.fleet import Fleet, Newest
from swingbus_controller.domain.fleet.frames import AgentInventory, BatchFrame
from swingbus_controller.ports.control import ControlPlane
from swingbus_controller.ports.telemetry_store import LastBatch

SERVICE = "swingbus.link.v1alpha.AgentLinkService"
HELLO_TIMEOUT_S = 15.0
WRITE_TIMEOUT_S = 30.0
REPORT_PAUSE_S = 0.1  # between two reports of one agent that are taken in
MAX_ACK_RANGES = 256

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(eq=False, slots=True)
class _ControlStream:
    """What waits to be written to one agent: newest only, since everything is level-triggered."""

    reader: ReportReader
    agent: str
    ticket: str = ""
    is_fenced: bool = False
    ordered_generation: int = 0
    renewals: list[tuple[int, str]] = field(default_factory=list)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    replaced: asyncio.Event = field(default_factory=asyncio.Event)
    report: Any = None  # the newest that was read and not taken in yet
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    is_renewed: bool = False  # a renewal was read, and no report since


class AgentLinkService:
    """Serves agents. Add it with `add_to_server`; attach a control plane where the authority is above OBSERVE."""

    def __init__(
        self,
        *,
        ingest: Ingest,
        fleet: Fleet,
        clock: Clock,
        period_s: float,
        control: ControlPlane | None = None,
        caller: Callable[[], Caller] = current_caller,
    ) -> None:
        self._ingest = ingest
        self._fleet = fleet
        self._clock = clock
        self._period_s = period_s
        self._control = control
        self._caller = caller
        self._log = get_logger()
        self._controls: dict[str, _ControlStream] = {}
        self._marker = 0
        self._marker_epoch = 0

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Register both streams; telemetry requests stay bytes."""
        handlers = {
            "StreamTelemetry": grpc.stream_stream_rpc_method_handler(
                self.stream_telemetry,
                request_deserializer=None,
                response_serializer=pb2.StreamTelemetryResponse.SerializeToString,
            ),
            "StreamControl": grpc.stream_stream_rpc_method_handler(
                self.stream_control,
                request_deserializer=pb2.StreamControlRequest.FromString,
                response_serializer=pb2.StreamControlResponse.SerializeToString,
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    # Telemetry.

    async def stream_telemetry(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Serve one telemetry stream until the agent or a newer stream ends it."""
        caller = self._caller()
        first = _parse(await _first(requests))
        if first.WhichOneof("message") != "hello":
            raise InvalidInput("the first message of a telemetry stream is hello.", reason="NO_HELLO")
        hello = first.hello
        self._check_name(hello.agent, caller)
        inventory = codec.inventory_from_proto(hello.agent, hello.inventory)
        session = await self._ingest.open_session(
            Hello(
                agent=hello.agent,
                instance_uid=codec.check_uid(hello.instance_uid, "instance_uid"),
                spool_uid=codec.check_uid(hello.spool_uid, "spool_uid"),
                oldest_sequence=max(0, hello.oldest_sequence),
                newest_sequence=max(0, hello.newest_sequence),
                inventory=inventory,
                inventory_payload=hello.inventory.SerializeToString(deterministic=True),
                certificate_expire_unix_s=caller.not_after.timestamp(),
            )
        )
        del first, hello  # a stream lives for an hour: what was read of its inventory need not
        try:
            welcome = pb2.TelemetryWelcome(
                acked_sequence=session.stored.cumulative(),
                acked_ranges=session.stored.pairs_above(session.stored.cumulative(), MAX_ACK_RANGES),
                credit=self._ingest.credit,
                period=codec.duration(self._period_s),
            )
            await self._write(context, pb2.StreamTelemetryResponse(welcome=welcome))
            closing = asyncio.Event()
            full: OverBudget | None = None
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write_acks(session, context, closing))
                watcher = tasks.create_task(_end_when_replaced(session.replaced, session.agent))
                try:
                    await self._read_batches(session, requests)
                except OverBudget as error:
                    full = error
                # The agent closed its side, or may send no more: what it sent is still stored and acknowledged.
                while session.in_flight:
                    session.room.clear()
                    await session.room.wait()
                watcher.cancel()
                closing.set()
                session.changed.set()
            if full is not None:
                raise full
        finally:
            self._ingest.close_session(session)

    async def _read_batches(self, session: TelemetrySession, requests: AsyncIterator[bytes]) -> None:
        layout = self._layout(session.inventory)
        async for payload in requests:
            message = _parse(payload)
            match message.WhichOneof("message"):
                case "batch":
                    try:
                        batch = codec.batch_from_proto(message.batch, layout, newest=session.newest)
                    except InvalidInput as error:
                        self._ingest.reject(session, message.batch.sequence, str(error))
                        continue
                    self._ingest.accept(session, batch, payload)
                case "inventory":
                    inventory = codec.inventory_from_proto(session.agent, message.inventory)
                    await self._ingest.change_inventory(
                        session, inventory, message.inventory.SerializeToString(deterministic=True)
                    )
                    layout = self._layout(inventory)
                case "hello":
                    raise InvalidInput("hello came twice on one stream; open a new one.", reason="HELLO_TWICE")
                case _:
                    raise InvalidInput("an empty message on the telemetry stream.", reason="EMPTY_MESSAGE")
            if not self._ingest.has_room(session):
                await self._ingest.wait_room(session)

    async def _write_acks(self, session: TelemetrySession, context: Context, closing: asyncio.Event) -> None:
        """The only task that writes to this stream; ends after the last acknowledgement of a closing one."""
        while not closing.is_set() or session.changed.is_set():
            await session.changed.wait()
            await self._write_ack(session, context)

    async def _write_ack(self, session: TelemetrySession, context: Context) -> None:
        session.changed.clear()
        acked = session.stored.cumulative()
        ack = pb2.TelemetryAck(
            acked_sequence=acked,
            acked_ranges=session.stored.pairs_above(acked, MAX_ACK_RANGES),
            rejected=[pb2.RejectedBatch(sequence=s, reason=reason) for s, reason in session.take_rejected()],
        )
        await self._write(context, pb2.StreamTelemetryResponse(ack=ack))

    def _layout(self, inventory: AgentInventory) -> codec.Layout:
        return codec.layout_of(inventory, lambda meter: self._fleet.meter_feeder(inventory.agent, meter))

    # Control.

    async def stream_control(self, requests: AsyncIterator[pb2.StreamControlRequest], context: Context) -> None:
        """Serve one control stream: reports in; with a control plane, fence, orders and renewals out."""
        caller = self._caller()
        first = await _first(requests)
        if first.WhichOneof("message") != "hello":
            raise InvalidInput("the first message of a control stream is hello.", reason="NO_HELLO")
        hello = first.hello
        self._check_name(hello.agent, caller)
        codec.check_uid(hello.instance_uid, "instance_uid")
        stream = _ControlStream(agent=hello.agent, reader=ReportReader(hello.agent), ticket=_ticket(hello.ticket))
        old = self._controls.get(hello.agent)
        if old is not None:
            old.replaced.set()
        self._controls[hello.agent] = stream
        control = self._control
        try:
            self._take_report(stream, hello.effective, is_hello=True)
            del first, hello  # as above
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(_end_when_replaced(stream.replaced, stream.agent))]
                if control is not None:
                    stream.wake.set()
                    running.append(tasks.create_task(self._write_control(stream, control, context)))
                    running.append(tasks.create_task(self._follow_orders(stream, control)))
                running.append(tasks.create_task(self._take_reports(stream)))
                await self._read_control(stream, requests)
                for task in running:
                    task.cancel()
            self._take_newest(stream)
        finally:
            if self._controls.get(stream.agent) is stream:
                del self._controls[stream.agent]
                if control is not None:
                    control.agent_gone(stream.agent, self._clock.boottime_s())

    async def _read_control(self, stream: _ControlStream, requests: AsyncIterator[pb2.StreamControlRequest]) -> None:
        async for message in requests:
            match message.WhichOneof("message"):
                case "effective":
                    stream.report = message.effective
                    if stream.is_renewed:
                        # It may say that a grant is over, and its ticket is known already: nothing is to be decided between the two.
                        stream.is_renewed = False
                        self._take_newest(stream)
                    else:
                        stream.heard.set()
                case "renewal":
                    self._take_newest(stream)
                    stream.is_renewed = True
                    if self._control is None:
                        continue  # nothing was granted, so nothing is renewed
                    stream.ticket = _ticket(message.renewal.ticket) or stream.ticket
                    # Renewals that pile up behind a slow reader are answered by the newest alone.
                    stream.renewals = [(message.renewal.sent_boottime_ns, _ticket(message.renewal.ticket))]
                    stream.wake.set()
                case "hello":
                    raise InvalidInput("hello came twice on one stream; open a new one.", reason="HELLO_TWICE")
                case _:
                    raise InvalidInput("an empty message on the control stream.", reason="EMPTY_MESSAGE")

    async def _take_reports(self, stream: _ControlStream) -> None:
        """Take reports in, of those that pile up the newest alone: on a busy controller old news would only delay what is true now."""
        while True:
            await stream.heard.wait()
            stream.heard.clear()
            self._take_newest(stream)
            await asyncio.sleep(REPORT_PAUSE_S)

    def _take_newest(self, stream: _ControlStream) -> None:
        message, stream.report = stream.report, None
        if message is not None:
            self._take_report(stream, message, is_hello=False)

    def _take_report(self, stream: _ControlStream, message: Any, *, is_hello: bool) -> None:
        report = stream.reader.read(message)
        now_s = self._clock.boottime_s()
        self._fleet.take_report(report, now_s)
        if self._control is not None:
            self._control.take_report(report, is_hello=is_hello, now_s=now_s)

    async def _follow_orders(self, stream: _ControlStream, control: ControlPlane) -> None:
        generation = 0
        while True:
            generation = (await control.wait_order(stream.agent, generation)).generation
            stream.wake.set()

    async def _write_control(self, stream: _ControlStream, control: ControlPlane, context: Context) -> None:
        """The only task that writes to this stream: the fence first, then renewals, then the newest order."""
        while True:
            await stream.wake.wait()
            stream.wake.clear()
            if not stream.is_fenced:
                adopt = control.adopt_order(stream.agent)
                if adopt is None:
                    continue
                stream.is_fenced = True
                marker = self._next_marker(stream.agent, adopt.epoch, control)
                await self._write(context, codec.adopt_to_proto(adopt, marker=marker, ticket=stream.ticket))
            renewals, stream.renewals = stream.renewals, []
            for sent_boottime_ns, ticket in renewals:
                reply = control.renew(stream.agent, sent_boottime_ns, self._clock.boottime_s())
                if reply is None:
                    continue
                marker = self._next_marker(stream.agent, reply.epoch, control)
                await self._write(context, codec.renewal_to_proto(reply, marker=marker, ticket=ticket))
            order = control.order_for(stream.agent)
            if order is not None and order.generation > stream.ordered_generation:
                stream.ordered_generation = order.generation
                marker = self._next_marker(stream.agent, order.epoch, control)
                await self._write(context, codec.order_to_proto(order, marker=marker, ticket=stream.ticket))

    def _next_marker(self, agent: str, epoch: int, control: ControlPlane) -> int:
        """Return the next marker of the epoch; noted before it is sent, so that no reading can seem later than it is."""
        if epoch != self._marker_epoch:
            self._marker_epoch, self._marker = epoch, 0
        self._marker += 1
        control.note_marker(agent, self._marker, self._clock.boottime_s())
        return self._marker

    # Both.

    def _check_name(self, agent: str, caller: Caller) -> None:
        if agent != caller.name:
            raise Forbidden(
                f"the certificate is {caller.name!r}'s, but hello says {agent!r}; an agent speaks for itself only. "
                f"Issue a bundle with: swingbus-controller certificate issue --agent {agent[:63]}",
                reason="NAME_MISMATCH",
                metadata={"certificate": caller.name, "hello": agent[:100]},
            )

    async def _write(self, context: Context, message: Any) -> None:
        """Write one message; an agent that does not read loses its stream, not our memory."""
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await context.write(message)
        except TimeoutError:
            raise TimedOut(
                f"the agent has not read for {WRITE_TIMEOUT_S:.0f} s; connect again.", reason="SLOW_READER"
            ) from None


def decode_stored(last: LastBatch) -> tuple[AgentInventory, BatchFrame]:
    """Return what a stored batch says, as ingest saw it. Raises InvalidInput."""
    try:
        inventory = codec.inventory_from_proto(last.agent, link_pb2.Inventory.FromString(last.inventory))
    except DecodeError as error:
        raise InvalidInput(f"the stored inventory of {last.agent!r} cannot be read: {error}") from error
    message = _parse(last.payload)
    layout = codec.layout_of(inventory, lambda _: "")
    return inventory, codec.batch_from_proto(message.batch, layout, newest=Newest())


def _parse(payload: bytes) -> pb2.StreamTelemetryRequest:
    try:
        return pb2.StreamTelemetryRequest.FromString(payload)
    except DecodeError as error:
        raise InvalidInput(
            f"{len(payload)} bytes on the telemetry stream are no StreamTelemetryRequest.", reason="BAD_MESSAGE"
        ) from error


async def _first(requests: AsyncIterator[Any]) -> Any:
    try:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            return await anext(requests)
    except TimeoutError:
        raise TimedOut(f"no hello within {HELLO_TIMEOUT_S:.0f} s.", reason="NO_HELLO") from None
    except StopAsyncIteration:
        raise InvalidInput("the stream ended before hello.", reason="NO_HELLO") from None


async def _end_when_replaced(replaced: asyncio.Event, agent: str) -> None:
    await replaced.wait()
    raise StaleRevision(
        f"a newer stream of agent {agent!r} took over; if this repeats, two hosts share its certificate.",
        reason="SESSION_REPLACED",
        metadata={"agent": agent},
    )


def _ticket(text: str) -> str:
    return text[:256]
