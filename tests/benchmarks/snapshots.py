"""The load: what one container's agent sends each round, as bytes that are cheap to make in bulk.

One snapshot is 8 GPUs x 25 fields and 200 ASICs x 15 fields: 208 device samples, 3,200 field samples, the unit in which the trials
counted. Columns carry the real fields' names as far as they go, split into readings and counters as the agent splits them. Conditions,
modes, reading times, the host's readings and one meter reading travel with each snapshot, as they do in the product, and are *not*
counted as field samples. Numbers change from snapshot to snapshot; a body is used again only under another number and time.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from swingbus.link.v1alpha import agent_link_service_pb2 as service_pb2
from swingbus.link.v1alpha import link_pb2
from swingbus_agent.domain import fields
from swingbus_agent.domain.readings import Kind

GPU_COUNT, GPU_FIELDS = 8, 25
ASIC_COUNT, ASIC_FIELDS = 200, 15
DEVICE_SAMPLES = GPU_COUNT + ASIC_COUNT
FIELD_SAMPLES = GPU_COUNT * GPU_FIELDS + ASIC_COUNT * ASIC_FIELDS
_GPU_COUNTERS, _ASIC_COUNTERS = 8, 4
_BATCH_FIELD = 2  # of StreamTelemetryRequest
_BODIES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns of one bank."""

    values: tuple[str, ...]
    counters: tuple[str, ...]

    @property
    def count(self) -> int:
        """Return how many fields one device has."""
        return len(self.values) + len(self.counters)


def trial_columns(kind: Kind) -> Columns:
    """Return the columns of the trials' snapshot: 25 of a GPU, 15 of an ASIC."""
    total, counters = (GPU_FIELDS, _GPU_COUNTERS) if kind is Kind.GPU else (ASIC_FIELDS, _ASIC_COUNTERS)
    return Columns(
        values=_cut(fields.value_fields(kind), total - counters, "reading"),
        counters=_cut(fields.counter_fields(kind), counters, "counter"),
    )


def real_columns(kind: Kind) -> Columns:
    """Return the columns that today's agent sends."""
    return Columns(values=fields.value_fields(kind), counters=fields.counter_fields(kind))


def _cut(names: Sequence[str], count: int, what: str) -> tuple[str, ...]:
    return (*names[:count], *(f"{what}_{number}" for number in range(count - len(names))))


def inventory(gpus: Columns, asics: Columns) -> link_pb2.Inventory:
    """Return what the agent has: both banks, one meter, the host."""
    return link_pb2.Inventory(
        version="bench",
        hostname="bench",
        banks=[
            _bank("gpus", link_pb2.DEVICE_KIND_GPU, "h100", GPU_COUNT, gpus),
            _bank("asics", link_pb2.DEVICE_KIND_ASIC, "s19j", ASIC_COUNT, asics),
        ],
        meters=[
            link_pb2.MeterSpec(
                meter="meter", feeder="", window=Duration(seconds=1), lag=Duration(), error_ratio=0.005, quantum_w=1.0
            )
        ],
        host_fields=[field.name for field in fields.HOST_FIELDS],
    )


def _bank(name: str, kind: link_pb2.DeviceKind, device_class: str, count: int, columns: Columns) -> link_pb2.BankSpec:
    return link_pb2.BankSpec(
        bank=name,
        kind=kind,
        device_class=device_class,
        unit_size=8 if name == "gpus" else 1,
        devices=[
            link_pb2.DeviceSpec(device=f"{name}-{row:03d}", model=device_class, address=f"127.0.0.{row % 250 + 1}")
            for row in range(count)
        ],
        value_fields=columns.values,
        counter_fields=columns.counters,
    )


class SnapshotMaker:
    """Makes the bytes of numbered batches of one agent: a changing head before one of some prepared bodies."""

    def __init__(self, *, gpus: Columns, asics: Columns, meter: str, seed: int) -> None:
        self.inventory = inventory(gpus, asics)
        self.inventory.meters[0].meter = meter
        self._start_ns = 1_000_000_000_000
        random_ = random.Random(seed)
        self._bodies = [
            link_pb2.TelemetryBatch(
                boot_id="bench-boot",
                host_values=[random_.uniform(0.0, 1e9) for _ in fields.HOST_FIELDS],
                banks=[
                    self._samples(random_, 0, GPU_COUNT, gpus),
                    self._samples(random_, 1, ASIC_COUNT, asics),
                ],
            ).SerializeToString()
            for _ in range(_BODIES)
        ]

    def _samples(self, random_: random.Random, index: int, count: int, columns: Columns) -> link_pb2.BankSamples:
        return link_pb2.BankSamples(
            bank_index=index,
            # Sensors have steps, and machines of a class are alike: noise of full width would not compress as real readings do.
            values=[
                round(base + random_.gauss(0.0, 2.0), 1)
                for _ in range(count)
                for base in (
                    3000.0 if name == "power_w" else 10.0 * at + 50.0 for at, name in enumerate(columns.values)
                )
            ],
            # An uptime that fell would be a restart, and an event each: machines of the bench run on.
            counters=[
                1e6 if name == "uptime_s" else float(random_.randrange(10**6))
                for _ in range(count)
                for name in columns.counters
            ],
            conditions=[link_pb2.DEVICE_CONDITION_OK] * count,
            modes=[link_pb2.MODE_MINING] * count,
            read_boottime_ns=[self._start_ns + random_.randrange(10**9) for _ in range(count)],
        )

    def message(self, sequence: int) -> bytes:
        """Return the StreamTelemetryRequest with this batch; the same number always gives the same bytes."""
        now_ns = self._start_ns + sequence * 1_000_000_000
        head = link_pb2.TelemetryBatch(
            sequence=sequence,
            sample_time=Timestamp(seconds=1_900_000_000 + sequence),
            sample_boottime_ns=now_ns,
            meters=[
                link_pb2.MeterSample(
                    meter_index=0,
                    measurement_count=sequence,
                    window_start_boottime_ns=now_ns - 1_000_000_000,
                    window_end_boottime_ns=now_ns,
                    power_w=600_000.0 + sequence % 97,
                    energy_j=600_000.0 * sequence,
                    voltage_v=240.0,
                )
            ],
        ).SerializeToString()
        # Fields of one message may come in any order and in pieces: concatenation is a merge.
        body = head + self._bodies[sequence % _BODIES]
        return bytes([_BATCH_FIELD << 3 | 2]) + _varint(len(body)) + body

    def hello(self, agent: str) -> bytes:
        """Return the first message of a stream whose spool is new."""
        return service_pb2.StreamTelemetryRequest(
            hello=service_pb2.TelemetryHello(
                agent=agent, instance_uid=f"{agent}-1", spool_uid=f"{agent}-spool", inventory=self.inventory
            )
        ).SerializeToString()


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
