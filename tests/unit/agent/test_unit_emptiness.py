"""When nothing is left on a unit's GPUs, and what is told of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swingbus_agent.domain.orders import HoldingReport, Mode
from swingbus_agent.domain.readings import Condition
from swingbus_agent.domain.unit_emptiness import report_holding, why_not_empty
from swingbus_agent.domain.views import DeviceView, UnitView

IDLE = UnitView(unit=2, since_s=10.0, holders=())
SEEN = DeviceView(
    device="GPU-a",
    unit=2,
    condition=Condition.OK,
    mode=Mode.STANDBY,
    enforced_w=300.0,
    read_started_s=11.0,
    process_count=0,
    processes_read_s=11.0,
)


def test_unit_is_empty_only_by_later_readings_of_all_its_gpus() -> None:
    """Both GPUs read without a process after the pod was seen to go: nothing speaks against it."""
    assert why_not_empty(IDLE, [SEEN, replace(SEEN, device="GPU-b")]) == ""


@pytest.mark.parametrize(
    ("state", "other", "why"),
    [
        (replace(IDLE, has_process=True, reason="held by a/b"), SEEN, "held by a/b"),
        (IDLE, None, "a GPU of it was not read yet"),
        (IDLE, replace(SEEN, condition=Condition.HUNG), "GPU-a is hung: what runs on it cannot be read"),
        (IDLE, replace(SEEN, process_count=None), "the processes on GPU-a were not read since"),
        (IDLE, replace(SEEN, processes_read_s=9.9), "the processes on GPU-a were not read since"),
        (IDLE, replace(SEEN, process_count=2), "processes on GPU-a: 2"),
    ],
)
def test_whatever_speaks_against_it_is_named(state: UnitView, other: DeviceView | None, why: str) -> None:
    """One GPU of two is enough, and the report says that the unit is not free and why."""
    assert why_not_empty(state, [SEEN, other]) == why
    report = report_holding(state, [SEEN, other])
    assert report is not None and report.has_process and why in report.reason


def test_report_of_a_free_unit_names_nobody() -> None:
    """What is wanted there next is nobody's workload yet; programs of the agent's own file are not reported here at all."""
    waiting = replace(IDLE, workload="llama", reason="waits for a pod to be given these GPUs")
    assert report_holding(waiting, [SEEN]) == HoldingReport(
        unit=2, holders=(), workload="", has_process=False, reason="waits for a pod to be given these GPUs"
    )
    assert report_holding(replace(IDLE, holders=None), [SEEN]) is None


def test_report_carries_no_more_holders_than_the_controller_takes() -> None:
    """An old kubelet lists every pod that has ended."""
    many = replace(IDLE, has_process=True, holders=tuple(f"a/p-{number}" for number in range(1000)))
    report = report_holding(many, [SEEN])
    assert report is not None and len(report.holders) == 200
