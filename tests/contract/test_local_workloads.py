"""What every `WorkloadDriver` must do: the fake, and the real one with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import pytest

from swingbus.faults import NotFound, WrongState
from swingbus_agent.adapters.local_workloads.driver import LocalWorkloads
from swingbus_agent.domain.orders import Mode
from swingbus_agent.domain.workload import GpuUnit, WorkloadPhase, WorkloadSpec, WorkloadStatus
from swingbus_agent.ports.workload import WorkloadDriver
from tests.fakes.workloads import FakeProgram, FakeWorkloads

UNITS = ("h100/0", "h100/1")
# Python programs, so that a test needs no other tool: one that ends on SIGTERM and one that does not.
_WILLING = "import time\nprint('at work', flush=True)\ntime.sleep(60)"
# The stubborn one says by a file when it has begun to ignore the signal.
_STUBBORN = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""
_EXISTS = "import os, sys; sys.exit(0 if os.path.exists(sys.argv[1]) else 1)"


class Rig(Protocol):
    """A driver with the workloads miner (always ready), server (ready when told), stubborn and missing."""

    driver: WorkloadDriver

    def let_server_be_ready(self) -> None: ...
    def crash(self, status: WorkloadStatus) -> None: ...
    def let_grace_pass(self) -> None: ...


class FakeRig:
    """The fake."""

    def __init__(self) -> None:
        self._fake = FakeWorkloads(
            UNITS,
            {
                "miner": FakeProgram(mode=Mode.MINING),
                "server": FakeProgram(becomes_ready=False),
                "stubborn": FakeProgram(obeys_term=False),
                "missing": FakeProgram(starts=False),
            },
        )
        self.driver: WorkloadDriver = self._fake

    def let_server_be_ready(self) -> None:
        self._fake.programs["server"].becomes_ready = True

    def crash(self, status: WorkloadStatus) -> None:
        self._fake.crash(status.unit)

    def let_grace_pass(self) -> None:
        self._fake.now_s += 100.0


class LocalRig:
    """Real processes."""

    def __init__(self, folder: Path) -> None:
        self._flag = folder / "ready"
        self.late_s = 0.0
        stubborn_flag = str(folder / "ignores-sigterm")
        self.local = LocalWorkloads(
            units=[
                GpuUnit(name=name, number=number, gpu_indices=(number,), gpu_uuids=(f"GPU-{number}",))
                for number, name in enumerate(UNITS)
            ],
            specs=[
                WorkloadSpec(
                    name="miner", mode=Mode.MINING, command=(sys.executable, "-S", "-c", _WILLING), ready_after_s=0.0
                ),
                WorkloadSpec(
                    name="server",
                    mode=Mode.INFERENCE,
                    command=(sys.executable, "-S", "-c", _WILLING),
                    ready_command=(sys.executable, "-S", "-c", _EXISTS, str(self._flag)),
                ),
                WorkloadSpec(
                    name="stubborn",
                    mode=Mode.INFERENCE,
                    command=(sys.executable, "-S", "-c", _STUBBORN, stubborn_flag),
                    ready_command=(sys.executable, "-S", "-c", _EXISTS, stubborn_flag),
                ),
                WorkloadSpec(name="missing", mode=Mode.INFERENCE, command=(str(folder / "no-such-program"),)),
            ],
            folder=folder / "workloads",
            now_s=lambda: 1000.0 + self.late_s,
        )
        self.driver: WorkloadDriver = self.local

    def let_server_be_ready(self) -> None:
        self._flag.touch()

    def crash(self, status: WorkloadStatus) -> None:
        os.kill(status.pids[0], signal.SIGKILL)

    def let_grace_pass(self) -> None:
        self.late_s += 100.0

    async def clear(self) -> None:
        """End everything that a test left."""
        for unit in UNITS:
            await self.driver.stop(unit, grace_s=0.0)
        await until(self.driver, UNITS[0], WorkloadPhase.IDLE)
        await until(self.driver, UNITS[1], WorkloadPhase.IDLE)


@pytest.fixture(params=["fake", "local"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    """Return a rig and end its processes."""
    if request.param == "fake":
        yield FakeRig()
        return
    made = LocalRig(tmp_path)
    yield made
    await made.clear()


async def until(driver: WorkloadDriver, unit: str, phase: WorkloadPhase) -> WorkloadStatus:
    """Look until the unit is in this phase and return its status; give up after ten seconds."""
    async with asyncio.timeout(10.0):
        while True:
            status = (await driver.observe())[unit]
            if status.phase is phase:
                return status
            await asyncio.sleep(0.02)


async def test_unit_that_nothing_ran_on_is_idle(rig: Rig) -> None:
    """Every unit is there from the beginning, free."""
    statuses = await rig.driver.observe()
    assert set(statuses) == set(UNITS)
    assert all(status.phase is WorkloadPhase.IDLE and not status.has_process for status in statuses.values())


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


async def test_second_workload_on_a_unit_is_refused(rig: Rig) -> None:
    """Two workloads never hold one unit, not even while the first is on its way out; the neighbour unit is free."""
    await rig.driver.start(UNITS[0], "stubborn")
    await until(rig.driver, UNITS[0], WorkloadPhase.READY)
    with pytest.raises(WrongState):
        await rig.driver.start(UNITS[0], "miner")
    await rig.driver.stop(UNITS[0], grace_s=50.0)
    await rig.driver.observe()
    with pytest.raises(WrongState):
        await rig.driver.start(UNITS[0], "miner")
    with pytest.raises(WrongState):
        await rig.driver.start(UNITS[0], "stubborn")
    await rig.driver.start(UNITS[1], "miner")


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


async def test_only_names_of_the_file_are_taken(rig: Rig) -> None:
    """A command line, an unknown name or an unknown unit is refused."""
    for unit, workload in ((UNITS[0], "/bin/sh -c true"), (UNITS[0], "unknown"), ("b200/0", "miner")):
        with pytest.raises(NotFound):
            await rig.driver.start(unit, workload)
    with pytest.raises(NotFound):
        await rig.driver.stop("b200/0")
