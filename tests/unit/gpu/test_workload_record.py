"""The durable list of running workloads."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from swingbus.faults import InvalidInput
from swingbus_agent.adapters.local_workloads import driver
from swingbus_agent.adapters.local_workloads.record import Run, RunRecord

RUN = Run(unit="h100/0", workload="vllm", token="t", started_boottime_s=5.0, pid=7, start_ticks=9)


def test_saved_runs_come_back(tmp_path: Path) -> None:
    """What was saved is what is loaded."""
    record = RunRecord(tmp_path / "workloads.json")
    record.save({RUN.unit: RUN}, "boot-1")
    assert record.load("boot-1") == {RUN.unit: RUN}


def test_runs_of_another_boot_are_gone(tmp_path: Path) -> None:
    """After a reboot process numbers mean nothing."""
    record = RunRecord(tmp_path / "workloads.json")
    record.save({RUN.unit: RUN}, "boot-1")
    assert record.load("boot-2") == {}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"version": 9}', '{"version": 1, "boot_id": "b", "runs": [{"x": 1}]}']
)
def test_unreadable_record_is_an_error_with_a_way_out(tmp_path: Path, content: str) -> None:
    """A torn or foreign file is refused: starting over it could put two workloads on a unit."""
    path = tmp_path / "workloads.json"
    path.write_text(content)
    with pytest.raises(InvalidInput, match="by hand"):
        RunRecord(path).load("b")


def test_placeholders_example_holds() -> None:
    """The worked example in the docstring of `fill` is right."""
    assert doctest.testmod(driver).failed == 0
