"""Agent link: wire to domain and back. Everything that an agent can send is checked here, before anybody relies on it.

Decides whether a message is well-formed. Refuses to know: what it is for. Invariant: a `BatchFrame` has as many numbers as its
inventory says, no infinite one, and NaN only where it means "no reading"; nothing is copied sample by sample.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from swingbus.faults import InvalidInput
from swingbus.link.v1alpha import agent_link_service_pb2 as link_service_pb2
from swingbus.link.v1alpha import link_pb2
from swingbus.names import escape_device, parse_id
from swingbus_controller.api.wire_checks import (
    MAX_BANKS,
    MAX_DEVICES,
    MAX_EVENTS,
    MAX_FIELDS,
    MAX_METERS,
    MAX_TEXT,
    MAX_UID,
    at_most,
    unique,
    watts,
)
from swingbus_controller.domain.fleet.fleet import Newest
from swingbus_controller.domain.fleet.frames import (
    AgentInventory,
    BankFrame,
    BankInventory,
    BatchFrame,
    DeviceEvent,
    DeviceSpec,
    MeterFrame,
    MeterInventory,
    PointSpec,
)
from swingbus_controller.domain.fleet.orders import (
    AdoptOrder,
    AgentOrder,
    Mode,
    RenewalReply,
    Urgency,
)
from swingbus_controller.domain.fleet.sequences import MAX_SEQUENCE

_WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")
_FIELD = re.compile(r"[a-z][a-z0-9_]{0,63}")
# By table: a fan-out goes through these a few thousand times within its deadline.
_WIRE_MODES = {mode: link_pb2.Mode.Name(mode.value) for mode in Mode}
_WIRE_URGENCIES = {urgency: link_pb2.Urgency.Name(urgency.value) for urgency in Urgency}
_KINDS = {link_pb2.DEVICE_KIND_GPU: "gpu", link_pb2.DEVICE_KIND_ASIC: "asic"}


def check_uid(text: str, what: str) -> str:
    """Return a unique id that an agent chose, if it is one."""
    if not 1 <= len(text) <= MAX_UID or not text.isprintable():
        raise InvalidInput(f"{what} must have 1 to {MAX_UID} printable characters.", reason="BAD_HELLO")
    return text


def unix_s(stamp: Timestamp) -> float:
    """Return a wire timestamp in Unix seconds."""
    return stamp.seconds + stamp.nanos / 1e9


def timestamp(at_unix_s: float) -> Timestamp:
    """Return Unix seconds as a wire timestamp, to the microsecond."""
    micros = round(at_unix_s * 1e6)
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)


def duration(span_s: float) -> Duration:
    """Return seconds as a wire duration, to the microsecond."""
    micros = round(span_s * 1e6)
    sign = -1 if micros < 0 else 1
    return Duration(seconds=sign * (abs(micros) // 1_000_000), nanos=sign * (abs(micros) % 1_000_000) * 1000)


def inventory_from_proto(agent: str, message: link_pb2.Inventory) -> AgentInventory:
    """Return an inventory. Raises InvalidInput that says which part is wrong."""
    at_most(len(message.banks), MAX_BANKS, "banks")
    at_most(len(message.meters), MAX_METERS, "meters")
    at_most(sum(len(bank.devices) for bank in message.banks), MAX_DEVICES, "devices")
    banks = tuple(_bank_inventory(bank) for bank in message.banks)
    meters = tuple(_meter_inventory(meter) for meter in message.meters)
    unique((bank.bank for bank in banks), "bank")
    unique((meter.meter for meter in meters), "meter")
    return AgentInventory(
        agent=agent,
        version=message.version[:MAX_UID],
        hostname=message.hostname[:MAX_UID],
        banks=banks,
        meters=meters,
        host_fields=_fields(message.host_fields, "host_fields"),
        unsupported=tuple(text[:MAX_TEXT] for text in message.unsupported[:MAX_FIELDS]),
        writes_enabled=message.writes_enabled,
    )


def _bank_inventory(message: link_pb2.BankSpec) -> BankInventory:
    bank = parse_id(message.bank, "bank")
    where = f"bank {bank!r}"
    if message.kind not in _KINDS:
        raise InvalidInput(f"{where}: device kind {message.kind} is unknown here.", reason="BAD_INVENTORY")
    devices = tuple(_device(device) for device in message.devices)
    unique((device.device for device in devices), f"{where}: device")
    unit_size = message.unit_size or 1
    if unit_size not in (1, 4, 8) or any(device.unit < 0 for device in devices):
        raise InvalidInput(f"{where}: unit_size {unit_size} is none of 1, 4, 8.", reason="BAD_INVENTORY")
    values = _fields(message.value_fields, f"{where}: value_fields")
    counters = _fields(message.counter_fields, f"{where}: counter_fields")
    unique((*values, *counters), f"{where}: field")
    points = tuple(
        PointSpec(
            point=point.point[:MAX_UID],
            mode=int(point.mode),
            power_w=watts(point.power_w, f"{where}: point {point.point!r}"),
            hashrate_ths=point.hashrate_ths if point.HasField("hashrate_ths") else None,
            throughput_ratio=point.throughput_ratio if point.HasField("throughput_ratio") else None,
        )
        for point in message.points[:MAX_FIELDS]
    )
    return BankInventory(
        bank=bank,
        kind=_KINDS[message.kind],
        device_class=message.device_class[:MAX_UID],
        unit_size=unit_size,
        devices=devices,
        value_fields=values,
        counter_fields=counters,
        points=points,
        workloads=tuple(name[:MAX_UID] for name in message.workloads[:MAX_FIELDS]),
        meter=message.meter[:MAX_UID],
    )


def _device(message: link_pb2.DeviceSpec) -> DeviceSpec:
    escape_device(message.device)
    return DeviceSpec(
        device=message.device,
        model=message.model[:MAX_UID],
        firmware=message.firmware[:MAX_UID],
        serial_number=message.serial_number[:MAX_UID],
        address=message.address[:MAX_UID],
        unsupported_fields=tuple(message.unsupported_fields[:MAX_FIELDS]),
        unit=message.unit,
    )


def _meter_inventory(message: link_pb2.MeterSpec) -> MeterInventory:
    meter = parse_id(message.meter, "meter")
    return MeterInventory(
        meter=meter,
        feeder=message.feeder[:MAX_UID],
        window_s=message.window.ToNanoseconds() / 1e9,
        lag_s=message.lag.ToNanoseconds() / 1e9,
        error_ratio=watts(message.error_ratio, f"meter {meter!r}: error_ratio"),
        quantum_w=watts(message.quantum_w, f"meter {meter!r}: quantum_w"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BankShape:
    """What each matrix of a bank must look like."""

    bank: str
    row_count: int
    value_count: int
    counter_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How to read the batches of one inventory."""

    agent: str
    banks: tuple[BankShape, ...]
    meters: tuple[tuple[str, str], ...]  # (meter, feeder that it counts for here)
    host_count: int


def layout_of(inventory: AgentInventory, feeder_of: Callable[[str], str]) -> Layout:
    """Return the layout that an inventory announces; `feeder_of` says what a meter counts for at this site."""
    return Layout(
        agent=inventory.agent,
        banks=tuple(
            BankShape(
                bank=bank.bank,
                row_count=len(bank.devices),
                value_count=len(bank.devices) * len(bank.value_fields),
                counter_count=len(bank.devices) * len(bank.counter_fields),
            )
            for bank in inventory.banks
        ),
        meters=tuple((meter.meter, feeder_of(meter.meter)) for meter in inventory.meters),
        host_count=len(inventory.host_fields),
    )


def batch_from_proto(message: link_pb2.TelemetryBatch, layout: Layout, *, newest: Newest) -> BatchFrame:
    """Return a batch as columns. Raises InvalidInput that says what is wrong: such a batch can never be stored.

    Args:
        newest: the newest batch already seen of this spool; what is older is backlog.
    """
    if not 1 <= message.sequence <= MAX_SEQUENCE:
        raise InvalidInput(f"sequence {message.sequence} is outside 1 to {MAX_SEQUENCE}", reason="BAD_BATCH")
    first_sequence = message.first_sequence or message.sequence
    if not 1 <= first_sequence <= message.sequence:
        raise InvalidInput(
            f"first_sequence {first_sequence} is outside 1 to {message.sequence}, the batch's own", reason="BAD_BATCH"
        )
    if not 1 <= len(message.boot_id) <= MAX_UID:
        raise InvalidInput(f"boot_id must have 1 to {MAX_UID} characters", reason="BAD_BATCH")
    if message.sample_boottime_ns <= 0:
        raise InvalidInput(f"sample_boottime_ns is {message.sample_boottime_ns}, must be above 0", reason="BAD_BATCH")
    if not message.HasField("sample_time"):
        raise InvalidInput("sample_time is missing", reason="BAD_BATCH")
    if len(message.events) > MAX_EVENTS:
        raise InvalidInput(f"{len(message.events)} events, at most {MAX_EVENTS} are taken", reason="BAD_BATCH")
    if len(message.host_values) not in (0, layout.host_count):
        raise InvalidInput(
            f"{len(message.host_values)} host_values, the inventory announced {layout.host_count}", reason="BAD_BATCH"
        )
    with np.errstate(
        all="ignore"
    ):  # an agent may send any kind of NaN; entering this per column costs more than the column
        banks = tuple([_bank_frame(samples, layout) for samples in message.banks])
        host_values = _finite(np.asarray(message.host_values, dtype=np.float64), "host_values")
    if len({frame.bank for frame in banks}) != len(banks):
        raise InvalidInput("a bank is in the batch twice", reason="BAD_BATCH")
    sample_unix_s = unix_s(message.sample_time)
    sample_boottime_s = message.sample_boottime_ns / 1e9
    return BatchFrame(
        agent=layout.agent,
        sequence=message.sequence,
        first_sequence=first_sequence,
        boot_id=message.boot_id,
        sample_unix_s=sample_unix_s,
        sample_boottime_s=sample_boottime_s,
        banks=banks,
        meters=tuple([_meter_frame(sample, layout) for sample in message.meters]),
        host_values=host_values,
        events=tuple([_event(event) for event in message.events]),
        is_live=newest.is_before(
            sequence=message.sequence,
            boot_id=message.boot_id,
            sample_boottime_s=sample_boottime_s,
            sample_unix_s=sample_unix_s,
        ),
    )


def _bank_frame(samples: link_pb2.BankSamples, layout: Layout) -> BankFrame:
    if not 0 <= samples.bank_index < len(layout.banks):
        raise InvalidInput(
            f"bank_index {samples.bank_index}, the inventory has {len(layout.banks)} banks", reason="BAD_BATCH"
        )
    shape = layout.banks[samples.bank_index]
    rows = shape.row_count
    # Arrays are sequences of numbers to everybody behind this door, hence Any.
    values: Any = np.asarray(samples.values, dtype=np.float32)
    counters: Any = np.asarray(samples.counters, dtype=np.float64)
    # One number per row, kept as they came: who looks at a row asks for it; turning them into arrays costs more than all sums.
    conditions, modes, read_at = samples.conditions, samples.modes, samples.read_boottime_ns
    for name, column, wanted in (
        ("values", values, shape.value_count),
        ("counters", counters, shape.counter_count),
        ("conditions", conditions, rows),
        ("modes", modes, rows),
        ("read_boottime_ns", read_at, rows),
    ):
        if len(column) != wanted:
            raise InvalidInput(
                f"bank {shape.bank!r}: {len(column)} {name}, {wanted} were announced ({rows} devices)",
                reason="BAD_BATCH",
            )
    return BankFrame(
        bank=shape.bank,
        values=_finite(values, f"bank {shape.bank!r}: values"),
        counters=_finite(counters, f"bank {shape.bank!r}: counters"),
        conditions=conditions,
        modes=modes,
        read_boottime_ns=read_at,
    )


def _finite(column: Any, what: str) -> Any:
    """Return a column whose only non-number is NaN."""
    # One pass in the common case: a finite sum has no infinite term. Else NaN or overflow are told from infinity.
    if column.size and not math.isfinite(np.add.reduce(column)) and np.isinf(column).any():
        raise InvalidInput(f"{what}: an infinite number; a missing reading is NaN", reason="BAD_BATCH")
    return column


def _meter_frame(sample: link_pb2.MeterSample, layout: Layout) -> MeterFrame:
    if not 0 <= sample.meter_index < len(layout.meters):
        raise InvalidInput(
            f"meter_index {sample.meter_index}, the inventory has {len(layout.meters)} meters", reason="BAD_BATCH"
        )
    meter, feeder = layout.meters[sample.meter_index]
    readings: dict[str, float | None] = {}
    for name in ("power_w", "energy_j", "voltage_v", "current_a", "power_factor"):
        value = getattr(sample, name) if sample.HasField(name) else None
        if value is not None and not math.isfinite(value):
            raise InvalidInput(f"meter {meter!r}: {name} is {value}; leave out what was not read", reason="BAD_BATCH")
        readings[name] = value
    if not 0 <= sample.window_start_boottime_ns <= sample.window_end_boottime_ns:
        raise InvalidInput(f"meter {meter!r}: its window ends before it starts", reason="BAD_BATCH")
    if sample.marker < 0 or sample.marker_epoch < 0:
        raise InvalidInput(f"meter {meter!r}: a negative marker", reason="BAD_BATCH")
    return MeterFrame(
        meter=meter,
        feeder=feeder,
        measurement_count=sample.measurement_count if sample.HasField("measurement_count") else None,
        window_start_boottime_s=sample.window_start_boottime_ns / 1e9,
        window_end_boottime_s=sample.window_end_boottime_ns / 1e9,
        marker=sample.marker,
        marker_epoch=sample.marker_epoch,
        power_w=readings["power_w"],
        energy_j=readings["energy_j"],
        voltage_v=readings["voltage_v"],
        current_a=readings["current_a"],
        power_factor=readings["power_factor"],
        fault=sample.fault[:MAX_TEXT],
    )


def _event(message: link_pb2.AgentEvent) -> DeviceEvent:
    if not _WORD.fullmatch(message.kind):
        raise InvalidInput(f"event kind {message.kind[:80]!r} is no noun_verb word", reason="BAD_BATCH")
    if len(message.message) > MAX_TEXT or len(message.bank) > MAX_UID or len(message.device) > MAX_UID:
        raise InvalidInput(f"event {message.kind}: a text is longer than {MAX_TEXT} characters", reason="BAD_BATCH")
    return DeviceEvent(
        kind=message.kind,
        bank=message.bank,
        device=message.device,
        message=message.message,
        event_unix_s=unix_s(message.event_time),
    )


def adopt_to_proto(order: AdoptOrder, *, marker: int, ticket: str) -> link_service_pb2.StreamControlResponse:
    """Return the fence as it is sent."""
    return link_service_pb2.StreamControlResponse(
        adopt=link_service_pb2.Adopt(
            epoch=order.epoch,
            controller_instance=order.controller_instance,
            marker=marker,
            ticket=ticket,
            counting=[
                link_pb2.BankCounting(
                    bank=bank.bank,
                    gpu_limit_ratio=bank.gpu_limit_ratio,
                    asic_target_ratio=bank.asic_target_ratio,
                    asic_boot_w=bank.asic_boot_w,
                    rest_w=bank.rest_w,
                    device_ceiling_w=bank.device_ceiling_w,
                    cooling_ratio=bank.cooling_ratio,
                    losses_ratio=bank.losses_ratio,
                    fixed_w=bank.fixed_w,
                )
                for bank in order.counting
            ],
        )
    )


def renewal_to_proto(reply: RenewalReply, *, marker: int, ticket: str) -> link_service_pb2.StreamControlResponse:
    """Return the answer to a renewal as it is sent."""
    return link_service_pb2.StreamControlResponse(
        renewed=link_service_pb2.Renewed(
            sent_boottime_ns=reply.sent_boottime_ns,
            epoch=reply.epoch,
            ttl=duration(reply.ttl_s),
            marker=marker,
            ticket=ticket,
        )
    )


def order_to_proto(order: AgentOrder, *, marker: int, ticket: str) -> link_service_pb2.StreamControlResponse:
    """Return the desired state as it is sent, with the hash over its banks."""
    banks = [
        link_pb2.BankDesired(
            bank=bank.bank,
            generation=bank.generation,
            grant_w=bank.grant_w,
            device_budget_w=bank.device_budget_w,
            points=[
                link_pb2.PointCount(
                    point=point.point,
                    mode=_WIRE_MODES[point.mode],
                    power_w=point.power_w,
                    count=point.count,
                    workload=point.workload,
                    units=point.units,
                )
                for point in bank.points
            ],
            urgency=_WIRE_URGENCIES[bank.urgency],
            safe_shares=[
                link_pb2.SafeShare(
                    start_time=None if share.start_unix_s is None else timestamp(share.start_unix_s),
                    power_w=share.power_w,
                )
                for share in bank.safe_shares
            ],
            locked_devices=bank.locked_devices,
            locked_out=bank.locked_out,
            starts_per_s=bank.starts_per_s,
            for_instance=bank.for_instance,
        )
        for bank in order.banks
    ]
    return link_service_pb2.StreamControlResponse(
        desired=link_pb2.DesiredState(
            epoch=order.epoch,
            controller_instance=order.controller_instance,
            generation=order.generation,
            hash=desired_hash(banks),
            banks=banks,
            marker=marker,
            ttl=duration(order.ttl_s),
            ticket=ticket,
        )
    )


def desired_hash(banks: Iterable[link_pb2.BankDesired]) -> str:
    """Return SHA-256 over the deterministic encoding of a DesiredState that holds the banks alone."""
    return hashlib.sha256(link_pb2.DesiredState(banks=banks).SerializeToString(deterministic=True)).hexdigest()


def _fields(names: Iterable[str], what: str) -> tuple[str, ...]:
    fields = tuple(names)
    at_most(len(fields), MAX_FIELDS, what)
    for name in fields:
        if not _FIELD.fullmatch(name):
            raise InvalidInput(f"{what}: {name[:80]!r} is no field name.", reason="BAD_INVENTORY")
    return fields
