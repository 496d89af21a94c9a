"""Which of our faults an answer is, and what its message says."""

from __future__ import annotations

import json
from typing import Any

import pytest

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
    Unreachable,
)
from swingbus_controller.adapters.kubernetes.answers import Answer, fault_of, retry_after_s, shorten
from swingbus_controller.adapters.kubernetes.resources import CAPACITY_POOLS, NODES, PODS, ApiCall

CALL = ApiCall(verb="patch", resource=PODS, namespace="ns", name="p", subresource="status")


def refused(
    code: int, reason: str = "", message: str = "because", wait_s: float | None = None, **details: Any
) -> SwingbusError:
    """Return the fault of a Status."""
    body = json.dumps({"kind": "Status", "code": code, "reason": reason, "message": message, "details": details})
    return fault_of(Answer(code=code, body=body.encode(), retry_after_s=wait_s), CALL)


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (400, "BadRequest", InvalidInput),
        (401, "Unauthorized", Forbidden),
        (403, "Forbidden", Forbidden),
        (404, "NotFound", NotFound),
        (405, "MethodNotAllowed", InvalidInput),
        (409, "AlreadyExists", AlreadyExists),
        (409, "Conflict", StaleRevision),
        (410, "Expired", HistoryCompacted),
        (422, "Invalid", InvalidInput),
        (429, "TooManyRequests", OverBudget),
        (500, "InternalError", Unreachable),
        (503, "ServiceUnavailable", Unreachable),
        (504, "Timeout", TimedOut),
        (302, "", Unreachable),
    ],
)
def test_every_code_is_a_fault_that_says_what_to_do(code: int, reason: str, kind: type[SwingbusError]) -> None:
    """The message names call and cause."""
    fault = refused(code, reason)
    assert type(fault) is kind
    assert 'patch pods/status "p" in namespace "ns"' in str(fault)


def test_a_missing_verb_is_named() -> None:
    """So that the role can be mended without reading the code."""
    fault = refused(403, "Forbidden")
    assert fault.metadata["verb"] == "patch"
    assert fault.metadata["resource"] == "pods/status"
    assert "grant the verb 'patch' on 'pods/status'" in str(fault)


def test_a_wait_is_told_from_the_header_or_the_body() -> None:
    """The header goes first; both are bounded."""
    assert refused(429, wait_s=7).metadata["retry_after_s"] == "7"
    assert refused(429, retryAfterSeconds=3).metadata["retry_after_s"] == "3"
    assert refused(429, retryAfterSeconds=10**8).metadata["retry_after_s"] == "300"
    assert retry_after_s("86400") == 300.0
    assert [retry_after_s(odd) for odd in (None, "", "-1", "soon", "١", "1" * 400)] == [None] * 6


def test_a_long_or_dirty_answer_is_cut_and_cleaned() -> None:
    """Neither a page of HTML nor control characters reach a log."""
    fault = fault_of(Answer(code=502, body=b"<html>\x1b[31m\n" + b"x" * 10**6), CALL)
    assert len(str(fault)) < 600
    assert str(fault).isprintable()
    assert shorten("a\nb\x00c") == "a b c"
    refusal = f'Invalid value: "{"x" * 5000}": strict decoding error: unknown field "status.gpu"'
    assert shorten(refusal).startswith("Invalid value")
    assert shorten(refusal).endswith('unknown field "status.gpu"')


def test_too_new_a_revision_is_told_apart() -> None:
    """It means that the server went back in time: only a new list helps."""
    assert refused(504, causes=[{"reason": "ResourceVersionTooLarge"}]).reason == "REVISION_AHEAD"


def test_names_cannot_leave_their_place_in_a_path() -> None:
    """Whatever a name holds."""
    assert (
        PODS.path("ns", "a/../../secrets?x=1", "eviction")
        == "/api/v1/namespaces/ns/pods/a%2F..%2F..%2Fsecrets%3Fx%3D1/eviction"
    )
    assert CAPACITY_POOLS.path("ignored", "c07") == "/apis/swingbus.io/v1alpha1/capacitypools/c07"
    assert NODES.path() == "/api/v1/nodes"
