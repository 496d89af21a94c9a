"""Faults on the wire: the one table between `swingbus.faults` and gRPC status, both ways.

Every error carries a google.rpc.Status with exactly one ErrorInfo (domain `swingbus`) and, where it helps, BadRequest (metadata `field`),
PreconditionFailure or RetryInfo (metadata `retry_after_s`). What is not a fault becomes INTERNAL with an `error_id` that the server's log
repeats: nothing of the exception leaves the process. Servicers raise faults and never abort; clients get the same class back.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from swingbus.faults import (
    AlreadyExists,
    Forbidden,
    HistoryCompacted,
    InvalidInput,
    NotFound,
    OverBudget,
    StaleRevision,
    SwingbusError,
    TimedOut,
    Unauthenticated,
    Unreachable,
    WrongState,
)

DOMAIN = "swingbus"
DETAILS_KEY = "grpc-status-details-bin"

# Trailers are HTTP/2 headers and must stay small; what is cut is cut visibly.
MESSAGE_MAX_BYTES = 1024
METADATA_MAX_ENTRIES = 16
METADATA_VALUE_MAX_BYTES = 160

_BROKEN_STREAM = "Internal error from Core"
_REASON = re.compile(r"[A-Z][A-Z0-9_]{1,61}[A-Z0-9]")
# What a client sees of a refused handshake: in TLS 1.3 the server just closes after the client's part.
_HANDSHAKE = re.compile(r"handshake|SSL_ERROR|failed to connect.*Socket closed", re.IGNORECASE | re.DOTALL)
_KEY = re.compile(r"[a-zA-Z][a-zA-Z0-9_-]{0,63}")


class RemoteFailure(SwingbusError):
    """The other side failed in a way it does not explain; `metadata["error_id"]` finds the story in its log."""

    default_reason = "INTERNAL"


CODES: dict[type[SwingbusError], grpc.StatusCode] = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    StaleRevision: grpc.StatusCode.ABORTED,
    HistoryCompacted: grpc.StatusCode.OUT_OF_RANGE,
    OverBudget: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    Unreachable: grpc.StatusCode.UNAVAILABLE,
    TimedOut: grpc.StatusCode.DEADLINE_EXCEEDED,
    RemoteFailure: grpc.StatusCode.INTERNAL,
}
_FAULTS: dict[grpc.StatusCode, type[SwingbusError]] = {code: fault for fault, code in CODES.items()}


def code_of(fault: SwingbusError) -> grpc.StatusCode:
    """Return the status code of a fault: that of its nearest listed class."""
    return next((CODES[c] for c in type(fault).__mro__ if c in CODES), grpc.StatusCode.INTERNAL)


def status_from_fault(fault: SwingbusError) -> status_pb2.Status:
    """Return the rich status that carries a fault."""
    code = code_of(fault)
    message = _cut(str(fault), MESSAGE_MAX_BYTES)
    reason = fault.reason if _REASON.fullmatch(fault.reason) else type(fault).default_reason
    status = status_pb2.Status(code=code.value[0], message=message)
    entries = [(k, v) for k, v in fault.metadata.items() if _KEY.fullmatch(k)][:METADATA_MAX_ENTRIES]
    metadata = {key: _cut(value, METADATA_VALUE_MAX_BYTES) for key, value in entries}
    status.details.append(_packed(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)))
    if isinstance(fault, InvalidInput) and "field" in metadata:
        violation = error_details_pb2.BadRequest.FieldViolation(field=metadata["field"], description=message)
        status.details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    elif isinstance(fault, WrongState):
        failed = error_details_pb2.PreconditionFailure.Violation(
            type=reason, subject=metadata.get("subject", ""), description=message
        )
        status.details.append(_packed(error_details_pb2.PreconditionFailure(violations=[failed])))
    if fault.retryable and (after_s := _seconds(metadata.get("retry_after_s"))) is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(after_s * 1e9))
        status.details.append(_packed(retry))
    return status


def internal_status() -> tuple[str, status_pb2.Status]:
    """Return a new error id and the status for an exception that is no fault: it tells the caller nothing but the id."""
    error_id = secrets.token_hex(8)
    failure = RemoteFailure(
        f"the server failed unexpectedly; look for error_id {error_id} in its log", metadata={"error_id": error_id}
    )
    return error_id, status_from_fault(failure)


def fault_from_status(status: status_pb2.Status) -> SwingbusError:
    """Return the fault that a rich status carries."""
    return _fault(_code(status.code), status.message, status)


def fault_from_rpc_error(error: grpc.RpcError, target: str = "the controller") -> SwingbusError:
    """Return the fault behind a failed call, whether our server sent it or gRPC itself gave up.

    Args:
        error: what the call raised.
        target: who was called, for the message.
    """
    code, details, trailers = _parts(error)
    for key, value in trailers:
        if key == DETAILS_KEY and isinstance(value, bytes):
            status = status_pb2.Status()
            try:
                status.ParseFromString(value)
            except DecodeError:
                break  # not ours or cut on the way: the bare code still says something
            return _fault(code, status.message or details, status)
    if code is grpc.StatusCode.INTERNAL and details == _BROKEN_STREAM:
        # grpc.aio's word for "a write failed before the status came": the stream is gone, its reason is only in the server's log.
        message = f"the stream to {target} broke while writing; if it was refused, the log there says why"
        return Unreachable(message, reason="STREAM_BROKEN", metadata={"code": code.name})
    return _fault(code, _plain_message(code, details, target), None)


@contextmanager
def faults_raised(target: str = "the controller") -> Iterator[None]:
    """Turn gRPC errors inside the block into faults."""
    try:
        yield
    except grpc.RpcError as error:
        raise fault_from_rpc_error(error, target) from error


def _fault(code: grpc.StatusCode, message: str, status: status_pb2.Status | None) -> SwingbusError:
    reason, metadata = None, {"code": code.name}
    for detail in status.details if status is not None else ():
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            told = error_details_pb2.ErrorInfo()
            detail.Unpack(told)
            if told.domain == DOMAIN:
                reason, metadata = told.reason, dict(told.metadata)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            metadata.setdefault("retry_after_s", f"{retry.retry_delay.ToNanoseconds() / 1e9:g}")
    cls = _FAULTS.get(code, RemoteFailure)
    if cls is RemoteFailure and reason is None:
        reason = code.name
    return cls(message, reason=reason, metadata=metadata)


def _plain_message(code: grpc.StatusCode, details: str, target: str) -> str:
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            hint = "; is this bundle one of this controller, and not expired?" if _HANDSHAKE.search(details) else ""
            return f"cannot reach {target}: {details or 'no connection'}{hint}"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"{target} did not answer in time; a write may or may not have been carried out"
        case grpc.StatusCode.UNIMPLEMENTED:
            why = details or "unimplemented"
            return f"{target} does not know this call ({why}): is it an older version, or is the service switched off there?"
        case _:
            return f"{target} answered {code.name}: {details or 'no details'}"


def _parts(error: grpc.RpcError) -> tuple[grpc.StatusCode, str, list[tuple[str, str | bytes]]]:
    if isinstance(error, grpc.aio.AioRpcError):
        trailers = [(str(key), value) for key, value in error.trailing_metadata() or ()]
        return error.code(), error.details() or "", trailers
    call: object = error
    if isinstance(call, grpc.Call):  # the blocking client's errors are calls too
        trailers = [(item[0], item[1]) for item in call.trailing_metadata() or ()]
        return call.code(), call.details() or "", trailers
    return grpc.StatusCode.UNKNOWN, str(error), []


def _code(number: int) -> grpc.StatusCode:
    return next((c for c in grpc.StatusCode if c.value[0] == number), grpc.StatusCode.UNKNOWN)


def _packed(message: object) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)  # type: ignore[arg-type]  # google.rpc ships no types
    return packed


def _seconds(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is not None and 0.0 <= value < 86_400.0 else None


def _cut(text: str, max_bytes: int) -> str:
    """Shorten to `max_bytes` of UTF-8 and show that something is missing."""
    raw = text.encode("utf-8", errors="replace")
    if len(raw) <= max_bytes:
        return raw.decode("utf-8")
    return raw[: max_bytes - 3].decode("utf-8", errors="ignore") + "…"
