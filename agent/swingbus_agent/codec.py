"""Translate between this agent's own words and the wire. Knows no sockets and no files.

Invariants: an absent reading is NaN in a packed column and an unset field elsewhere, and back; an unknown enum number from a
newer controller is refused with its name, never guessed; round trips lose nothing but the float32 precision of values.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from swingbus.faults import InvalidInput
from swingbus.link.v1alpha import agent_link_service_pb2 as service_pb2
from swingbus.link.v1alpha import link_pb2
from swingbus_agent.domain.orders import (
    AdoptOrder,
    AgentOrder,
    AgentReport,
    BankCounting,
    BankOrder,
    BankReport,
    Mode,
    PointOrder,
    RenewalReply,
    SafeShareStep,
    Urgency,
)
from swingbus_agent.domain.readings import (
    AgentEvent,
    BankRound,
    BankSpec,
    Condition,
    DeviceSpec,
    Inventory,
    Kind,
    MeterRound,
    MeterSpec,
    PointSpec,
    Round,
)

_NAN = float("nan")
_NS = 1_000_000_000


def _duration(span_s: float) -> Duration:
    seconds = math.floor(span_s)
    return Duration(seconds=seconds, nanos=round((span_s - seconds) * _NS) % _NS)


def _timestamp(unix_s: float) -> Timestamp:
    seconds = math.floor(unix_s)
    return Timestamp(seconds=seconds, nanos=min(_NS - 1, round((unix_s - seconds) * _NS)))


def duration_s(duration: Duration) -> float:
    """Return seconds."""
    return duration.seconds + duration.nanos / _NS


def timestamp_s(timestamp: Timestamp) -> float:
    """Return Unix seconds."""
    return timestamp.seconds + timestamp.nanos / _NS


def _pack(readings: Iterable[float | None]) -> list[float]:
    return [_NAN if reading is None else reading for reading in readings]


def _unpack(column: Sequence[float]) -> tuple[float | None, ...]:
    return tuple(None if reading != reading else reading for reading in column)


# ---- telemetry ----


def round_to_proto(round_: Round, sequence: int, first_sequence: int) -> link_pb2.TelemetryBatch:
    """Return the batch for one round that stands for the numbers from `first_sequence` to `sequence`."""
    return link_pb2.TelemetryBatch(
        sequence=sequence,
        sample_time=_timestamp(round_.sample_unix_s),
        sample_boottime_ns=round_.sample_boottime_ns,
        boot_id=round_.boot_id,
        banks=[
            link_pb2.BankSamples(
                bank_index=bank.bank_index,
                values=_pack(bank.values),
                counters=_pack(bank.counters),
                conditions=[cast("link_pb2.DeviceCondition", each.value) for each in bank.conditions],
                modes=[cast("link_pb2.Mode", each.value) for each in bank.modes],
                read_boottime_ns=bank.read_boottime_ns,
            )
            for bank in round_.banks
        ],
        meters=[
            link_pb2.MeterSample(
                meter_index=meter.meter_index,
                measurement_count=meter.measurement_count,
                window_start_boottime_ns=meter.window_start_boottime_ns,
                window_end_boottime_ns=meter.window_end_boottime_ns,
                marker=meter.marker,
                power_w=meter.power_w,
                energy_j=meter.energy_j,
                voltage_v=meter.voltage_v,
                current_a=meter.current_a,
                power_factor=meter.power_factor,
                fault=meter.fault,
            )
            for meter in round_.meters
        ],
        host_values=_pack(round_.host_values),
        events=[
            link_pb2.AgentEvent(
                kind=event.kind,
                bank=event.bank,
                device=event.device,
                message=event.message,
                event_time=_timestamp(event.at_unix_s),
            )
            for event in round_.events
        ],
        thinned=round_.thinned,
        first_sequence=first_sequence if first_sequence < sequence else 0,
    )


def round_from_proto(batch: link_pb2.TelemetryBatch) -> Round:
    """Return the round of one batch."""

    def optional(meter: link_pb2.MeterSample, name: str) -> float | None:
        return float(getattr(meter, name)) if meter.HasField(name) else None

    return Round(
        sample_unix_s=timestamp_s(batch.sample_time),
        sample_boottime_ns=batch.sample_boottime_ns,
        boot_id=batch.boot_id,
        banks=tuple(
            BankRound(
                bank_index=bank.bank_index,
                values=_unpack(bank.values),
                counters=_unpack(bank.counters),
                conditions=tuple(Condition(each) for each in bank.conditions),
                modes=tuple(Mode(each) for each in bank.modes),
                read_boottime_ns=tuple(bank.read_boottime_ns),
            )
            for bank in batch.banks
        ),
        meters=tuple(
            MeterRound(
                meter_index=meter.meter_index,
                window_start_boottime_ns=meter.window_start_boottime_ns,
                window_end_boottime_ns=meter.window_end_boottime_ns,
                marker=meter.marker,
                measurement_count=meter.measurement_count if meter.HasField("measurement_count") else None,
                power_w=optional(meter, "power_w"),
                energy_j=optional(meter, "energy_j"),
                voltage_v=optional(meter, "voltage_v"),
                current_a=optional(meter, "current_a"),
                power_factor=optional(meter, "power_factor"),
                fault=meter.fault,
            )
            for meter in batch.meters
        ),
        host_values=_unpack(batch.host_values),
        events=tuple(
            AgentEvent(
                kind=event.kind,
                message=event.message,
                at_unix_s=timestamp_s(event.event_time),
                bank=event.bank,
                device=event.device,
            )
            for event in batch.events
        ),
        thinned=batch.thinned,
    )


def inventory_to_proto(inventory: Inventory) -> link_pb2.Inventory:
    """Return the wire's inventory."""
    return link_pb2.Inventory(
        version=inventory.version,
        hostname=inventory.hostname,
        banks=[
            link_pb2.BankSpec(
                bank=bank.bank,
                kind=cast("link_pb2.DeviceKind", bank.kind.value),
                device_class=bank.device_class,
                unit_size=bank.unit_size,
                devices=[
                    link_pb2.DeviceSpec(
                        device=device.device,
                        model=device.model,
                        firmware=device.firmware,
                        serial_number=device.serial_number,
                        address=device.address,
                        unsupported_fields=device.unsupported_fields,
                        unit=device.unit,
                    )
                    for device in bank.devices
                ],
                value_fields=bank.value_fields,
                counter_fields=bank.counter_fields,
                points=[
                    link_pb2.OperatingPointSpec(
                        point=point.point,
                        mode=cast("link_pb2.Mode", point.mode.value),
                        power_w=point.power_w,
                        hashrate_ths=point.hashrate_ths,
                        throughput_ratio=point.throughput_ratio,
                    )
                    for point in bank.points
                ],
                workloads=bank.workloads,
                meter=bank.meter,
            )
            for bank in inventory.banks
        ],
        meters=[
            link_pb2.MeterSpec(
                meter=meter.meter,
                feeder=meter.feeder,
                window=_duration(meter.window_s),
                lag=_duration(meter.lag_s),
                error_ratio=meter.error_ratio,
                quantum_w=meter.quantum_w,
            )
            for meter in inventory.meters
        ],
        host_fields=inventory.host_fields,
        unsupported=inventory.unsupported,
        writes_enabled=inventory.writes_enabled,
    )


def inventory_from_proto(inventory: link_pb2.Inventory) -> Inventory:
    """Return the inventory that the spool kept."""
    return Inventory(
        version=inventory.version,
        hostname=inventory.hostname,
        banks=tuple(
            BankSpec(
                bank=bank.bank,
                kind=Kind(bank.kind),
                device_class=bank.device_class,
                unit_size=bank.unit_size,
                devices=tuple(
                    DeviceSpec(
                        device=device.device,
                        model=device.model,
                        firmware=device.firmware,
                        serial_number=device.serial_number,
                        address=device.address,
                        unsupported_fields=tuple(device.unsupported_fields),
                        unit=device.unit,
                    )
                    for device in bank.devices
                ),
                value_fields=tuple(bank.value_fields),
                counter_fields=tuple(bank.counter_fields),
                points=tuple(
                    PointSpec(
                        point=point.point,
                        mode=Mode(point.mode),
                        power_w=point.power_w,
                        hashrate_ths=point.hashrate_ths if point.HasField("hashrate_ths") else None,
                        throughput_ratio=point.throughput_ratio if point.HasField("throughput_ratio") else None,
                    )
                    for point in bank.points
                ),
                workloads=tuple(bank.workloads),
                meter=bank.meter,
            )
            for bank in inventory.banks
        ),
        meters=tuple(
            MeterSpec(
                meter=meter.meter,
                feeder=meter.feeder,
                window_s=duration_s(meter.window),
                lag_s=duration_s(meter.lag),
                error_ratio=meter.error_ratio,
                quantum_w=meter.quantum_w,
            )
            for meter in inventory.meters
        ),
        host_fields=tuple(inventory.host_fields),
        unsupported=tuple(inventory.unsupported),
        writes_enabled=inventory.writes_enabled,
    )


class ProtoRoundCodec:
    """The spool's translation: rounds and inventories as deterministic protobuf bytes."""

    def encode_round(self, round_: Round, sequence: int, first_sequence: int) -> bytes:
        return round_to_proto(round_, sequence, first_sequence).SerializeToString()

    def decode_round(self, payload: bytes) -> Round:
        """Raise InvalidInput for bytes that are no batch."""
        try:
            return round_from_proto(link_pb2.TelemetryBatch.FromString(payload))
        except (DecodeError, ValueError) as error:
            raise InvalidInput(f"a stored batch cannot be read: {error}", reason="BATCH_UNREADABLE") from error

    def encode_inventory(self, inventory: Inventory) -> bytes:
        return inventory_to_proto(inventory).SerializeToString(deterministic=True)

    def decode_inventory(self, payload: bytes) -> Inventory:
        """Raise InvalidInput for bytes that are no inventory."""
        try:
            return inventory_from_proto(link_pb2.Inventory.FromString(payload))
        except (DecodeError, ValueError) as error:
            raise InvalidInput(f"a stored inventory cannot be read: {error}", reason="BATCH_UNREADABLE") from error


# ---- control ----


def desired_hash(banks: Sequence[link_pb2.BankDesired]) -> str:
    """Return the SHA-256, hexadecimal, of the deterministic encoding of a DesiredState that holds only `banks`."""
    return hashlib.sha256(link_pb2.DesiredState(banks=banks).SerializeToString(deterministic=True)).hexdigest()


def order_from_proto(desired: link_pb2.DesiredState) -> AgentOrder:
    """Return the order.

    Raises:
        InvalidInput: its hash does not fit, or it holds a mode, urgency or number that makes no sense.
    """
    computed = desired_hash(desired.banks)
    if computed != desired.hash:
        raise InvalidInput(
            f"the order's hash is {desired.hash or 'empty'}, but its banks hash to {computed}; the controller must send it anew",
            reason="HASH_MISMATCH",
        )
    return AgentOrder(
        epoch=desired.epoch,
        controller_instance=desired.controller_instance,
        generation=desired.generation,
        hash=desired.hash,
        banks=tuple(_bank_order(bank) for bank in desired.banks),
        marker=desired.marker,
        ttl_s=duration_s(desired.ttl),
        ticket=desired.ticket,
    )


def _bank_order(bank: link_pb2.BankDesired) -> BankOrder:
    for name, number in (
        ("grant_w", bank.grant_w),
        ("device_budget_w", bank.device_budget_w),
        ("starts_per_s", bank.starts_per_s),
        *((f"points[{p.point}].power_w", p.power_w) for p in bank.points),
        *((f"points[{p.point}].count", p.count) for p in bank.points),
        *(("safe_shares.power_w", share.power_w) for share in bank.safe_shares),
    ):
        if not math.isfinite(number) or number < 0:
            raise InvalidInput(f"bank {bank.bank}: {name} is {number}; it must be 0 or more", reason="BAD_ORDER")
    try:
        urgency = Urgency(bank.urgency or Urgency.PLANNED.value)
        points = tuple(
            PointOrder(
                point=point.point,
                mode=Mode(point.mode),
                power_w=point.power_w,
                count=point.count,
                workload=point.workload,
                units=tuple(point.units),
            )
            for point in bank.points
        )
    except ValueError as error:
        raise InvalidInput(
            f"bank {bank.bank}: {error}; this agent is older than its controller", reason="BAD_ORDER"
        ) from error
    return BankOrder(
        bank=bank.bank,
        generation=bank.generation,
        grant_w=bank.grant_w,
        device_budget_w=bank.device_budget_w,
        points=points,
        urgency=urgency,
        safe_shares=tuple(_safe_share(share) for share in bank.safe_shares),
        locked_out=bank.locked_out,
        locked_devices=tuple(bank.locked_devices),
        starts_per_s=bank.starts_per_s,
        for_instance=bank.for_instance,
    )


def _safe_share(share: link_pb2.SafeShare) -> SafeShareStep:
    start = timestamp_s(share.start_time) if share.HasField("start_time") else None
    return SafeShareStep(start_unix_s=start, power_w=share.power_w)


def adopt_from_proto(adopt: service_pb2.Adopt) -> AdoptOrder:
    """Return the fence."""
    counting = tuple(
        BankCounting(
            bank=each.bank,
            gpu_limit_ratio=each.gpu_limit_ratio,
            asic_target_ratio=each.asic_target_ratio,
            asic_boot_w=each.asic_boot_w,
            rest_w=each.rest_w,
            device_ceiling_w=each.device_ceiling_w,
            cooling_ratio=each.cooling_ratio,
            losses_ratio=each.losses_ratio,
            fixed_w=each.fixed_w,
        )
        for each in adopt.counting
    )
    return AdoptOrder(
        epoch=adopt.epoch,
        controller_instance=adopt.controller_instance,
        marker=adopt.marker,
        counting=counting,
        ticket=adopt.ticket,
    )


def renewed_from_proto(renewed: service_pb2.Renewed) -> RenewalReply:
    """Return the answer to a renewal."""
    return RenewalReply(
        sent_boottime_ns=renewed.sent_boottime_ns,
        epoch=renewed.epoch,
        ttl_s=duration_s(renewed.ttl),
        marker=renewed.marker,
        ticket=renewed.ticket,
    )


def report_to_proto(report: AgentReport) -> link_pb2.EffectiveState:
    """Return the wire's effective state."""
    return link_pb2.EffectiveState(
        epoch=report.epoch,
        generation=report.generation,
        hash=report.hash,
        banks=[_bank_report(bank) for bank in report.banks],
        marker=report.marker,
        boottime_ns=round(report.boottime_s * _NS),
        boot_id=report.boot_id,
        refusal=report.refusal,
        instance_uid=report.instance_uid,
        sequence=report.sequence,
        fence_instance=report.fence_instance,
    )


def _bank_report(bank: BankReport) -> link_pb2.BankEffective:
    return link_pb2.BankEffective(
        bank=bank.bank,
        epoch=bank.epoch,
        generation=bank.generation,
        grant_w=bank.grant_w,
        allowed_w=bank.allowed_w,
        applied_generation=bank.applied_generation,
        applied_boottime_ns=round(bank.applied_boottime_s * _NS),
        has_in_flight=bank.has_in_flight,
        held_count=bank.held_count,
        observed=[
            link_pb2.PointCount(
                point=point.point,
                mode=cast("link_pb2.Mode", point.mode.value),
                power_w=point.power_w,
                count=point.count,
                workload=point.workload,
                units=point.units,
            )
            for point in bank.observed
        ],
        stragglers=[
            link_pb2.Straggler(device=each.device, reason=each.reason, attempt_count=each.attempt_count)
            for each in bank.stragglers
        ],
        counted_power_w=bank.counted_power_w,
        safe_shares=[
            link_pb2.SafeShare(
                start_time=None if share.start_unix_s is None else _timestamp(share.start_unix_s), power_w=share.power_w
            )
            for share in bank.safe_shares
        ],
        ready_workloads=[f"{each.unit}:{each.workload}" for each in bank.ready_workloads],
        failed_workloads=[f"{each.unit}:{each.workload}:{each.reason}" for each in bank.failed_workloads],
        released_units=bank.released_units,
        reported_w=bank.reported_w,
        is_lapsed=bank.is_lapsed,
        is_lost=bank.is_lost,
        unheld_count=bank.unheld_count,
        locked_out=bank.locked_out,
        locked_devices=bank.locked_devices,
        unit_holdings=[
            link_pb2.UnitHolding(
                unit=each.unit,
                holders=each.holders,
                workload=each.workload,
                has_process=each.has_process,
                reason=each.reason,
            )
            for each in bank.unit_holdings
        ],
    )
