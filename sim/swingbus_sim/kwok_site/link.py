"""Many agents' links in one event loop: each its own certificate, channel and two streams, as on hosts of their own.

Decides when to read, send, renew and connect again. What is said is the agent's (`agent`, `wire`). Invariants: one writer to a stream; the
first message of a stream is its hello; losing a session commands nothing; samples that were not taken are dropped after a while and said
to be gone (this agent has no disk).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from random import Random
from typing import Any

import grpc
import grpc.aio

from swingbus.bundle import Bundle
from swingbus.clock import Clock
from swingbus.faults import InvalidInput
from swingbus.link.v1alpha import agent_link_service_pb2 as pb2
from swingbus.link.v1alpha import link_pb2
from swingbus.link.v1alpha.agent_link_service_pb2_grpc import AgentLinkServiceStub
from swingbus.rpc.channel import ChannelSettings, open_channel
from swingbus_sim.kwok_site import wire
from swingbus_sim.kwok_site.agent import NodeAgent
from swingbus_sim.kwok_site.meter import Meter
from swingbus_sim.kwok_site.plan import SitePlan

_SPOOL = 60
_DEBOUNCE_S = 0.05
_PAUSE_S = (0.5, 2.0)
_FIRST_TTL_S = 15.0


class AgentLink:
    """One node's agent, from its readings to its two streams."""

    def __init__(
        self,
        agent: NodeAgent,
        plan: SitePlan,
        bundle: Bundle,
        endpoint: str,
        *,
        meters: Sequence[Meter],
        clock: Clock,
        random: Random,
        gate: asyncio.Semaphore,
        period_s: float,
    ) -> None:
        """Ready to run.

        Args:
            meters: those that this agent reads.
            gate: how many handshakes may be on the way at a time, over all agents.
        """
        self.agent = agent
        self.period_s = period_s
        self.is_silent = False
        self.fault = ""
        self._plan = plan
        self._bundle = bundle
        self._endpoint = endpoint
        self._meters = tuple(meters)
        self._clock = clock
        self._random = random
        self._gate = gate
        self._channel: grpc.aio.Channel | None = None
        self._spool: deque[link_pb2.TelemetryBatch] = deque(maxlen=_SPOOL)
        self._sequence = 0
        self._sent = 0
        self._report_count = 0
        self._told: bytes = b""
        self._ttl_s = _FIRST_TTL_S
        self._renew_at_s = 0.0
        self._spool_uid = f"{agent.name}-{agent.boot_id}"
        self._sampled = asyncio.Event()
        self._changed = asyncio.Event()
        self._heard = asyncio.Event()  # the first reading was made
        self._leaving = asyncio.Event()

    async def run(self) -> None:
        """Read once a period and keep both streams, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sample())
            tasks.create_task(self._keep(self._telemetry))
            tasks.create_task(self._keep(self._control))

    async def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            await self._channel.close(grace=None)

    # Readings.

    async def _sample(self) -> None:
        next_s = self._clock.boottime_s() + self._random.uniform(0.0, self.period_s)
        while True:
            await asyncio.sleep(max(0.0, next_s - self._clock.boottime_s()))
            next_s += self.period_s
            now_s = self._clock.boottime_s()
            if next_s < now_s:
                next_s = now_s + self.period_s  # this loop was held up: late samples are not made up for
            if not self.agent.kubelet.is_up:
                continue
            self.agent.read(now_s)
            readings = tuple(meter.read(now_s) for meter in self._meters)
            self._sequence += 1
            self._spool.append(
                wire.batch(self.agent, self._sequence, unix_s=self._clock.now().timestamp(), meters=readings)
            )
            self._heard.set()
            self._sampled.set()
            self._changed.set()

    def go_silent(self) -> None:
        """Leave the wire and stay off it: the agent is dead to the controller, and its node draws on."""
        self.is_silent = True
        self._leaving.set()

    def come_back(self) -> None:
        """Come back after silence."""
        self.is_silent = False

    def reboot(self) -> None:
        """Take in that the host was rebooted: a new run with what the disk kept."""
        self.agent.restart()
        self._report_count = 0
        self._spool.clear()
        self._heard.clear()
        self._leaving.set()

    # Sessions.

    async def _keep(self, session: Any) -> None:
        while True:
            if not self.is_silent and self.agent.kubelet.is_up:
                self._leaving.clear()
                try:
                    await session()
                except* (grpc.RpcError, asyncio.InvalidStateError, TimeoutError, ConnectionError) as group:
                    self.fault = f"{session.__name__}: {group.exceptions[0]}"[:300]
            await asyncio.sleep(self._random.uniform(*_PAUSE_S))

    def _stub(self) -> Any:
        if self._channel is None:
            settings = ChannelSettings(connect_timeout_s=30.0)
            self._channel = open_channel(self._bundle, endpoint=self._endpoint, settings=settings)
        return AgentLinkServiceStub(self._channel)

    async def _leave_when_silent(self) -> None:
        await self._leaving.wait()
        raise ConnectionError("the node went silent")

    async def _telemetry(self) -> None:
        call = self._stub().StreamTelemetry()
        try:
            meters = tuple((meter.name, meter.feeder) for meter in self._meters)
            hello = pb2.TelemetryHello(
                agent=self.agent.name,
                instance_uid=self.agent.holding.instance_uid,
                spool_uid=self._spool_uid,
                oldest_sequence=self._spool[0].sequence if self._spool else 0,
                newest_sequence=self._sequence,
                inventory=wire.inventory(self.agent, self._plan, meters),
            )
            async with self._gate, asyncio.timeout(60.0):
                await call.write(pb2.StreamTelemetryRequest(hello=hello))
                welcome = await call.read()
            if welcome is grpc.aio.EOF:
                raise ConnectionError("telemetry ended before it began")
            self._sent = self._acknowledge(welcome.welcome.acked_sequence)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send_batches(call))
                tasks.create_task(self._read_acks(call))
                tasks.create_task(self._leave_when_silent())
        finally:
            call.cancel()

    def _acknowledge(self, sequence: int) -> int:
        while self._spool and self._spool[0].sequence <= sequence:
            self._spool.popleft()
        return sequence

    async def _send_batches(self, call: Any) -> None:
        while True:
            self._sampled.clear()
            for batch in [b for b in self._spool if b.sequence > self._sent]:
                await call.write(pb2.StreamTelemetryRequest(batch=batch))
                self._sent = batch.sequence
            await self._sampled.wait()

    async def _read_acks(self, call: Any) -> None:
        while (message := await call.read()) is not grpc.aio.EOF:
            for rejected in message.ack.rejected:
                self.fault = f"batch {rejected.sequence} was refused: {rejected.reason}"
            self._acknowledge(message.ack.acked_sequence)
        raise ConnectionError("telemetry was ended")

    async def _control(self) -> None:
        await self._heard.wait()
        call = self._stub().StreamControl()
        try:
            now_s = self._clock.boottime_s()
            hello = pb2.ControlHello(
                agent=self.agent.name,
                instance_uid=self.agent.holding.instance_uid,
                effective=self._report(now_s),
                ticket=self.agent.holding.issue_ticket(now_s),
            )
            async with self._gate, asyncio.timeout(60.0):
                await call.write(pb2.StreamControlRequest(hello=hello))
            self._renew_at_s = now_s + self._ttl_s / 3
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write_reports(call))
                tasks.create_task(self._read_orders(call))
                tasks.create_task(self._leave_when_silent())
        finally:
            call.cancel()

    def _report(self, now_s: float) -> link_pb2.EffectiveState:
        self._report_count += 1
        return wire.effective(self.agent, self._report_count, now_s)

    async def _write_reports(self, call: Any) -> None:
        standing = None
        while True:
            self._changed.clear()
            now_s = self._clock.boottime_s()
            holding = self.agent.holding
            stands = (holding.is_lapsed(now_s), holding.is_lost, self.agent.known_w() is None)
            # What is decided on hearing that a grant is over must be dated after it, so a fresh ticket goes first.
            if now_s >= self._renew_at_s or (standing is not None and standing != stands):
                self._renew_at_s = now_s + self._ttl_s / 3
                renewal = pb2.Renewal(sent_boottime_ns=int(now_s * 1e9), ticket=holding.issue_ticket(now_s))
                await call.write(pb2.StreamControlRequest(renewal=renewal))
            standing = stands
            await call.write(pb2.StreamControlRequest(effective=self._report(now_s)))
            # Samples come once a period, and every report tells of one or of an order: both are told a moment later, together.
            await self._changed.wait()
            await asyncio.sleep(_DEBOUNCE_S)

    async def _read_orders(self, call: Any) -> None:
        while (message := await call.read()) is not grpc.aio.EOF:
            now_s = self._clock.boottime_s()
            match message.WhichOneof("message"):
                case "adopt":
                    adopt = message.adopt
                    holding = self.agent.holding
                    if holding.adopt(adopt.epoch, adopt.controller_instance, adopt.marker, now_s):
                        self.agent.counting = wire.counting_of(adopt)
                    self._renew_at_s = 0.0
                case "desired":
                    self._take_order(message.desired, now_s)
                case "renewed":
                    renewed = message.renewed
                    self._ttl_s = renewed.ttl.seconds + renewed.ttl.nanos / 1e9 or self._ttl_s
                    self.agent.holding.note_marker(renewed.epoch, renewed.marker, now_s)
                    self.agent.holding.renew(renewed.epoch, renewed.ticket, self._ttl_s, now_s)
            self._changed.set()
        raise ConnectionError("control was ended")

    def _take_order(self, desired: link_pb2.DesiredState, now_s: float) -> None:
        holding = self.agent.holding
        holding.note_marker(desired.epoch, desired.marker, now_s)
        if desired.epoch != holding.epoch or desired.controller_instance != holding.fence_instance:
            holding.refusal = f"epoch {desired.epoch} is refused: this agent obeys epoch {holding.epoch}"
            return
        try:
            order = wire.order_of(desired, len(self.agent.seen))
        except InvalidInput as error:
            holding.refusal = str(error)
            return
        if order is None:
            return
        self._ttl_s = order.ttl_s or self._ttl_s
        self.agent.take_order(desired.epoch, desired.generation, desired.hash, order, now_s)
