import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from swingbus.link.v1alpha import link_pb2 as _link_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FlipPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FLIP_PHASE_UNSPECIFIED: _ClassVar[FlipPhase]
    FLIP_PHASE_PLANNED: _ClassVar[FlipPhase]
    FLIP_PHASE_DRAINING: _ClassVar[FlipPhase]
    FLIP_PHASE_RELEASED: _ClassVar[FlipPhase]
    FLIP_PHASE_SETTLING: _ClassVar[FlipPhase]
    FLIP_PHASE_STARTING: _ClassVar[FlipPhase]
    FLIP_PHASE_VERIFYING: _ClassVar[FlipPhase]
    FLIP_PHASE_ACTIVE: _ClassVar[FlipPhase]
    FLIP_PHASE_ROLLED_BACK: _ClassVar[FlipPhase]
    FLIP_PHASE_FAILED: _ClassVar[FlipPhase]
FLIP_PHASE_UNSPECIFIED: FlipPhase
FLIP_PHASE_PLANNED: FlipPhase
FLIP_PHASE_DRAINING: FlipPhase
FLIP_PHASE_RELEASED: FlipPhase
FLIP_PHASE_SETTLING: FlipPhase
FLIP_PHASE_STARTING: FlipPhase
FLIP_PHASE_VERIFYING: FlipPhase
FLIP_PHASE_ACTIVE: FlipPhase
FLIP_PHASE_ROLLED_BACK: FlipPhase
FLIP_PHASE_FAILED: FlipPhase

class PlannedPoint(_message.Message):
    __slots__ = ("point", "mode", "counted_power_w", "count", "value_usd_per_mwh")
    POINT_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    COUNTED_POWER_W_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    VALUE_USD_PER_MWH_FIELD_NUMBER: _ClassVar[int]
    point: str
    mode: _link_pb2.Mode
    counted_power_w: float
    count: int
    value_usd_per_mwh: float
    def __init__(self, point: _Optional[str] = ..., mode: _Optional[_Union[_link_pb2.Mode, str]] = ..., counted_power_w: _Optional[float] = ..., count: _Optional[int] = ..., value_usd_per_mwh: _Optional[float] = ...) -> None: ...

class PlannedBank(_message.Message):
    __slots__ = ("bank", "points", "explanation", "reason")
    BANK_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    bank: str
    points: _containers.RepeatedCompositeFieldContainer[PlannedPoint]
    explanation: str
    reason: str
    def __init__(self, bank: _Optional[str] = ..., points: _Optional[_Iterable[_Union[PlannedPoint, _Mapping]]] = ..., explanation: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("name", "basis_revision", "create_time", "banks", "marginal_value_usd_per_kw_h", "refusals", "signals")
    class MarginalValueUsdPerKwHEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    BASIS_REVISION_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    BANKS_FIELD_NUMBER: _ClassVar[int]
    MARGINAL_VALUE_USD_PER_KW_H_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    name: str
    basis_revision: int
    create_time: _timestamp_pb2.Timestamp
    banks: _containers.RepeatedCompositeFieldContainer[PlannedBank]
    marginal_value_usd_per_kw_h: _containers.ScalarMap[str, float]
    refusals: _containers.RepeatedScalarFieldContainer[str]
    signals: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., basis_revision: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., banks: _Optional[_Iterable[_Union[PlannedBank, _Mapping]]] = ..., marginal_value_usd_per_kw_h: _Optional[_Mapping[str, float]] = ..., refusals: _Optional[_Iterable[str]] = ..., signals: _Optional[_Iterable[str]] = ...) -> None: ...

class Flip(_message.Message):
    __slots__ = ("name", "bank", "device_count", "units", "from_mode", "to_mode", "from_point", "to_point", "phase", "create_time", "phase_time", "end_time", "deadline_time", "author", "reason", "history", "is_cap")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BANK_FIELD_NUMBER: _ClassVar[int]
    DEVICE_COUNT_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    FROM_MODE_FIELD_NUMBER: _ClassVar[int]
    TO_MODE_FIELD_NUMBER: _ClassVar[int]
    FROM_POINT_FIELD_NUMBER: _ClassVar[int]
    TO_POINT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    PHASE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_TIME_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    IS_CAP_FIELD_NUMBER: _ClassVar[int]
    name: str
    bank: str
    device_count: int
    units: _containers.RepeatedScalarFieldContainer[int]
    from_mode: _link_pb2.Mode
    to_mode: _link_pb2.Mode
    from_point: str
    to_point: str
    phase: FlipPhase
    create_time: _timestamp_pb2.Timestamp
    phase_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    deadline_time: _timestamp_pb2.Timestamp
    author: str
    reason: str
    history: _containers.RepeatedScalarFieldContainer[str]
    is_cap: bool
    def __init__(self, name: _Optional[str] = ..., bank: _Optional[str] = ..., device_count: _Optional[int] = ..., units: _Optional[_Iterable[int]] = ..., from_mode: _Optional[_Union[_link_pb2.Mode, str]] = ..., to_mode: _Optional[_Union[_link_pb2.Mode, str]] = ..., from_point: _Optional[str] = ..., to_point: _Optional[str] = ..., phase: _Optional[_Union[FlipPhase, str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., phase_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., deadline_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., author: _Optional[str] = ..., reason: _Optional[str] = ..., history: _Optional[_Iterable[str]] = ..., is_cap: _Optional[bool] = ...) -> None: ...

class EvidenceWindow(_message.Message):
    __slots__ = ("meter", "start_boottime_s", "end_boottime_s", "power_w", "upper_power_w", "granted_power_w")
    METER_FIELD_NUMBER: _ClassVar[int]
    START_BOOTTIME_S_FIELD_NUMBER: _ClassVar[int]
    END_BOOTTIME_S_FIELD_NUMBER: _ClassVar[int]
    POWER_W_FIELD_NUMBER: _ClassVar[int]
    UPPER_POWER_W_FIELD_NUMBER: _ClassVar[int]
    GRANTED_POWER_W_FIELD_NUMBER: _ClassVar[int]
    meter: str
    start_boottime_s: float
    end_boottime_s: float
    power_w: float
    upper_power_w: float
    granted_power_w: float
    def __init__(self, meter: _Optional[str] = ..., start_boottime_s: _Optional[float] = ..., end_boottime_s: _Optional[float] = ..., power_w: _Optional[float] = ..., upper_power_w: _Optional[float] = ..., granted_power_w: _Optional[float] = ...) -> None: ...

class Evidence(_message.Message):
    __slots__ = ("group", "settled", "reason", "settle_time", "windows", "stragglers")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SETTLE_TIME_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    STRAGGLERS_FIELD_NUMBER: _ClassVar[int]
    group: str
    settled: bool
    reason: str
    settle_time: _timestamp_pb2.Timestamp
    windows: _containers.RepeatedCompositeFieldContainer[EvidenceWindow]
    stragglers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, group: _Optional[str] = ..., settled: _Optional[bool] = ..., reason: _Optional[str] = ..., settle_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., windows: _Optional[_Iterable[_Union[EvidenceWindow, _Mapping]]] = ..., stragglers: _Optional[_Iterable[str]] = ...) -> None: ...

class Curtailment(_message.Message):
    __slots__ = ("name", "feeder", "limit_w", "create_time", "start_time", "end_time", "ramp", "window", "state", "author", "reason", "met_time", "baseline_power_w", "metered_power_w", "evidence", "payment_usd_per_mwh", "penalty_usd_per_mwh")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FEEDER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_W_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    RAMP_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MET_TIME_FIELD_NUMBER: _ClassVar[int]
    BASELINE_POWER_W_FIELD_NUMBER: _ClassVar[int]
    METERED_POWER_W_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    PAYMENT_USD_PER_MWH_FIELD_NUMBER: _ClassVar[int]
    PENALTY_USD_PER_MWH_FIELD_NUMBER: _ClassVar[int]
    name: str
    feeder: str
    limit_w: float
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    ramp: _duration_pb2.Duration
    window: _duration_pb2.Duration
    state: str
    author: str
    reason: str
    met_time: _timestamp_pb2.Timestamp
    baseline_power_w: float
    metered_power_w: float
    evidence: _containers.RepeatedCompositeFieldContainer[Evidence]
    payment_usd_per_mwh: str
    penalty_usd_per_mwh: str
    def __init__(self, name: _Optional[str] = ..., feeder: _Optional[str] = ..., limit_w: _Optional[float] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ramp: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., window: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., state: _Optional[str] = ..., author: _Optional[str] = ..., reason: _Optional[str] = ..., met_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., baseline_power_w: _Optional[float] = ..., metered_power_w: _Optional[float] = ..., evidence: _Optional[_Iterable[_Union[Evidence, _Mapping]]] = ..., payment_usd_per_mwh: _Optional[str] = ..., penalty_usd_per_mwh: _Optional[str] = ...) -> None: ...

class Pin(_message.Message):
    __slots__ = ("bank", "author", "reason", "create_time", "expire_time")
    BANK_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    bank: str
    author: str
    reason: str
    create_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, bank: _Optional[str] = ..., author: _Optional[str] = ..., reason: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Lockout(_message.Message):
    __slots__ = ("bank", "author", "reason", "create_time")
    BANK_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    bank: str
    author: str
    reason: str
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, bank: _Optional[str] = ..., author: _Optional[str] = ..., reason: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Reservation(_message.Message):
    __slots__ = ("name", "device_class", "gpu_count", "start_time", "end_time", "price_usd_per_gpu_h", "uptime_ratio", "credit_steps", "author", "served_gpu_count", "missed_minutes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    GPU_COUNT_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    PRICE_USD_PER_GPU_H_FIELD_NUMBER: _ClassVar[int]
    UPTIME_RATIO_FIELD_NUMBER: _ClassVar[int]
    CREDIT_STEPS_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    SERVED_GPU_COUNT_FIELD_NUMBER: _ClassVar[int]
    MISSED_MINUTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    device_class: str
    gpu_count: int
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    price_usd_per_gpu_h: str
    uptime_ratio: float
    credit_steps: _containers.RepeatedScalarFieldContainer[str]
    author: str
    served_gpu_count: int
    missed_minutes: float
    def __init__(self, name: _Optional[str] = ..., device_class: _Optional[str] = ..., gpu_count: _Optional[int] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., price_usd_per_gpu_h: _Optional[str] = ..., uptime_ratio: _Optional[float] = ..., credit_steps: _Optional[_Iterable[str]] = ..., author: _Optional[str] = ..., served_gpu_count: _Optional[int] = ..., missed_minutes: _Optional[float] = ...) -> None: ...
