import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from swingbus.capacity.v1alpha import capacity_pb2 as _capacity_pb2
from swingbus.fleet.v1alpha import fleet_pb2 as _fleet_pb2
from swingbus.link.v1alpha import link_pb2 as _link_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WriteOptions(_message.Message):
    __slots__ = ("request_id", "reason", "validate_only")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    reason: str
    validate_only: bool
    def __init__(self, request_id: _Optional[str] = ..., reason: _Optional[str] = ..., validate_only: _Optional[bool] = ...) -> None: ...

class GetPlanRequest(_message.Message):
    __slots__ = ("parent",)
    PARENT_FIELD_NUMBER: _ClassVar[int]
    parent: str
    def __init__(self, parent: _Optional[str] = ...) -> None: ...

class GetPlanResponse(_message.Message):
    __slots__ = ("plan",)
    PLAN_FIELD_NUMBER: _ClassVar[int]
    plan: _capacity_pb2.Plan
    def __init__(self, plan: _Optional[_Union[_capacity_pb2.Plan, _Mapping]] = ...) -> None: ...

class ExplainBankRequest(_message.Message):
    __slots__ = ("name", "why_not")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WHY_NOT_FIELD_NUMBER: _ClassVar[int]
    name: str
    why_not: _link_pb2.Mode
    def __init__(self, name: _Optional[str] = ..., why_not: _Optional[_Union[_link_pb2.Mode, str]] = ...) -> None: ...

class ExplainBankResponse(_message.Message):
    __slots__ = ("explanation", "facts")
    class FactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    explanation: str
    facts: _containers.ScalarMap[str, str]
    def __init__(self, explanation: _Optional[str] = ..., facts: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ListFlipsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token", "open_only")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    OPEN_ONLY_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    open_only: bool
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., open_only: _Optional[bool] = ...) -> None: ...

class ListFlipsResponse(_message.Message):
    __slots__ = ("flips", "next_page_token")
    FLIPS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    flips: _containers.RepeatedCompositeFieldContainer[_capacity_pb2.Flip]
    next_page_token: str
    def __init__(self, flips: _Optional[_Iterable[_Union[_capacity_pb2.Flip, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetFlipRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetFlipResponse(_message.Message):
    __slots__ = ("flip",)
    FLIP_FIELD_NUMBER: _ClassVar[int]
    flip: _capacity_pb2.Flip
    def __init__(self, flip: _Optional[_Union[_capacity_pb2.Flip, _Mapping]] = ...) -> None: ...

class RequestFlipRequest(_message.Message):
    __slots__ = ("bank", "device_count", "from_mode", "to_mode", "options")
    BANK_FIELD_NUMBER: _ClassVar[int]
    DEVICE_COUNT_FIELD_NUMBER: _ClassVar[int]
    FROM_MODE_FIELD_NUMBER: _ClassVar[int]
    TO_MODE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    bank: str
    device_count: int
    from_mode: _link_pb2.Mode
    to_mode: _link_pb2.Mode
    options: WriteOptions
    def __init__(self, bank: _Optional[str] = ..., device_count: _Optional[int] = ..., from_mode: _Optional[_Union[_link_pb2.Mode, str]] = ..., to_mode: _Optional[_Union[_link_pb2.Mode, str]] = ..., options: _Optional[_Union[WriteOptions, _Mapping]] = ...) -> None: ...

class RequestFlipResponse(_message.Message):
    __slots__ = ("flip",)
    FLIP_FIELD_NUMBER: _ClassVar[int]
    flip: _capacity_pb2.Flip
    def __init__(self, flip: _Optional[_Union[_capacity_pb2.Flip, _Mapping]] = ...) -> None: ...

class CancelFlipRequest(_message.Message):
    __slots__ = ("name", "options")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    options: WriteOptions
    def __init__(self, name: _Optional[str] = ..., options: _Optional[_Union[WriteOptions, _Mapping]] = ...) -> None: ...

class CancelFlipResponse(_message.Message):
    __slots__ = ("flip",)
    FLIP_FIELD_NUMBER: _ClassVar[int]
    flip: _capacity_pb2.Flip
    def __init__(self, flip: _Optional[_Union[_capacity_pb2.Flip, _Mapping]] = ...) -> None: ...

class ListCurtailmentsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListCurtailmentsResponse(_message.Message):
    __slots__ = ("curtailments", "next_page_token")
    CURTAILMENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    curtailments: _containers.RepeatedCompositeFieldContainer[_capacity_pb2.Curtailment]
    next_page_token: str
    def __init__(self, curtailments: _Optional[_Iterable[_Union[_capacity_pb2.Curtailment, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetCurtailmentRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetCurtailmentResponse(_message.Message):
    __slots__ = ("curtailment",)
    CURTAILMENT_FIELD_NUMBER: _ClassVar[int]
    curtailment: _capacity_pb2.Curtailment
    def __init__(self, curtailment: _Optional[_Union[_capacity_pb2.Curtailment, _Mapping]] = ...) -> None: ...

class StartCurtailmentRequest(_message.Message):
    __slots__ = ("parent", "feeder", "limit_w", "notice", "ramp", "duration", "window", "payment_usd_per_mwh", "penalty_usd_per_mwh", "options")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    FEEDER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_W_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    RAMP_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    PAYMENT_USD_PER_MWH_FIELD_NUMBER: _ClassVar[int]
    PENALTY_USD_PER_MWH_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    parent: str
    feeder: str
    limit_w: float
    notice: _duration_pb2.Duration
    ramp: _duration_pb2.Duration
    duration: _duration_pb2.Duration
    window: _duration_pb2.Duration
    payment_usd_per_mwh: str
    penalty_usd_per_mwh: str
    options: WriteOptions
    def __init__(self, parent: _Optional[str] = ..., feeder: _Optional[str] = ..., limit_w: _Optional[float] = ..., notice: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ramp: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., window: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., payment_usd_per_mwh: _Optional[str] = ..., penalty_usd_per_mwh: _Optional[str] = ..., options: _Optional[_Union[WriteOptions, _Mapping]] = ...) -> None: ...

class StartCurtailmentResponse(_message.Message):
    __slots__ = ("curtailment", "preview")
    CURTAILMENT_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    curtailment: _capacity_pb2.Curtailment
    preview: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, curtailment: _Optional[_Union[_capacity_pb2.Curtailment, _Mapping]] = ..., preview: _Optional[_Iterable[str]] = ...) -> None: ...

class EndCurtailmentRequest(_message.Message):
    __slots__ = ("name", "options")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    options: WriteOptions
    def __init__(self, name: _Optional[str] = ..., options: _Optional[_Union[WriteOptions, _Mapping]] = ...) -> None: ...

class EndCurtailmentResponse(_message.Message):
    __slots__ = ("curtailment",)
    CURTAILMENT_FIELD_NUMBER: _ClassVar[int]
    curtailment: _capacity_pb2.Curtailment
    def __init__(self, curtailment: _Optional[_Union[_capacity_pb2.Curtailment, _Mapping]] = ...) -> None: ...

class SetFeederLimitRequest(_message.Message):
    __slots__ = ("name", "limit_w", "options")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LIMIT_W_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    limit_w: float
    options: WriteOptions
    def __init__(self, name: _Optional[str] = ..., limit_w: _Optional[float] = ..., options: _Optional[_Union[WriteOptions, _Mapping]] = ...) -> None: ...

class SetFeederLimitResponse(_message.Message):
    __slots__ = ("feeder",)
    FEEDER_FIELD_NUMBER: _ClassVar[int]
    feeder: _fleet_pb2.Feeder
    def __init__(self, feeder: _Optional[_Union[_fleet_pb2.Feeder, _Mapping]] = ...) -> None: ...

class ListPinsRequest(_message.Message):
    __slots__ = ("parent",)
    PARENT_FIELD_NUMBER: _ClassVar[int]
    parent: str
    def __init__(self, parent: _Optional[str] = ...) -> None: ...

class ListPinsResponse(_message.Message):
    __slots__ = ("pins",)
    PINS_FIELD_NUMBER: _ClassVar[int]
    pins: _containers.RepeatedCompositeFieldContainer[_capacity_pb2.Pin]
    def __init__(self, pins: _Optional[_Iterable[_Union[_capacity_pb2.Pin, _Mapping]]] = ...) -> None: ...

class SetPinRequest(_message.Message):
    __slots__ = ("bank", "pinned", "duration", "options")
    BANK_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    bank: str
    pinned: bool
    duration: _duration_pb2.Duration
    options: WriteOptions
    def __init__(self, bank: _Optional[str] = ..., pinned: _Optional[bool] = ..., duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., options: _Optional[_Union[WriteOptions, _Mapping]] = ...) -> None: ...

class SetPinResponse(_message.Message):
    __slots__ = ("pin",)
    PIN_FIELD_NUMBER: _ClassVar[int]
    pin: _capacity_pb2.Pin
    def __init__(self, pin: _Optional[_Union[_capacity_pb2.Pin, _Mapping]] = ...) -> None: ...

class ListLockoutsRequest(_message.Message):
    __slots__ = ("parent",)
    PARENT_FIELD_NUMBER: _ClassVar[int]
    parent: str
    def __init__(self, parent: _Optional[str] = ...) -> None: ...

class ListLockoutsResponse(_message.Message):
    __slots__ = ("lockouts",)
    LOCKOUTS_FIELD_NUMBER: _ClassVar[int]
    lockouts: _containers.RepeatedCompositeFieldContainer[_capacity_pb2.Lockout]
    def __init__(self, lockouts: _Optional[_Iterable[_Union[_capacity_pb2.Lockout, _Mapping]]] = ...) -> None: ...

class SetLockoutRequest(_message.Message):
    __slots__ = ("bank", "locked_out", "cleared_by", "options")
    BANK_FIELD_NUMBER: _ClassVar[int]
    LOCKED_OUT_FIELD_NUMBER: _ClassVar[int]
    CLEARED_BY_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    bank: str
    locked_out: bool
    cleared_by: str
    options: WriteOptions
    def __init__(self, bank: _Optional[str] = ..., locked_out: _Optional[bool] = ..., cleared_by: _Optional[str] = ..., options: _Optional[_Union[WriteOptions, _Mapping]] = ...) -> None: ...

class SetLockoutResponse(_message.Message):
    __slots__ = ("lockout",)
    LOCKOUT_FIELD_NUMBER: _ClassVar[int]
    lockout: _capacity_pb2.Lockout
    def __init__(self, lockout: _Optional[_Union[_capacity_pb2.Lockout, _Mapping]] = ...) -> None: ...

class SetAuthorityRequest(_message.Message):
    __slots__ = ("name", "authority", "options")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    authority: _fleet_pb2.Authority
    options: WriteOptions
    def __init__(self, name: _Optional[str] = ..., authority: _Optional[_Union[_fleet_pb2.Authority, str]] = ..., options: _Optional[_Union[WriteOptions, _Mapping]] = ...) -> None: ...

class SetAuthorityResponse(_message.Message):
    __slots__ = ("site",)
    SITE_FIELD_NUMBER: _ClassVar[int]
    site: _fleet_pb2.Site
    def __init__(self, site: _Optional[_Union[_fleet_pb2.Site, _Mapping]] = ...) -> None: ...

class ListReservationsRequest(_message.Message):
    __slots__ = ("parent",)
    PARENT_FIELD_NUMBER: _ClassVar[int]
    parent: str
    def __init__(self, parent: _Optional[str] = ...) -> None: ...

class ListReservationsResponse(_message.Message):
    __slots__ = ("reservations",)
    RESERVATIONS_FIELD_NUMBER: _ClassVar[int]
    reservations: _containers.RepeatedCompositeFieldContainer[_capacity_pb2.Reservation]
    def __init__(self, reservations: _Optional[_Iterable[_Union[_capacity_pb2.Reservation, _Mapping]]] = ...) -> None: ...

class CreateReservationRequest(_message.Message):
    __slots__ = ("parent", "reservation_id", "reservation", "options")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    parent: str
    reservation_id: str
    reservation: _capacity_pb2.Reservation
    options: WriteOptions
    def __init__(self, parent: _Optional[str] = ..., reservation_id: _Optional[str] = ..., reservation: _Optional[_Union[_capacity_pb2.Reservation, _Mapping]] = ..., options: _Optional[_Union[WriteOptions, _Mapping]] = ...) -> None: ...

class CreateReservationResponse(_message.Message):
    __slots__ = ("reservation",)
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    reservation: _capacity_pb2.Reservation
    def __init__(self, reservation: _Optional[_Union[_capacity_pb2.Reservation, _Mapping]] = ...) -> None: ...

class EndReservationRequest(_message.Message):
    __slots__ = ("name", "options")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    options: WriteOptions
    def __init__(self, name: _Optional[str] = ..., options: _Optional[_Union[WriteOptions, _Mapping]] = ...) -> None: ...

class EndReservationResponse(_message.Message):
    __slots__ = ("reservation",)
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    reservation: _capacity_pb2.Reservation
    def __init__(self, reservation: _Optional[_Union[_capacity_pb2.Reservation, _Mapping]] = ...) -> None: ...
