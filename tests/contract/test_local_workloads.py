"""What a driver that starts and ends programs itself must do: the fake, and the real one with real processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from swingbus_agent.domain.orders import Mode
from swingbus_agent.domain.workload import WorkloadPhase
from tests.fakes.workload_rigs import PROMISES, UNITS, FakeRig, LocalRig, Promise, name_of, until

Rig = FakeRig | LocalRig


@pytest.fixture(params=["fake", "local"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    """Return a rig and end its processes."""
    if request.param == "fake":
        yield FakeRig()
        return
    made = LocalRig(tmp_path)
    yield made
    await made.clear()


@pytest.mark.parametrize("promise", PROMISES, ids=name_of)
async def test_driver_keeps_what_every_driver_promises(rig: Rig, promise: Promise) -> None:
    """What holds whoever starts and ends the workloads."""
    await promise(rig)


async def test_started_workload_is_ready_by_its_own_probe_only(rig: Rig) -> None:
    """A living process is STARTING until its probe says otherwise."""
    await rig.driver.start(UNITS[0], "server")
    for _ in range(3):
        assert (await rig.driver.observe())[UNITS[0]].phase is WorkloadPhase.STARTING
    rig.let_server_be_ready()
    status = await until(rig.driver, UNITS[0], WorkloadPhase.READY)
    assert status.workload == "server" and status.mode is Mode.INFERENCE and status.has_process and status.pids


async def test_starting_again_what_runs_changes_nothing(rig: Rig) -> None:
    """Desired state is repeated; the process stays the same."""
    await rig.driver.start(UNITS[0], "miner")
    first = await until(rig.driver, UNITS[0], WorkloadPhase.READY)
    await rig.driver.start(UNITS[0], "miner")
    assert (await rig.driver.observe())[UNITS[0]].pids == first.pids


async def test_stopped_workload_is_released_when_its_process_is_gone(rig: Rig) -> None:
    """A willing process ends on SIGTERM; only then the unit is free, and can be used again."""
    await rig.driver.start(UNITS[0], "miner")
    await until(rig.driver, UNITS[0], WorkloadPhase.READY)
    await rig.driver.stop(UNITS[0])
    status = await until(rig.driver, UNITS[0], WorkloadPhase.IDLE)
    assert not status.has_process and status.workload is None
    await rig.driver.start(UNITS[0], "stubborn")
    assert (await until(rig.driver, UNITS[0], WorkloadPhase.READY)).workload == "stubborn"


async def test_stubborn_workload_is_killed_after_its_grace(rig: Rig) -> None:
    """A process that ignores SIGTERM holds its unit until the grace is over, then it is killed."""
    await rig.driver.start(UNITS[0], "stubborn")
    await until(rig.driver, UNITS[0], WorkloadPhase.READY)
    await rig.driver.stop(UNITS[0], grace_s=20.0)
    for _ in range(5):
        status = (await rig.driver.observe())[UNITS[0]]
        assert status.phase is WorkloadPhase.STOPPING and status.has_process
    rig.let_grace_pass()
    assert not (await until(rig.driver, UNITS[0], WorkloadPhase.IDLE)).has_process


async def test_crashed_workload_has_failed_with_its_exit_code(rig: Rig) -> None:
    """A process that ends by itself is FAILED and released; stopping it forgets the failure."""
    await rig.driver.start(UNITS[0], "miner")
    rig.crash(await until(rig.driver, UNITS[0], WorkloadPhase.READY))
    status = await until(rig.driver, UNITS[0], WorkloadPhase.FAILED)
    assert status.exit_code == -9 and not status.has_process and status.reason and status.workload == "miner"
    await rig.driver.stop(UNITS[0])
    assert (await rig.driver.observe())[UNITS[0]].phase is WorkloadPhase.IDLE


async def test_program_that_cannot_be_started_has_failed(rig: Rig) -> None:
    """A missing program shows as FAILED with the reason, and holds nothing."""
    await rig.driver.start(UNITS[0], "missing")
    status = (await rig.driver.observe())[UNITS[0]]
    assert status.phase is WorkloadPhase.FAILED and not status.has_process and status.reason
