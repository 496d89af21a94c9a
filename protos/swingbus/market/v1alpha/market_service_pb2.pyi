import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SignalValue(_message.Message):
    __slots__ = ("signal", "value", "valid_time")
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    VALID_TIME_FIELD_NUMBER: _ClassVar[int]
    signal: str
    value: str
    valid_time: _timestamp_pb2.Timestamp
    def __init__(self, signal: _Optional[str] = ..., value: _Optional[str] = ..., valid_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Signal(_message.Message):
    __slots__ = ("signal", "value", "valid_time", "receive_time", "source", "staleness_limit_s", "stale")
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    VALID_TIME_FIELD_NUMBER: _ClassVar[int]
    RECEIVE_TIME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    STALENESS_LIMIT_S_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    signal: str
    value: str
    valid_time: _timestamp_pb2.Timestamp
    receive_time: _timestamp_pb2.Timestamp
    source: str
    staleness_limit_s: float
    stale: bool
    def __init__(self, signal: _Optional[str] = ..., value: _Optional[str] = ..., valid_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., receive_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., source: _Optional[str] = ..., staleness_limit_s: _Optional[float] = ..., stale: _Optional[bool] = ...) -> None: ...

class ListSignalsRequest(_message.Message):
    __slots__ = ("parent",)
    PARENT_FIELD_NUMBER: _ClassVar[int]
    parent: str
    def __init__(self, parent: _Optional[str] = ...) -> None: ...

class ListSignalsResponse(_message.Message):
    __slots__ = ("signals",)
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    signals: _containers.RepeatedCompositeFieldContainer[Signal]
    def __init__(self, signals: _Optional[_Iterable[_Union[Signal, _Mapping]]] = ...) -> None: ...

class PushSignalsRequest(_message.Message):
    __slots__ = ("parent", "values", "request_id", "validate_only", "reason")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    parent: str
    values: _containers.RepeatedCompositeFieldContainer[SignalValue]
    request_id: str
    validate_only: bool
    reason: str
    def __init__(self, parent: _Optional[str] = ..., values: _Optional[_Iterable[_Union[SignalValue, _Mapping]]] = ..., request_id: _Optional[str] = ..., validate_only: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class PushSignalsResponse(_message.Message):
    __slots__ = ("accepted_count", "repeated_count")
    ACCEPTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    REPEATED_COUNT_FIELD_NUMBER: _ClassVar[int]
    accepted_count: int
    repeated_count: int
    def __init__(self, accepted_count: _Optional[int] = ..., repeated_count: _Optional[int] = ...) -> None: ...
