import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from swingbus.link.v1alpha import link_pb2 as _link_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TelemetryHello(_message.Message):
    __slots__ = ("agent", "instance_uid", "spool_uid", "oldest_sequence", "newest_sequence", "inventory")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_UID_FIELD_NUMBER: _ClassVar[int]
    SPOOL_UID_FIELD_NUMBER: _ClassVar[int]
    OLDEST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    NEWEST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    INVENTORY_FIELD_NUMBER: _ClassVar[int]
    agent: str
    instance_uid: str
    spool_uid: str
    oldest_sequence: int
    newest_sequence: int
    inventory: _link_pb2.Inventory
    def __init__(self, agent: _Optional[str] = ..., instance_uid: _Optional[str] = ..., spool_uid: _Optional[str] = ..., oldest_sequence: _Optional[int] = ..., newest_sequence: _Optional[int] = ..., inventory: _Optional[_Union[_link_pb2.Inventory, _Mapping]] = ...) -> None: ...

class StreamTelemetryRequest(_message.Message):
    __slots__ = ("hello", "batch", "inventory")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    INVENTORY_FIELD_NUMBER: _ClassVar[int]
    hello: TelemetryHello
    batch: _link_pb2.TelemetryBatch
    inventory: _link_pb2.Inventory
    def __init__(self, hello: _Optional[_Union[TelemetryHello, _Mapping]] = ..., batch: _Optional[_Union[_link_pb2.TelemetryBatch, _Mapping]] = ..., inventory: _Optional[_Union[_link_pb2.Inventory, _Mapping]] = ...) -> None: ...

class TelemetryWelcome(_message.Message):
    __slots__ = ("acked_sequence", "acked_ranges", "credit", "period")
    ACKED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACKED_RANGES_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    acked_sequence: int
    acked_ranges: _containers.RepeatedScalarFieldContainer[int]
    credit: int
    period: _duration_pb2.Duration
    def __init__(self, acked_sequence: _Optional[int] = ..., acked_ranges: _Optional[_Iterable[int]] = ..., credit: _Optional[int] = ..., period: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class TelemetryAck(_message.Message):
    __slots__ = ("acked_sequence", "acked_ranges", "rejected")
    ACKED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACKED_RANGES_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    acked_sequence: int
    acked_ranges: _containers.RepeatedScalarFieldContainer[int]
    rejected: _containers.RepeatedCompositeFieldContainer[RejectedBatch]
    def __init__(self, acked_sequence: _Optional[int] = ..., acked_ranges: _Optional[_Iterable[int]] = ..., rejected: _Optional[_Iterable[_Union[RejectedBatch, _Mapping]]] = ...) -> None: ...

class RejectedBatch(_message.Message):
    __slots__ = ("sequence", "reason")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    reason: str
    def __init__(self, sequence: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class StreamTelemetryResponse(_message.Message):
    __slots__ = ("welcome", "ack")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    welcome: TelemetryWelcome
    ack: TelemetryAck
    def __init__(self, welcome: _Optional[_Union[TelemetryWelcome, _Mapping]] = ..., ack: _Optional[_Union[TelemetryAck, _Mapping]] = ...) -> None: ...

class ControlHello(_message.Message):
    __slots__ = ("agent", "instance_uid", "effective", "ticket")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_UID_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    agent: str
    instance_uid: str
    effective: _link_pb2.EffectiveState
    ticket: str
    def __init__(self, agent: _Optional[str] = ..., instance_uid: _Optional[str] = ..., effective: _Optional[_Union[_link_pb2.EffectiveState, _Mapping]] = ..., ticket: _Optional[str] = ...) -> None: ...

class Renewal(_message.Message):
    __slots__ = ("sent_boottime_ns", "ticket")
    SENT_BOOTTIME_NS_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    sent_boottime_ns: int
    ticket: str
    def __init__(self, sent_boottime_ns: _Optional[int] = ..., ticket: _Optional[str] = ...) -> None: ...

class StreamControlRequest(_message.Message):
    __slots__ = ("hello", "effective", "renewal")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_FIELD_NUMBER: _ClassVar[int]
    RENEWAL_FIELD_NUMBER: _ClassVar[int]
    hello: ControlHello
    effective: _link_pb2.EffectiveState
    renewal: Renewal
    def __init__(self, hello: _Optional[_Union[ControlHello, _Mapping]] = ..., effective: _Optional[_Union[_link_pb2.EffectiveState, _Mapping]] = ..., renewal: _Optional[_Union[Renewal, _Mapping]] = ...) -> None: ...

class Adopt(_message.Message):
    __slots__ = ("epoch", "controller_instance", "marker", "counting", "ticket")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    MARKER_FIELD_NUMBER: _ClassVar[int]
    COUNTING_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    controller_instance: str
    marker: int
    counting: _containers.RepeatedCompositeFieldContainer[_link_pb2.BankCounting]
    ticket: str
    def __init__(self, epoch: _Optional[int] = ..., controller_instance: _Optional[str] = ..., marker: _Optional[int] = ..., counting: _Optional[_Iterable[_Union[_link_pb2.BankCounting, _Mapping]]] = ..., ticket: _Optional[str] = ...) -> None: ...

class Renewed(_message.Message):
    __slots__ = ("sent_boottime_ns", "epoch", "ttl", "marker", "ticket")
    SENT_BOOTTIME_NS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    MARKER_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    sent_boottime_ns: int
    epoch: int
    ttl: _duration_pb2.Duration
    marker: int
    ticket: str
    def __init__(self, sent_boottime_ns: _Optional[int] = ..., epoch: _Optional[int] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., marker: _Optional[int] = ..., ticket: _Optional[str] = ...) -> None: ...

class StreamControlResponse(_message.Message):
    __slots__ = ("adopt", "desired", "renewed")
    ADOPT_FIELD_NUMBER: _ClassVar[int]
    DESIRED_FIELD_NUMBER: _ClassVar[int]
    RENEWED_FIELD_NUMBER: _ClassVar[int]
    adopt: Adopt
    desired: _link_pb2.DesiredState
    renewed: Renewed
    def __init__(self, adopt: _Optional[_Union[Adopt, _Mapping]] = ..., desired: _Optional[_Union[_link_pb2.DesiredState, _Mapping]] = ..., renewed: _Optional[_Union[Renewed, _Mapping]] = ...) -> None: ...
