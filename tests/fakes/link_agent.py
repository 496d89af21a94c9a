"""An agent on the wire and nothing behind it: sends what a test tells it to, and keeps what it was told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc.aio
from google.protobuf.duration_pb2 import Duration

from swingbus.clock import SystemClock
from swingbus.link.v1alpha import agent_link_service_pb2 as pb2
from swingbus.link.v1alpha import agent_link_service_pb2_grpc, link_pb2

VALUE_FIELDS = ("power_w", "hashrate_ths", "board_temperature_c")
COUNTER_FIELDS = ("uptime_s",)
NAN = float("nan")


def make_inventory(
    *, devices: int = 3, bank: str = "s19j", meters: Sequence[tuple[str, str]] = (("m-grid", "grid"),)
) -> link_pb2.Inventory:
    """Return one ASIC bank and its meters."""
    return link_pb2.Inventory(
        version="1.2.3",
        hostname="edge",
        banks=[
            link_pb2.BankSpec(
                bank=bank,
                kind=link_pb2.DEVICE_KIND_ASIC,
                device_class="s19j",
                unit_size=1,
                devices=[
                    link_pb2.DeviceSpec(
                        device=f"asic-{row:03d}",
                        model="S19j Pro",
                        firmware="luxos",
                        address=f"127.0.1.{row + 1}",
                        unsupported_fields=["board_temperature_c"] if row == 0 else [],
                    )
                    for row in range(devices)
                ],
                value_fields=VALUE_FIELDS,
                counter_fields=COUNTER_FIELDS,
                points=[link_pb2.OperatingPointSpec(point="normal", mode=link_pb2.MODE_MINING, power_w=3068.0)],
            )
        ],
        meters=[
            link_pb2.MeterSpec(
                meter=meter,
                feeder=feeder,
                window=Duration(seconds=1),
                lag=Duration(seconds=1),
                error_ratio=0.005,
                quantum_w=10.0,
            )
            for meter, feeder in meters
        ],
        host_fields=["cpu_ratio", "load_1m"],
        unsupported=["nvml: no library"],
    )


def make_batch(
    sequence: int,
    *,
    devices: int = 3,
    power_w: float = 3000.0,
    meter_w: float | None = 10_000.0,
    energy_j: float | None = None,
    boottime_s: float | None = None,
    events: Sequence[link_pb2.AgentEvent] = (),
    conditions: Sequence[link_pb2.DeviceCondition] | None = None,
    uptime_s: float = 1000.0,
    meter_index: int = 0,
) -> link_pb2.TelemetryBatch:
    """Return one round: every device at the same watts, and one meter reading."""
    clock = SystemClock()
    at_s = clock.boottime_s() if boottime_s is None else boottime_s
    at_ns = int(at_s * 1e9)
    sample = link_pb2.MeterSample(
        meter_index=meter_index,
        measurement_count=sequence,
        window_start_boottime_ns=at_ns - 1_000_000_000,
        window_end_boottime_ns=at_ns,
    )
    if meter_w is not None:
        sample.power_w = meter_w
        sample.energy_j = energy_j if energy_j is not None else meter_w * at_s
    batch = link_pb2.TelemetryBatch(
        sequence=sequence,
        sample_boottime_ns=at_ns,
        boot_id="boot-1",
        banks=[
            link_pb2.BankSamples(
                bank_index=0,
                values=[number for _ in range(devices) for number in (power_w, 100.0, 60.0)],
                counters=[uptime_s] * devices,
                conditions=conditions or [link_pb2.DEVICE_CONDITION_OK] * devices,
                modes=[link_pb2.MODE_MINING] * devices,
                read_boottime_ns=[at_ns] * devices,
            )
        ],
        meters=[sample],
        host_values=[0.25, NAN],
        events=events,
    )
    batch.sample_time.FromDatetime(clock.now())
    return batch


class LinkAgent:
    """One telemetry stream; `acked`, `ranges` and `rejected` are what the controller said last."""

    def __init__(self, channel: grpc.aio.Channel, agent: str, *, spool_uid: str = "spool-1") -> None:
        self._stub = agent_link_service_pb2_grpc.AgentLinkServiceStub(channel)
        self.agent = agent
        self.spool_uid = spool_uid
        self.acked = 0
        self.ranges: list[int] = []
        self.rejected: dict[int, str] = {}
        self.credit = 0
        self.ack_count = 0

    async def connect(
        self,
        inventory: link_pb2.Inventory | None = None,
        *,
        oldest_sequence: int = 1,
        newest_sequence: int = 1_000_000,
        instance: str = "run-1",
    ) -> None:
        """Open the stream, say hello, take the welcome."""
        self.call = self._stub.StreamTelemetry()
        await self.call.write(
            pb2.StreamTelemetryRequest(
                hello=pb2.TelemetryHello(
                    agent=self.agent,
                    instance_uid=instance,
                    spool_uid=self.spool_uid,
                    oldest_sequence=oldest_sequence,
                    newest_sequence=newest_sequence,
                    inventory=inventory or make_inventory(),
                )
            )
        )
        await self._take_one()

    async def send(self, *batches: link_pb2.TelemetryBatch) -> None:
        """Write batches."""
        for batch in batches:
            await self.call.write(pb2.StreamTelemetryRequest(batch=batch))

    async def wait_told(self, *sequences: int) -> None:
        """Return when every one of these is acknowledged or refused."""
        async with asyncio.timeout(20):
            while not all(self.is_stored(s) or s in self.rejected for s in sequences):
                await self._take_one()

    def is_stored(self, sequence: int) -> bool:
        """Tell whether a number is acknowledged."""
        pairs = zip(self.ranges[::2], self.ranges[1::2], strict=True)
        return sequence <= self.acked or any(first <= sequence <= last for first, last in pairs)

    async def close(self) -> None:
        """End the stream from this side and read to its end."""
        await self.call.done_writing()
        async with asyncio.timeout(20):
            while await self._take_one():
                pass

    async def _take_one(self) -> bool:
        message = await self.call.read()
        if not isinstance(message, pb2.StreamTelemetryResponse):
            return False  # the end of the stream
        if message.HasField("welcome"):
            self.credit = message.welcome.credit
            self.acked = message.welcome.acked_sequence
            self.ranges = list(message.welcome.acked_ranges)
        else:
            self.ack_count += 1
            self.acked = message.ack.acked_sequence
            self.ranges = list(message.ack.acked_ranges)
            self.rejected.update({refused.sequence: refused.reason for refused in message.ack.rejected})
        return True
