"""Faults on the wire and back."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from swingbus import faults
from swingbus.rpc.status import (
    CODES,
    DETAILS_KEY,
    DOMAIN,
    RemoteFailure,
    code_of,
    fault_from_rpc_error,
    fault_from_status,
    internal_status,
    status_from_fault,
)

CLASSES = sorted(CODES, key=lambda cls: cls.__name__)


def rpc_error(
    code: grpc.StatusCode, details: str = "", status: status_pb2.Status | None = None
) -> grpc.aio.AioRpcError:
    """Build what a client's call raises."""
    trailers = grpc.aio.Metadata()
    if status is not None:
        trailers.add(DETAILS_KEY, status.SerializeToString())
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details=details)


def test_table_holds_every_fault_and_no_code_twice() -> None:
    """Every subclass of the base has a row, and the way back is unambiguous."""
    assert set(faults.SwingbusError.__subclasses__()) == set(CODES)
    assert len(set(CODES.values())) == len(CODES)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_fault_sent_comes_back_as_the_same_class(cls: type[faults.SwingbusError]) -> None:
    """Class, reason, message and metadata survive the wire."""
    sent = cls("what, where, next step", reason="SOME_REASON", metadata={"field": "limit_w", "retry_after_s": "2.5"})
    status = status_from_fault(sent)
    got = fault_from_rpc_error(rpc_error(code_of(sent), "what, where, next step", status))
    assert type(got) is cls
    assert (str(got), got.reason) == (str(sent), "SOME_REASON")
    assert dict(got.metadata) == dict(sent.metadata)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_status_carries_exactly_one_error_info(cls: type[faults.SwingbusError]) -> None:
    """Clients of any language find the reason under our domain."""
    status = status_from_fault(cls("text"))
    infos = [d for d in status.details if d.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    assert len(infos) == 1
    info = error_details_pb2.ErrorInfo()
    infos[0].Unpack(info)
    assert (info.domain, info.reason) == (DOMAIN, cls.default_reason)
    assert status.code == CODES[cls].value[0]


def test_subclass_of_a_fault_is_sent_as_its_base() -> None:
    """A program may refine a fault without touching the table."""

    class NoSuchBank(faults.NotFound):
        default_reason = "NO_SUCH_BANK"

    assert code_of(NoSuchBank("x")) is grpc.StatusCode.NOT_FOUND


def test_field_and_retry_become_the_standard_details() -> None:
    """BadRequest and RetryInfo let generic clients help themselves."""
    bad = status_from_fault(faults.InvalidInput("no", metadata={"field": "limit_w"}))
    assert any(d.Is(error_details_pb2.BadRequest.DESCRIPTOR) for d in bad.details)
    full = status_from_fault(faults.OverBudget("no", metadata={"retry_after_s": "3"}))
    retry = error_details_pb2.RetryInfo()
    (detail,) = (d for d in full.details if d.Is(error_details_pb2.RetryInfo.DESCRIPTOR))
    detail.Unpack(retry)
    assert retry.retry_delay.seconds == 3
    failed = status_from_fault(faults.WrongState("no"))
    assert any(d.Is(error_details_pb2.PreconditionFailure.DESCRIPTOR) for d in failed.details)


@pytest.mark.parametrize("value", ["soon", "nan", "-1", "1e9"])
def test_nonsense_retry_time_sends_no_retry_info(value: str) -> None:
    """A bad fact is left out, never an error inside the error."""
    status = status_from_fault(faults.OverBudget("no", metadata={"retry_after_s": value}))
    assert not any(d.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for d in status.details)


def test_huge_fault_is_cut_to_fit_into_trailers() -> None:
    """Trailers have a size limit: a long story must not turn into a broken call."""
    sent = faults.InvalidInput("ä" * 100_000, metadata={f"key{n}": "ß" * 5000 for n in range(500)})
    status = status_from_fault(sent)
    assert len(status.SerializeToString()) < 8192
    assert str(fault_from_status(status)).endswith("…")


def test_internal_status_tells_nothing_but_its_id() -> None:
    """What crashed stays in the log."""
    error_id, status = internal_status()
    fault = fault_from_status(status)
    assert isinstance(fault, RemoteFailure)
    assert fault.metadata["error_id"] == error_id
    assert error_id != internal_status()[0]


def test_bare_unavailable_becomes_unreachable() -> None:
    """gRPC's own errors have no details of ours."""
    got = fault_from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, "connection refused"), "10.0.0.5:7443")
    assert isinstance(got, faults.Unreachable)
    assert "10.0.0.5:7443" in str(got) and "connection refused" in str(got)


def test_refused_handshake_says_to_look_at_the_bundle() -> None:
    """The commonest cause is named where the text of TLS would be all there is."""
    details = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:7443: Socket closed"
    assert "bundle" in str(fault_from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, details)))
    assert "bundle" not in str(fault_from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, "Socket closed")))


def test_broken_stream_is_retryable() -> None:
    """grpc.aio reports a write into an ended stream as INTERNAL; the link may try again."""
    got = fault_from_rpc_error(rpc_error(grpc.StatusCode.INTERNAL, "Internal error from Core"))
    assert isinstance(got, faults.Unreachable) and got.reason == "STREAM_BROKEN"


def test_foreign_error_info_is_not_believed() -> None:
    """Only our domain's reasons are ours; the class still follows the code."""
    status = status_pb2.Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="x")
    detail = status.details.add()
    detail.Pack(error_details_pb2.ErrorInfo(reason="THEIRS", domain="example.com"))
    got = fault_from_status(status)
    assert isinstance(got, faults.NotFound) and got.reason == "NOT_FOUND"


def test_garbled_details_leave_the_bare_code() -> None:
    """A proxy may cut trailers."""
    trailers = grpc.aio.Metadata((DETAILS_KEY, b"\xff\xff\xff"))
    error = grpc.aio.AioRpcError(grpc.StatusCode.ABORTED, grpc.aio.Metadata(), trailers, details="stale")
    assert isinstance(fault_from_rpc_error(error), faults.StaleRevision)


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK], ids=lambda c: c.name)
def test_every_code_becomes_some_fault(code: grpc.StatusCode) -> None:
    """No code of gRPC leaves as anything else."""
    got = fault_from_rpc_error(rpc_error(code, "text"))
    assert isinstance(got, faults.SwingbusError)
    assert got.reason
