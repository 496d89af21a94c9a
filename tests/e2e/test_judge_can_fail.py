"""The judge can fail: the same site, the same story, the same judge; a wrong controller is guilty, the right one is not.

Each test runs two whole sites side by side, so that both see the same load of this machine: one under a controller with one planted
bug, one under the real program. The judge gets the same command line in both.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from swingbus_sim.demo.story import Story
from tests.e2e.harness import RIGHT, Judged, kill_controller_after_curtailment, play, wrong
from tests.e2e.wrong_controller import BUGS

WRONG_SHIFT, RIGHT_SHIFT = 40, 80


async def _both(
    bug: str, folder: Path, *, disturb: Callable[[Story], Awaitable[None]] | None = None
) -> tuple[Judged, Judged]:
    """Return (the wrong controller's run, the right controller's run) of the bug's scenario."""
    scenario = bug.replace("-", "_")
    async with asyncio.TaskGroup() as group:
        accused = group.create_task(
            play(scenario, wrong(bug), folder / "wrong", shift=WRONG_SHIFT, disturb=disturb), name="wrong"
        )
        control = group.create_task(
            play(scenario, RIGHT, folder / "right", shift=RIGHT_SHIFT, disturb=disturb), name="right"
        )
    for who, run in (("wrong", accused.result()), ("right", control.result())):
        print(f"{bug}, {who} controller: {run.authorised_ws:.0f} W·s authorised; {run.told().splitlines()[0]}")
        print("\n".join(f"  {reason}" for reason in run.verdict["reasons"]))
    assert f"{bug} is planted" in accused.result().controller_log
    assert "is planted" not in control.result().controller_log
    return accused.result(), control.result()


def _assert_guilty(accused: Judged, *, least_ws: float) -> None:
    """Demand a whole run, found guilty of watts that nothing but the controller explains."""
    assert accused.verdict["is_complete"], accused.told()
    assert accused.verdict["verdict"] == "GUILTY", accused.told()
    assert accused.authorised_ws >= least_ws, accused.told()
    assert any("were authorised" in reason for reason in accused.verdict["reasons"]), accused.told()


def _assert_not_guilty(control: Judged) -> None:
    """Demand a whole run without an authorised watt-second, by a controller that did prove something."""
    assert control.verdict["verdict"] == "NOT GUILTY", control.told()
    assert control.authorised_ws == 0.0, control.told()
    assert control.count("group_settled") >= 1, control.told()


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.xdist_group("whole-site")
async def test_watts_freed_by_time_are_judged_guilty(tmp_path: Path) -> None:
    """A dead agent's grant ends, its machines hash on: who lends its watts out is guilty, who waits for evidence is not."""
    accused, control = await _both("freed-by-time", tmp_path)
    _assert_guilty(accused, least_ws=5_000.0)
    _assert_not_guilty(control)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.xdist_group("whole-site")
async def test_ack_taken_as_evidence_is_judged_guilty(tmp_path: Path) -> None:
    """An agent took a lower grant, the watts still flow: who takes the receipt for proof is guilty, who reads the meter is not."""
    accused, control = await _both("ack-as-evidence", tmp_path)
    _assert_guilty(accused, least_ws=5_000.0)
    assert accused.verdict["false_confirmations"] >= 1, accused.told()
    _assert_not_guilty(control)
    assert any("shrink to" in record for record in control.records), control.told()
    assert control.verdict["false_confirmations"] == 0, control.told()


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.xdist_group("whole-site")
async def test_sent_before_journal_is_judged_guilty(tmp_path: Path) -> None:
    """The controller is killed after it answered and sent: who journals later has forgotten the limit, who journaled first keeps it."""
    accused, control = await _both("sent-before-journal", tmp_path, disturb=kill_controller_after_curtailment)
    _assert_guilty(accused, least_ws=5_000.0)
    _assert_not_guilty(control)
    assert control.count("curtailment_curtailed") == 1, control.told()


def test_unknown_bug_is_refused() -> None:
    """The entry point plants what it is told or nothing: an unknown bug is wrong usage and starts no controller."""
    words = [sys.executable, "-m", "tests.e2e.wrong_controller", "no-such-bug", "run"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert all(bug in done.stderr for bug in BUGS)
