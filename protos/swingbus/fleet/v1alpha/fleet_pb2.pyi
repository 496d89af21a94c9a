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

class Authority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUTHORITY_UNSPECIFIED: _ClassVar[Authority]
    AUTHORITY_OBSERVE: _ClassVar[Authority]
    AUTHORITY_ADVISE: _ClassVar[Authority]
    AUTHORITY_CONTROL: _ClassVar[Authority]
AUTHORITY_UNSPECIFIED: Authority
AUTHORITY_OBSERVE: Authority
AUTHORITY_ADVISE: Authority
AUTHORITY_CONTROL: Authority

class Site(_message.Message):
    __slots__ = ("name", "authority", "price_zone", "epoch", "limit_w", "metered_power_w", "attributed_power_w", "unattributed_ratio", "claimed_power_w", "uncontrolled_power_w", "margin_power_w", "within_authority", "disturbance", "live_agent_count", "agent_count", "changed_settings")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    PRICE_ZONE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LIMIT_W_FIELD_NUMBER: _ClassVar[int]
    METERED_POWER_W_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTED_POWER_W_FIELD_NUMBER: _ClassVar[int]
    UNATTRIBUTED_RATIO_FIELD_NUMBER: _ClassVar[int]
    CLAIMED_POWER_W_FIELD_NUMBER: _ClassVar[int]
    UNCONTROLLED_POWER_W_FIELD_NUMBER: _ClassVar[int]
    MARGIN_POWER_W_FIELD_NUMBER: _ClassVar[int]
    WITHIN_AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    DISTURBANCE_FIELD_NUMBER: _ClassVar[int]
    LIVE_AGENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    AGENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    CHANGED_SETTINGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    authority: Authority
    price_zone: str
    epoch: int
    limit_w: float
    metered_power_w: float
    attributed_power_w: float
    unattributed_ratio: float
    claimed_power_w: float
    uncontrolled_power_w: float
    margin_power_w: float
    within_authority: bool
    disturbance: str
    live_agent_count: int
    agent_count: int
    changed_settings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., authority: _Optional[_Union[Authority, str]] = ..., price_zone: _Optional[str] = ..., epoch: _Optional[int] = ..., limit_w: _Optional[float] = ..., metered_power_w: _Optional[float] = ..., attributed_power_w: _Optional[float] = ..., unattributed_ratio: _Optional[float] = ..., claimed_power_w: _Optional[float] = ..., uncontrolled_power_w: _Optional[float] = ..., margin_power_w: _Optional[float] = ..., within_authority: _Optional[bool] = ..., disturbance: _Optional[str] = ..., live_agent_count: _Optional[int] = ..., agent_count: _Optional[int] = ..., changed_settings: _Optional[_Iterable[str]] = ...) -> None: ...

class Limit(_message.Message):
    __slots__ = ("limit_w", "window", "source", "start_time", "end_time")
    LIMIT_W_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    limit_w: float
    window: _duration_pb2.Duration
    source: str
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    def __init__(self, limit_w: _Optional[float] = ..., window: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., source: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Feeder(_message.Message):
    __slots__ = ("name", "parent", "kind", "limits", "limit_w", "metered_power_w", "metered_age", "claimed_power_w", "headroom_w", "meter", "meter_state", "uncontrolled_power_w", "margin_power_w")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_W_FIELD_NUMBER: _ClassVar[int]
    METERED_POWER_W_FIELD_NUMBER: _ClassVar[int]
    METERED_AGE_FIELD_NUMBER: _ClassVar[int]
    CLAIMED_POWER_W_FIELD_NUMBER: _ClassVar[int]
    HEADROOM_W_FIELD_NUMBER: _ClassVar[int]
    METER_FIELD_NUMBER: _ClassVar[int]
    METER_STATE_FIELD_NUMBER: _ClassVar[int]
    UNCONTROLLED_POWER_W_FIELD_NUMBER: _ClassVar[int]
    MARGIN_POWER_W_FIELD_NUMBER: _ClassVar[int]
    name: str
    parent: str
    kind: str
    limits: _containers.RepeatedCompositeFieldContainer[Limit]
    limit_w: float
    metered_power_w: float
    metered_age: _duration_pb2.Duration
    claimed_power_w: float
    headroom_w: float
    meter: str
    meter_state: str
    uncontrolled_power_w: float
    margin_power_w: float
    def __init__(self, name: _Optional[str] = ..., parent: _Optional[str] = ..., kind: _Optional[str] = ..., limits: _Optional[_Iterable[_Union[Limit, _Mapping]]] = ..., limit_w: _Optional[float] = ..., metered_power_w: _Optional[float] = ..., metered_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., claimed_power_w: _Optional[float] = ..., headroom_w: _Optional[float] = ..., meter: _Optional[str] = ..., meter_state: _Optional[str] = ..., uncontrolled_power_w: _Optional[float] = ..., margin_power_w: _Optional[float] = ...) -> None: ...

class Agent(_message.Message):
    __slots__ = ("name", "state", "version", "hostname", "last_seen_time", "acked_sequence", "sample_count", "certificate_expire_time", "unsupported", "host_values", "writes_enabled")
    class HostValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_TIME_FIELD_NUMBER: _ClassVar[int]
    ACKED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    UNSUPPORTED_FIELD_NUMBER: _ClassVar[int]
    HOST_VALUES_FIELD_NUMBER: _ClassVar[int]
    WRITES_ENABLED_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    version: str
    hostname: str
    last_seen_time: _timestamp_pb2.Timestamp
    acked_sequence: int
    sample_count: int
    certificate_expire_time: _timestamp_pb2.Timestamp
    unsupported: _containers.RepeatedScalarFieldContainer[str]
    host_values: _containers.ScalarMap[str, float]
    writes_enabled: bool
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., version: _Optional[str] = ..., hostname: _Optional[str] = ..., last_seen_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., acked_sequence: _Optional[int] = ..., sample_count: _Optional[int] = ..., certificate_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., unsupported: _Optional[_Iterable[str]] = ..., host_values: _Optional[_Mapping[str, float]] = ..., writes_enabled: _Optional[bool] = ...) -> None: ...

class Bank(_message.Message):
    __slots__ = ("name", "feeder", "kind", "device_class", "state", "device_count", "unit_size", "mode_counts", "grant_w", "claim_w", "power_w", "ceiling_w", "safe_share_w", "explanation", "pin", "lockout", "meter", "hashrate_ths")
    class ModeCountsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    FEEDER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_COUNT_FIELD_NUMBER: _ClassVar[int]
    UNIT_SIZE_FIELD_NUMBER: _ClassVar[int]
    MODE_COUNTS_FIELD_NUMBER: _ClassVar[int]
    GRANT_W_FIELD_NUMBER: _ClassVar[int]
    CLAIM_W_FIELD_NUMBER: _ClassVar[int]
    POWER_W_FIELD_NUMBER: _ClassVar[int]
    CEILING_W_FIELD_NUMBER: _ClassVar[int]
    SAFE_SHARE_W_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    LOCKOUT_FIELD_NUMBER: _ClassVar[int]
    METER_FIELD_NUMBER: _ClassVar[int]
    HASHRATE_THS_FIELD_NUMBER: _ClassVar[int]
    name: str
    feeder: str
    kind: _link_pb2.DeviceKind
    device_class: str
    state: str
    device_count: int
    unit_size: int
    mode_counts: _containers.ScalarMap[str, int]
    grant_w: float
    claim_w: float
    power_w: float
    ceiling_w: float
    safe_share_w: float
    explanation: str
    pin: str
    lockout: str
    meter: str
    hashrate_ths: float
    def __init__(self, name: _Optional[str] = ..., feeder: _Optional[str] = ..., kind: _Optional[_Union[_link_pb2.DeviceKind, str]] = ..., device_class: _Optional[str] = ..., state: _Optional[str] = ..., device_count: _Optional[int] = ..., unit_size: _Optional[int] = ..., mode_counts: _Optional[_Mapping[str, int]] = ..., grant_w: _Optional[float] = ..., claim_w: _Optional[float] = ..., power_w: _Optional[float] = ..., ceiling_w: _Optional[float] = ..., safe_share_w: _Optional[float] = ..., explanation: _Optional[str] = ..., pin: _Optional[str] = ..., lockout: _Optional[str] = ..., meter: _Optional[str] = ..., hashrate_ths: _Optional[float] = ...) -> None: ...

class FieldReading(_message.Message):
    __slots__ = ("field", "value", "status")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    field: str
    value: float
    status: str
    def __init__(self, field: _Optional[str] = ..., value: _Optional[float] = ..., status: _Optional[str] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("name", "spec", "condition", "mode", "fields", "read_time", "accusations")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    READ_TIME_FIELD_NUMBER: _ClassVar[int]
    ACCUSATIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    spec: _link_pb2.DeviceSpec
    condition: _link_pb2.DeviceCondition
    mode: _link_pb2.Mode
    fields: _containers.RepeatedCompositeFieldContainer[FieldReading]
    read_time: _timestamp_pb2.Timestamp
    accusations: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., spec: _Optional[_Union[_link_pb2.DeviceSpec, _Mapping]] = ..., condition: _Optional[_Union[_link_pb2.DeviceCondition, str]] = ..., mode: _Optional[_Union[_link_pb2.Mode, str]] = ..., fields: _Optional[_Iterable[_Union[FieldReading, _Mapping]]] = ..., read_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., accusations: _Optional[_Iterable[str]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("revision", "event_time", "kind", "subject", "author", "reason", "message", "facts")
    class FactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REVISION_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    revision: int
    event_time: _timestamp_pb2.Timestamp
    kind: str
    subject: str
    author: str
    reason: str
    message: str
    facts: _containers.ScalarMap[str, str]
    def __init__(self, revision: _Optional[int] = ..., event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., kind: _Optional[str] = ..., subject: _Optional[str] = ..., author: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., facts: _Optional[_Mapping[str, str]] = ...) -> None: ...
