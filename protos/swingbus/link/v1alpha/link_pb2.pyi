import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DeviceKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEVICE_KIND_UNSPECIFIED: _ClassVar[DeviceKind]
    DEVICE_KIND_GPU: _ClassVar[DeviceKind]
    DEVICE_KIND_ASIC: _ClassVar[DeviceKind]

class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODE_UNSPECIFIED: _ClassVar[Mode]
    MODE_MINING: _ClassVar[Mode]
    MODE_INFERENCE: _ClassVar[Mode]
    MODE_STANDBY: _ClassVar[Mode]
    MODE_OFF: _ClassVar[Mode]

class DeviceCondition(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEVICE_CONDITION_UNSPECIFIED: _ClassVar[DeviceCondition]
    DEVICE_CONDITION_OK: _ClassVar[DeviceCondition]
    DEVICE_CONDITION_UNAVAILABLE: _ClassVar[DeviceCondition]
    DEVICE_CONDITION_HUNG: _ClassVar[DeviceCondition]
    DEVICE_CONDITION_LOST: _ClassVar[DeviceCondition]
    DEVICE_CONDITION_UNSUPPORTED: _ClassVar[DeviceCondition]

class Urgency(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    URGENCY_UNSPECIFIED: _ClassVar[Urgency]
    URGENCY_PLANNED: _ClassVar[Urgency]
    URGENCY_EMERGENCY: _ClassVar[Urgency]
DEVICE_KIND_UNSPECIFIED: DeviceKind
DEVICE_KIND_GPU: DeviceKind
DEVICE_KIND_ASIC: DeviceKind
MODE_UNSPECIFIED: Mode
MODE_MINING: Mode
MODE_INFERENCE: Mode
MODE_STANDBY: Mode
MODE_OFF: Mode
DEVICE_CONDITION_UNSPECIFIED: DeviceCondition
DEVICE_CONDITION_OK: DeviceCondition
DEVICE_CONDITION_UNAVAILABLE: DeviceCondition
DEVICE_CONDITION_HUNG: DeviceCondition
DEVICE_CONDITION_LOST: DeviceCondition
DEVICE_CONDITION_UNSUPPORTED: DeviceCondition
URGENCY_UNSPECIFIED: Urgency
URGENCY_PLANNED: Urgency
URGENCY_EMERGENCY: Urgency

class DeviceSpec(_message.Message):
    __slots__ = ("device", "model", "firmware", "serial_number", "address", "unsupported_fields", "unit")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FIRMWARE_FIELD_NUMBER: _ClassVar[int]
    SERIAL_NUMBER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    UNSUPPORTED_FIELDS_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    device: str
    model: str
    firmware: str
    serial_number: str
    address: str
    unsupported_fields: _containers.RepeatedScalarFieldContainer[str]
    unit: int
    def __init__(self, device: _Optional[str] = ..., model: _Optional[str] = ..., firmware: _Optional[str] = ..., serial_number: _Optional[str] = ..., address: _Optional[str] = ..., unsupported_fields: _Optional[_Iterable[str]] = ..., unit: _Optional[int] = ...) -> None: ...

class OperatingPointSpec(_message.Message):
    __slots__ = ("point", "mode", "power_w", "hashrate_ths", "throughput_ratio")
    POINT_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    POWER_W_FIELD_NUMBER: _ClassVar[int]
    HASHRATE_THS_FIELD_NUMBER: _ClassVar[int]
    THROUGHPUT_RATIO_FIELD_NUMBER: _ClassVar[int]
    point: str
    mode: Mode
    power_w: float
    hashrate_ths: float
    throughput_ratio: float
    def __init__(self, point: _Optional[str] = ..., mode: _Optional[_Union[Mode, str]] = ..., power_w: _Optional[float] = ..., hashrate_ths: _Optional[float] = ..., throughput_ratio: _Optional[float] = ...) -> None: ...

class BankSpec(_message.Message):
    __slots__ = ("bank", "kind", "device_class", "unit_size", "devices", "value_fields", "counter_fields", "points", "workloads", "meter")
    BANK_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    UNIT_SIZE_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELDS_FIELD_NUMBER: _ClassVar[int]
    COUNTER_FIELDS_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    WORKLOADS_FIELD_NUMBER: _ClassVar[int]
    METER_FIELD_NUMBER: _ClassVar[int]
    bank: str
    kind: DeviceKind
    device_class: str
    unit_size: int
    devices: _containers.RepeatedCompositeFieldContainer[DeviceSpec]
    value_fields: _containers.RepeatedScalarFieldContainer[str]
    counter_fields: _containers.RepeatedScalarFieldContainer[str]
    points: _containers.RepeatedCompositeFieldContainer[OperatingPointSpec]
    workloads: _containers.RepeatedScalarFieldContainer[str]
    meter: str
    def __init__(self, bank: _Optional[str] = ..., kind: _Optional[_Union[DeviceKind, str]] = ..., device_class: _Optional[str] = ..., unit_size: _Optional[int] = ..., devices: _Optional[_Iterable[_Union[DeviceSpec, _Mapping]]] = ..., value_fields: _Optional[_Iterable[str]] = ..., counter_fields: _Optional[_Iterable[str]] = ..., points: _Optional[_Iterable[_Union[OperatingPointSpec, _Mapping]]] = ..., workloads: _Optional[_Iterable[str]] = ..., meter: _Optional[str] = ...) -> None: ...

class MeterSpec(_message.Message):
    __slots__ = ("meter", "feeder", "window", "lag", "error_ratio", "quantum_w")
    METER_FIELD_NUMBER: _ClassVar[int]
    FEEDER_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    LAG_FIELD_NUMBER: _ClassVar[int]
    ERROR_RATIO_FIELD_NUMBER: _ClassVar[int]
    QUANTUM_W_FIELD_NUMBER: _ClassVar[int]
    meter: str
    feeder: str
    window: _duration_pb2.Duration
    lag: _duration_pb2.Duration
    error_ratio: float
    quantum_w: float
    def __init__(self, meter: _Optional[str] = ..., feeder: _Optional[str] = ..., window: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., lag: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., error_ratio: _Optional[float] = ..., quantum_w: _Optional[float] = ...) -> None: ...

class Inventory(_message.Message):
    __slots__ = ("version", "hostname", "banks", "meters", "host_fields", "unsupported", "writes_enabled")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    BANKS_FIELD_NUMBER: _ClassVar[int]
    METERS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELDS_FIELD_NUMBER: _ClassVar[int]
    UNSUPPORTED_FIELD_NUMBER: _ClassVar[int]
    WRITES_ENABLED_FIELD_NUMBER: _ClassVar[int]
    version: str
    hostname: str
    banks: _containers.RepeatedCompositeFieldContainer[BankSpec]
    meters: _containers.RepeatedCompositeFieldContainer[MeterSpec]
    host_fields: _containers.RepeatedScalarFieldContainer[str]
    unsupported: _containers.RepeatedScalarFieldContainer[str]
    writes_enabled: bool
    def __init__(self, version: _Optional[str] = ..., hostname: _Optional[str] = ..., banks: _Optional[_Iterable[_Union[BankSpec, _Mapping]]] = ..., meters: _Optional[_Iterable[_Union[MeterSpec, _Mapping]]] = ..., host_fields: _Optional[_Iterable[str]] = ..., unsupported: _Optional[_Iterable[str]] = ..., writes_enabled: _Optional[bool] = ...) -> None: ...

class BankSamples(_message.Message):
    __slots__ = ("bank_index", "values", "counters", "conditions", "modes", "read_boottime_ns")
    BANK_INDEX_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    MODES_FIELD_NUMBER: _ClassVar[int]
    READ_BOOTTIME_NS_FIELD_NUMBER: _ClassVar[int]
    bank_index: int
    values: _containers.RepeatedScalarFieldContainer[float]
    counters: _containers.RepeatedScalarFieldContainer[float]
    conditions: _containers.RepeatedScalarFieldContainer[DeviceCondition]
    modes: _containers.RepeatedScalarFieldContainer[Mode]
    read_boottime_ns: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, bank_index: _Optional[int] = ..., values: _Optional[_Iterable[float]] = ..., counters: _Optional[_Iterable[float]] = ..., conditions: _Optional[_Iterable[_Union[DeviceCondition, str]]] = ..., modes: _Optional[_Iterable[_Union[Mode, str]]] = ..., read_boottime_ns: _Optional[_Iterable[int]] = ...) -> None: ...

class MeterSample(_message.Message):
    __slots__ = ("meter_index", "measurement_count", "window_start_boottime_ns", "window_end_boottime_ns", "marker", "power_w", "energy_j", "voltage_v", "current_a", "power_factor", "fault", "marker_epoch")
    METER_INDEX_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    WINDOW_START_BOOTTIME_NS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_END_BOOTTIME_NS_FIELD_NUMBER: _ClassVar[int]
    MARKER_FIELD_NUMBER: _ClassVar[int]
    POWER_W_FIELD_NUMBER: _ClassVar[int]
    ENERGY_J_FIELD_NUMBER: _ClassVar[int]
    VOLTAGE_V_FIELD_NUMBER: _ClassVar[int]
    CURRENT_A_FIELD_NUMBER: _ClassVar[int]
    POWER_FACTOR_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    MARKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    meter_index: int
    measurement_count: int
    window_start_boottime_ns: int
    window_end_boottime_ns: int
    marker: int
    power_w: float
    energy_j: float
    voltage_v: float
    current_a: float
    power_factor: float
    fault: str
    marker_epoch: int
    def __init__(self, meter_index: _Optional[int] = ..., measurement_count: _Optional[int] = ..., window_start_boottime_ns: _Optional[int] = ..., window_end_boottime_ns: _Optional[int] = ..., marker: _Optional[int] = ..., power_w: _Optional[float] = ..., energy_j: _Optional[float] = ..., voltage_v: _Optional[float] = ..., current_a: _Optional[float] = ..., power_factor: _Optional[float] = ..., fault: _Optional[str] = ..., marker_epoch: _Optional[int] = ...) -> None: ...

class AgentEvent(_message.Message):
    __slots__ = ("kind", "bank", "device", "message", "event_time")
    KIND_FIELD_NUMBER: _ClassVar[int]
    BANK_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    kind: str
    bank: str
    device: str
    message: str
    event_time: _timestamp_pb2.Timestamp
    def __init__(self, kind: _Optional[str] = ..., bank: _Optional[str] = ..., device: _Optional[str] = ..., message: _Optional[str] = ..., event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class TelemetryBatch(_message.Message):
    __slots__ = ("sequence", "sample_time", "sample_boottime_ns", "boot_id", "banks", "meters", "host_values", "events", "thinned", "first_sequence")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_TIME_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_BOOTTIME_NS_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    BANKS_FIELD_NUMBER: _ClassVar[int]
    METERS_FIELD_NUMBER: _ClassVar[int]
    HOST_VALUES_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    THINNED_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    sample_time: _timestamp_pb2.Timestamp
    sample_boottime_ns: int
    boot_id: str
    banks: _containers.RepeatedCompositeFieldContainer[BankSamples]
    meters: _containers.RepeatedCompositeFieldContainer[MeterSample]
    host_values: _containers.RepeatedScalarFieldContainer[float]
    events: _containers.RepeatedCompositeFieldContainer[AgentEvent]
    thinned: bool
    first_sequence: int
    def __init__(self, sequence: _Optional[int] = ..., sample_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., sample_boottime_ns: _Optional[int] = ..., boot_id: _Optional[str] = ..., banks: _Optional[_Iterable[_Union[BankSamples, _Mapping]]] = ..., meters: _Optional[_Iterable[_Union[MeterSample, _Mapping]]] = ..., host_values: _Optional[_Iterable[float]] = ..., events: _Optional[_Iterable[_Union[AgentEvent, _Mapping]]] = ..., thinned: _Optional[bool] = ..., first_sequence: _Optional[int] = ...) -> None: ...

class PointCount(_message.Message):
    __slots__ = ("point", "mode", "power_w", "count", "workload", "units")
    POINT_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    POWER_W_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    point: str
    mode: Mode
    power_w: float
    count: int
    workload: str
    units: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, point: _Optional[str] = ..., mode: _Optional[_Union[Mode, str]] = ..., power_w: _Optional[float] = ..., count: _Optional[int] = ..., workload: _Optional[str] = ..., units: _Optional[_Iterable[int]] = ...) -> None: ...

class SafeShare(_message.Message):
    __slots__ = ("start_time", "power_w")
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    POWER_W_FIELD_NUMBER: _ClassVar[int]
    start_time: _timestamp_pb2.Timestamp
    power_w: float
    def __init__(self, start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., power_w: _Optional[float] = ...) -> None: ...

class BankCounting(_message.Message):
    __slots__ = ("bank", "gpu_limit_ratio", "asic_target_ratio", "asic_boot_w", "rest_w", "device_ceiling_w", "cooling_ratio", "losses_ratio", "fixed_w")
    BANK_FIELD_NUMBER: _ClassVar[int]
    GPU_LIMIT_RATIO_FIELD_NUMBER: _ClassVar[int]
    ASIC_TARGET_RATIO_FIELD_NUMBER: _ClassVar[int]
    ASIC_BOOT_W_FIELD_NUMBER: _ClassVar[int]
    REST_W_FIELD_NUMBER: _ClassVar[int]
    DEVICE_CEILING_W_FIELD_NUMBER: _ClassVar[int]
    COOLING_RATIO_FIELD_NUMBER: _ClassVar[int]
    LOSSES_RATIO_FIELD_NUMBER: _ClassVar[int]
    FIXED_W_FIELD_NUMBER: _ClassVar[int]
    bank: str
    gpu_limit_ratio: float
    asic_target_ratio: float
    asic_boot_w: float
    rest_w: float
    device_ceiling_w: float
    cooling_ratio: float
    losses_ratio: float
    fixed_w: float
    def __init__(self, bank: _Optional[str] = ..., gpu_limit_ratio: _Optional[float] = ..., asic_target_ratio: _Optional[float] = ..., asic_boot_w: _Optional[float] = ..., rest_w: _Optional[float] = ..., device_ceiling_w: _Optional[float] = ..., cooling_ratio: _Optional[float] = ..., losses_ratio: _Optional[float] = ..., fixed_w: _Optional[float] = ...) -> None: ...

class BankDesired(_message.Message):
    __slots__ = ("bank", "generation", "grant_w", "device_budget_w", "points", "urgency", "safe_shares", "locked_devices", "locked_out", "starts_per_s", "for_instance")
    BANK_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    GRANT_W_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BUDGET_W_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    URGENCY_FIELD_NUMBER: _ClassVar[int]
    SAFE_SHARES_FIELD_NUMBER: _ClassVar[int]
    LOCKED_DEVICES_FIELD_NUMBER: _ClassVar[int]
    LOCKED_OUT_FIELD_NUMBER: _ClassVar[int]
    STARTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    FOR_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    bank: str
    generation: int
    grant_w: float
    device_budget_w: float
    points: _containers.RepeatedCompositeFieldContainer[PointCount]
    urgency: Urgency
    safe_shares: _containers.RepeatedCompositeFieldContainer[SafeShare]
    locked_devices: _containers.RepeatedScalarFieldContainer[str]
    locked_out: bool
    starts_per_s: float
    for_instance: str
    def __init__(self, bank: _Optional[str] = ..., generation: _Optional[int] = ..., grant_w: _Optional[float] = ..., device_budget_w: _Optional[float] = ..., points: _Optional[_Iterable[_Union[PointCount, _Mapping]]] = ..., urgency: _Optional[_Union[Urgency, str]] = ..., safe_shares: _Optional[_Iterable[_Union[SafeShare, _Mapping]]] = ..., locked_devices: _Optional[_Iterable[str]] = ..., locked_out: _Optional[bool] = ..., starts_per_s: _Optional[float] = ..., for_instance: _Optional[str] = ...) -> None: ...

class DesiredState(_message.Message):
    __slots__ = ("epoch", "controller_instance", "generation", "hash", "banks", "marker", "ttl", "ticket")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    BANKS_FIELD_NUMBER: _ClassVar[int]
    MARKER_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    controller_instance: str
    generation: int
    hash: str
    banks: _containers.RepeatedCompositeFieldContainer[BankDesired]
    marker: int
    ttl: _duration_pb2.Duration
    ticket: str
    def __init__(self, epoch: _Optional[int] = ..., controller_instance: _Optional[str] = ..., generation: _Optional[int] = ..., hash: _Optional[str] = ..., banks: _Optional[_Iterable[_Union[BankDesired, _Mapping]]] = ..., marker: _Optional[int] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ticket: _Optional[str] = ...) -> None: ...

class Straggler(_message.Message):
    __slots__ = ("device", "reason", "attempt_count")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_COUNT_FIELD_NUMBER: _ClassVar[int]
    device: str
    reason: str
    attempt_count: int
    def __init__(self, device: _Optional[str] = ..., reason: _Optional[str] = ..., attempt_count: _Optional[int] = ...) -> None: ...

class UnitHolding(_message.Message):
    __slots__ = ("unit", "holders", "workload", "has_process", "reason")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    HAS_PROCESS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    unit: int
    holders: _containers.RepeatedScalarFieldContainer[str]
    workload: str
    has_process: bool
    reason: str
    def __init__(self, unit: _Optional[int] = ..., holders: _Optional[_Iterable[str]] = ..., workload: _Optional[str] = ..., has_process: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class BankEffective(_message.Message):
    __slots__ = ("bank", "epoch", "generation", "grant_w", "allowed_w", "applied_generation", "applied_boottime_ns", "has_in_flight", "held_count", "observed", "stragglers", "counted_power_w", "safe_shares", "ready_workloads", "failed_workloads", "released_units", "reported_w", "is_lapsed", "is_lost", "unheld_count", "locked_out", "locked_devices", "unit_holdings")
    BANK_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    GRANT_W_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_W_FIELD_NUMBER: _ClassVar[int]
    APPLIED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    APPLIED_BOOTTIME_NS_FIELD_NUMBER: _ClassVar[int]
    HAS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    HELD_COUNT_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    STRAGGLERS_FIELD_NUMBER: _ClassVar[int]
    COUNTED_POWER_W_FIELD_NUMBER: _ClassVar[int]
    SAFE_SHARES_FIELD_NUMBER: _ClassVar[int]
    READY_WORKLOADS_FIELD_NUMBER: _ClassVar[int]
    FAILED_WORKLOADS_FIELD_NUMBER: _ClassVar[int]
    RELEASED_UNITS_FIELD_NUMBER: _ClassVar[int]
    REPORTED_W_FIELD_NUMBER: _ClassVar[int]
    IS_LAPSED_FIELD_NUMBER: _ClassVar[int]
    IS_LOST_FIELD_NUMBER: _ClassVar[int]
    UNHELD_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOCKED_OUT_FIELD_NUMBER: _ClassVar[int]
    LOCKED_DEVICES_FIELD_NUMBER: _ClassVar[int]
    UNIT_HOLDINGS_FIELD_NUMBER: _ClassVar[int]
    bank: str
    epoch: int
    generation: int
    grant_w: float
    allowed_w: float
    applied_generation: int
    applied_boottime_ns: int
    has_in_flight: bool
    held_count: int
    observed: _containers.RepeatedCompositeFieldContainer[PointCount]
    stragglers: _containers.RepeatedCompositeFieldContainer[Straggler]
    counted_power_w: float
    safe_shares: _containers.RepeatedCompositeFieldContainer[SafeShare]
    ready_workloads: _containers.RepeatedScalarFieldContainer[str]
    failed_workloads: _containers.RepeatedScalarFieldContainer[str]
    released_units: _containers.RepeatedScalarFieldContainer[int]
    reported_w: float
    is_lapsed: bool
    is_lost: bool
    unheld_count: int
    locked_out: bool
    locked_devices: _containers.RepeatedScalarFieldContainer[str]
    unit_holdings: _containers.RepeatedCompositeFieldContainer[UnitHolding]
    def __init__(self, bank: _Optional[str] = ..., epoch: _Optional[int] = ..., generation: _Optional[int] = ..., grant_w: _Optional[float] = ..., allowed_w: _Optional[float] = ..., applied_generation: _Optional[int] = ..., applied_boottime_ns: _Optional[int] = ..., has_in_flight: _Optional[bool] = ..., held_count: _Optional[int] = ..., observed: _Optional[_Iterable[_Union[PointCount, _Mapping]]] = ..., stragglers: _Optional[_Iterable[_Union[Straggler, _Mapping]]] = ..., counted_power_w: _Optional[float] = ..., safe_shares: _Optional[_Iterable[_Union[SafeShare, _Mapping]]] = ..., ready_workloads: _Optional[_Iterable[str]] = ..., failed_workloads: _Optional[_Iterable[str]] = ..., released_units: _Optional[_Iterable[int]] = ..., reported_w: _Optional[float] = ..., is_lapsed: _Optional[bool] = ..., is_lost: _Optional[bool] = ..., unheld_count: _Optional[int] = ..., locked_out: _Optional[bool] = ..., locked_devices: _Optional[_Iterable[str]] = ..., unit_holdings: _Optional[_Iterable[_Union[UnitHolding, _Mapping]]] = ...) -> None: ...

class EffectiveState(_message.Message):
    __slots__ = ("epoch", "generation", "hash", "banks", "marker", "boottime_ns", "boot_id", "refusal", "instance_uid", "sequence", "fence_instance")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    BANKS_FIELD_NUMBER: _ClassVar[int]
    MARKER_FIELD_NUMBER: _ClassVar[int]
    BOOTTIME_NS_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_UID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FENCE_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    generation: int
    hash: str
    banks: _containers.RepeatedCompositeFieldContainer[BankEffective]
    marker: int
    boottime_ns: int
    boot_id: str
    refusal: str
    instance_uid: str
    sequence: int
    fence_instance: str
    def __init__(self, epoch: _Optional[int] = ..., generation: _Optional[int] = ..., hash: _Optional[str] = ..., banks: _Optional[_Iterable[_Union[BankEffective, _Mapping]]] = ..., marker: _Optional[int] = ..., boottime_ns: _Optional[int] = ..., boot_id: _Optional[str] = ..., refusal: _Optional[str] = ..., instance_uid: _Optional[str] = ..., sequence: _Optional[int] = ..., fence_instance: _Optional[str] = ...) -> None: ...
