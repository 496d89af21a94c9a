"""A controller that a test scripts: a real gRPC server on loopback that keeps what agents send and says what the test wants.

Not the real one: it decides nothing. It stores batches by sequence, acknowledges when told to, and keeps every report.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from swingbus.link.v1alpha import agent_link_service_pb2 as pb
from swingbus.link.v1alpha import link_pb2
from swingbus.link.v1alpha.agent_link_service_pb2_grpc import (
    AgentLinkServiceServicer,
    add_AgentLinkServiceServicer_to_server,
)


def desired_state(
    banks: Sequence[link_pb2.BankDesired], *, epoch: int, generation: int, ttl_s: float = 20.0, instance: str = "ctl-1"
) -> link_pb2.DesiredState:
    """Return a desired state with its hash."""
    content = link_pb2.DesiredState(banks=banks).SerializeToString(deterministic=True)
    desired = link_pb2.DesiredState(
        epoch=epoch,
        controller_instance=instance,
        generation=generation,
        hash=hashlib.sha256(content).hexdigest(),
        banks=banks,
    )
    desired.ttl.FromNanoseconds(round(ttl_s * 1e9))
    return desired


class ScriptedController(AgentLinkServiceServicer):
    """Serves one agent; everything is public for the test to look at and change."""

    def __init__(self) -> None:
        self.batches: dict[int, link_pb2.TelemetryBatch] = {}
        self.order: list[int] = []
        self.hellos: list[pb.TelemetryHello] = []
        self.inventories: list[link_pb2.Inventory] = []
        self.acks_enabled = True
        self.credit = 8
        self.welcome_extra_ranges: list[int] = []
        self.acked_floor = 0
        self.reject: dict[int, str] = {}
        self.reports: list[link_pb2.EffectiveState] = []
        self.renewals = 0
        self.answers_renewals = True
        self.adopt: pb.Adopt | None = None
        self.desired: link_pb2.DesiredState | None = None
        self.ttl_s = 20.0
        self.marker = 0
        self._wake = asyncio.Event()
        self._ticket = ""
        self._server: grpc.aio.Server | None = None
        self.port = 0

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def newest(self) -> link_pb2.EffectiveState:
        """Return the newest report."""
        return self.reports[-1]

    def bank(self, name: str) -> link_pb2.BankEffective:
        """Return the newest report of one bank."""
        return next(bank for bank in self.newest.banks if bank.bank == name)

    def send(self, desired: link_pb2.DesiredState) -> None:
        """Want something of the agent."""
        self.desired = desired
        self._wake.set()

    async def start(self, port: int = 0) -> None:
        """Listen."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_AgentLinkServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        await self._server.start()

    async def stop(self) -> None:
        """Stop at once, as a crash would."""
        if self._server is not None:
            await self._server.stop(grace=None)
            self._server = None

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[ScriptedController]:
        """Listen until the block ends."""
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    def acked(self) -> tuple[int, list[int]]:
        """Return cumulative sequence and ranges above it."""
        up_to = self.acked_floor
        while up_to + 1 in self.batches or up_to + 1 in self.reject:
            up_to += 1
        ranges: list[int] = []
        for sequence in sorted(s for s in self.batches if s > up_to):
            if ranges and ranges[-1] == sequence - 1:
                ranges[-1] = sequence
            else:
                ranges += [sequence, sequence]
        return up_to, ranges

    async def StreamTelemetry(self, request_iterator: Any, context: Any) -> Any:
        first = await anext(request_iterator)
        self.hellos.append(first.hello)
        self.inventories.append(first.hello.inventory)
        up_to, ranges = self.acked()
        welcome = pb.TelemetryWelcome(
            acked_sequence=up_to, acked_ranges=ranges + self.welcome_extra_ranges, credit=self.credit
        )
        yield pb.StreamTelemetryResponse(welcome=welcome)
        async for request in request_iterator:
            if request.WhichOneof("message") == "inventory":
                self.inventories.append(request.inventory)
                continue
            sequence = request.batch.sequence
            self.order.append(sequence)
            rejected = []
            if sequence in self.reject:
                rejected.append(pb.RejectedBatch(sequence=sequence, reason=self.reject[sequence]))
            elif self.acks_enabled:
                self.batches[sequence] = request.batch
            if self.acks_enabled or rejected:
                up_to, ranges = self.acked()
                ack = pb.TelemetryAck(acked_sequence=up_to, acked_ranges=ranges, rejected=rejected)
                yield pb.StreamTelemetryResponse(ack=ack)

    # The generated type asks for an iterator of answers; grpc.aio also takes a servicer that writes to the context.
    async def StreamControl(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        first = await anext(request_iterator)
        self._ticket = first.hello.ticket
        self.reports.append(first.hello.effective)
        renewals: list[pb.Renewal] = []
        self._wake.set()

        async def read() -> None:
            async for request in request_iterator:
                match request.WhichOneof("message"):
                    case "effective":
                        self.reports.append(request.effective)
                    case "renewal":
                        self.renewals += 1
                        self._ticket = request.renewal.ticket
                        renewals.append(request.renewal)
                        self._wake.set()

        async def write() -> None:
            adopted: pb.Adopt | None = None
            told: link_pb2.DesiredState | None = None
            while True:
                if self.adopt is not None and self.adopt is not adopted:
                    adopted = self.adopt
                    message = pb.Adopt()
                    message.CopyFrom(adopted)
                    message.marker, message.ticket = self._next_marker(), self._ticket
                    await context.write(pb.StreamControlResponse(adopt=message))
                while renewals and self.adopt is not None:
                    renewal = renewals.pop(0)
                    if self.answers_renewals:
                        renewed = pb.Renewed(
                            sent_boottime_ns=renewal.sent_boottime_ns,
                            epoch=self.adopt.epoch,
                            marker=self._next_marker(),
                            ticket=renewal.ticket,
                        )
                        renewed.ttl.FromNanoseconds(round(self.ttl_s * 1e9))
                        await context.write(pb.StreamControlResponse(renewed=renewed))
                if self.desired is not None and self.desired is not told:
                    told = self.desired
                    desired = link_pb2.DesiredState()
                    desired.CopyFrom(told)
                    desired.marker, desired.ticket = self._next_marker(), self._ticket
                    await context.write(pb.StreamControlResponse(desired=desired))
                self._wake.clear()
                await self._wake.wait()

        async with asyncio.TaskGroup() as group:
            writing = group.create_task(write())
            await read()
            writing.cancel()

    def _next_marker(self) -> int:
        self.marker += 1
        return self.marker


async def until(is_met: Callable[[], bool], what: str, *, within_s: float = 20.0) -> None:
    """Wait until `is_met`; fail with `what` after a while."""
    try:
        async with asyncio.timeout(within_s):
            while not is_met():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {within_s:g} s: {what}") from None
