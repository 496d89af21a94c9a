"""The plan of NVML questions and the list of fields are the same list."""

from __future__ import annotations

import pytest

from swingbus_agent.adapters.nvml import plan
from swingbus_agent.adapters.nvml.wire import GpuTracker, unsupported_of
from swingbus_agent.domain.fields import GPU_FIELDS
from swingbus_agent.domain.readings import Condition


def test_every_field_is_asked_for_exactly_once() -> None:
    """No field of the list is forgotten, none is asked for that the list does not have."""
    asked = [*plan.FAST_COLUMNS, *plan.SLOW_COLUMNS, plan.PROCESS_COUNT, *plan.XID_FIELDS]
    assert sorted(asked) == sorted(field.name for field in GPU_FIELDS)


def test_fallbacks_are_for_fields_that_there_are() -> None:
    """A fallback of an unknown field would never be used."""
    assert set(plan.FALLBACKS) <= {*plan.FAST_COLUMNS, *plan.SLOW_COLUMNS}


@pytest.mark.parametrize(
    ("code", "is_unsupported"), [(3, True), (13, True), (25, True), (plan.SENTINEL, True), (4, False), (999, False)]
)
def test_never_and_not_now_are_told_apart(code: int, is_unsupported: bool) -> None:
    """Not supported, no such function, wrong version and a sentinel mean never; anything else may change."""
    assert ("power_w" in unsupported_of({"power_w": code})) is is_unsupported


def line_of(**changes: object) -> dict[str, object]:
    """Return a child's line with every fast column present, but for `changes`."""
    fast = [1.0] * len(plan.FAST_COLUMNS)
    return {"at": 0, "s": 5, "e": 9, "fast": [fast, {}], **changes}


def test_missing_value_is_absent_and_named() -> None:
    """A null never becomes a number: it is unsupported or failed by name."""
    fast: list[float | None] = [1.0] * len(plan.FAST_COLUMNS)
    fast[plan.FAST_COLUMNS.index("power_instant_w")] = None
    fast[plan.FAST_COLUMNS.index("temperature_c")] = None
    sample = GpuTracker("GPU-1").sample(line_of(fast=[fast, {"power_instant_w": 3, "temperature_c": 999}]))
    assert "power_instant_w" in sample.unsupported and "power_instant_w" not in sample.values
    assert "temperature_c" in sample.failures and "temperature_c" not in sample.values
    assert sample.row(("power_w", "temperature_c")) == (1.0, None)


def test_lost_gpu_keeps_its_since_until_it_answers() -> None:
    """`since` stays through a spell of being lost and starts anew with the next one."""
    tracker = GpuTracker("GPU-1")
    first = tracker.sample({"at": 0, "s": 5, "e": 6, "code": plan.GPU_IS_LOST})
    again = tracker.sample({"at": 0, "s": 7, "e": 8, "code": plan.GPU_IS_LOST})
    assert first.condition is Condition.LOST and first.since_boottime_ns == again.since_boottime_ns is not None
    assert tracker.sample(line_of()).since_boottime_ns is None
    later = tracker.sample({"at": 0, "s": 9, "e": 10, "code": plan.GPU_IS_LOST})
    assert later.since_boottime_ns is not None and first.since_boottime_ns is not None
    assert later.since_boottime_ns >= first.since_boottime_ns


def test_other_driver_errors_are_unavailable_not_lost() -> None:
    """A GPU that needs a reset, or an unknown error, is not called lost."""
    sample = GpuTracker("GPU-1").sample({"at": 0, "s": 5, "e": 6, "code": 16})
    assert sample.condition is Condition.UNAVAILABLE and "reset" in (sample.reason or "")


def test_process_list_that_failed_is_none_not_empty() -> None:
    """ "Nobody holds the GPU" and "could not look" must differ: a release is decided on it."""
    tracker = GpuTracker("GPU-1")
    assert tracker.sample(line_of(processes=[])).processes == ()
    failed = tracker.sample(line_of(processes=999))
    assert failed.processes is None and "process_count" in failed.failures
