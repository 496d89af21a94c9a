"""Drivers of workloads for tests, each with what happens around it: programs in memory, real processes, pods of a kubelet.

`PROMISES` is what every driver must keep, whoever starts and ends the workloads; a test runs each of them on each rig.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import pytest

from swingbus.faults import NotFound, WrongState
from swingbus_agent.adapters.local_workloads.driver import LocalWorkloads
from swingbus_agent.adapters.pod_workloads.driver import PodWorkloads
from swingbus_agent.adapters.pod_workloads.kubelet import KubeletPods
from swingbus_agent.domain.orders import Mode
from swingbus_agent.domain.pod_holding import PodTenants
from swingbus_agent.domain.workload import GpuUnit, WorkloadPhase, WorkloadSpec, WorkloadStatus
from swingbus_agent.ports.workload import WorkloadDriver
from tests.fakes.gpu_rack import MovedClock
from tests.fakes.kubelet import GPU, FakeKubelet
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
POD_TENANTS = PodTenants(resource=GPU, miner_namespace="mining", mining_workload="miner", inference_workload="server")
_EXISTS = "import os, sys; sys.exit(0 if os.path.exists(sys.argv[1]) else 1)"


class WorkloadRig(Protocol):
    """A driver of two units with the workloads miner and server, and one that does not leave just because it is told to."""

    driver: WorkloadDriver
    lingering: str
    is_stop_a_note: bool  # the driver ends nobody itself, so a stop can be taken back

    async def come(self, unit: str, workload: str) -> None:
        """Let what was started there run and be ready at the next look."""
        ...

    async def leave(self, unit: str) -> None:
        """Let what was told to end be gone at one of the next looks."""
        ...


class FakeRig:
    """The fake."""

    lingering = "stubborn"
    is_stop_a_note = False

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

    async def come(self, unit: str, workload: str) -> None:
        self._fake.programs[workload].becomes_ready = True

    async def leave(self, unit: str) -> None:
        self.let_grace_pass()

    def let_server_be_ready(self) -> None:
        self._fake.programs["server"].becomes_ready = True

    def crash(self, status: WorkloadStatus) -> None:
        self._fake.crash(status.unit)

    def let_grace_pass(self) -> None:
        self._fake.now_s += 100.0


class LocalRig:
    """Real processes."""

    lingering = "stubborn"
    is_stop_a_note = False

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

    async def come(self, unit: str, workload: str) -> None:
        self.let_server_be_ready()

    async def leave(self, unit: str) -> None:
        self.let_grace_pass()

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


class PodRig:
    """Pods that a kubelet knows; they come when Kubernetes brings them and stay until it takes them away."""

    lingering = "miner"
    is_stop_a_note = True

    def __init__(self, kubelet: FakeKubelet, *, timeout_s: float = 5.0) -> None:
        self.kubelet = kubelet
        self.clock = MovedClock()
        self.lister = KubeletPods(kubelet.pod_resources, timeout_s=timeout_s, clock=self.clock)
        self.driver: WorkloadDriver = PodWorkloads(
            units=[
                GpuUnit(name=name, number=number, gpu_indices=(number,), gpu_uuids=(f"GPU-{number}",))
                for number, name in enumerate(UNITS)
            ],
            kubelet=self.lister,
            tenants=POD_TENANTS,
            now_s=self.clock.boottime_s,
        )

    async def come(self, unit: str, workload: str) -> None:
        namespace = POD_TENANTS.miner_namespace if workload == "miner" else "customers"
        self.kubelet.hold(namespace, f"{workload}-{UNITS.index(unit)}", f"GPU-{UNITS.index(unit)}")

    async def leave(self, unit: str) -> None:
        for namespace, pod in list(self.kubelet.pods):
            if pod.endswith(f"-{UNITS.index(unit)}"):
                self.kubelet.let_go(namespace, pod)


async def until(driver: WorkloadDriver, unit: str, phase: WorkloadPhase, *, timeout_s: float = 10.0) -> WorkloadStatus:
    """Look until the unit is in this phase and return its status; give up in the end."""
    async with asyncio.timeout(timeout_s):
        while True:
            status = (await driver.observe())[unit]
            if status.phase is phase:
                return status
            await asyncio.sleep(0.02)


async def _run(rig: WorkloadRig, unit: str, workload: str) -> WorkloadStatus:
    await rig.driver.start(unit, workload)
    await rig.come(unit, workload)
    return await until(rig.driver, unit, WorkloadPhase.READY)


async def unit_that_nothing_ran_on_is_idle(rig: WorkloadRig) -> None:
    """Every unit is there from the beginning, free; stopping what does not run is nothing."""
    for _ in range(2):
        statuses = await rig.driver.observe()
        assert set(statuses) == set(UNITS)
        assert all(status.phase is WorkloadPhase.IDLE and not status.has_process for status in statuses.values())
        await rig.driver.stop(UNITS[0])


async def started_workload_is_ready_when_it_is_there_and_no_sooner(rig: WorkloadRig) -> None:
    """Asked for is not there: STARTING under its name and mode, then READY and holding its unit; the neighbour is idle."""
    await rig.driver.observe()
    await rig.driver.start(UNITS[0], "server")
    for _ in range(3):
        status = (await rig.driver.observe())[UNITS[0]]
        assert status.phase is WorkloadPhase.STARTING
        assert (status.workload, status.mode) == ("server", Mode.INFERENCE)
    await rig.come(UNITS[0], "server")
    status = await until(rig.driver, UNITS[0], WorkloadPhase.READY)
    assert (status.workload, status.mode, status.has_process) == ("server", Mode.INFERENCE, True)
    assert (await rig.driver.observe())[UNITS[1]].phase is WorkloadPhase.IDLE


async def starting_again_what_runs_changes_nothing(rig: WorkloadRig) -> None:
    """Desired state is repeated; what runs goes on, and its phase began when it began."""
    await rig.driver.observe()
    first = await _run(rig, UNITS[0], "miner")
    assert first.mode is Mode.MINING
    await rig.driver.start(UNITS[0], "miner")
    assert (await rig.driver.observe())[UNITS[0]] == first


async def second_workload_on_a_unit_is_refused(rig: WorkloadRig) -> None:
    """Two workloads never hold one unit, not even while the first is on its way out; the neighbour unit is free."""
    await rig.driver.observe()
    other = "server" if rig.lingering == "miner" else "miner"
    await _run(rig, UNITS[0], rig.lingering)
    with pytest.raises(WrongState):
        await rig.driver.start(UNITS[0], other)
    await rig.driver.stop(UNITS[0], grace_s=50.0)
    await rig.driver.observe()
    with pytest.raises(WrongState):
        await rig.driver.start(UNITS[0], other)
    if rig.is_stop_a_note:
        await rig.driver.start(UNITS[0], rig.lingering)  # nobody was ended: it simply stays
        assert (await rig.driver.observe())[UNITS[0]].phase is WorkloadPhase.READY
    else:
        with pytest.raises(WrongState):
            await rig.driver.start(UNITS[0], rig.lingering)
    await rig.driver.start(UNITS[1], other)


async def stopped_workload_holds_its_unit_until_it_is_gone(rig: WorkloadRig) -> None:
    """STOPPING is not gone. Then the unit is idle, nothing of it is left, and it can be used again."""
    await rig.driver.observe()
    await _run(rig, UNITS[0], rig.lingering)
    await rig.driver.stop(UNITS[0], grace_s=50.0)
    for _ in range(3):
        status = (await rig.driver.observe())[UNITS[0]]
        assert status.phase is WorkloadPhase.STOPPING and status.has_process
    await rig.leave(UNITS[0])
    status = await until(rig.driver, UNITS[0], WorkloadPhase.IDLE, timeout_s=60.0)
    assert not status.has_process and status.workload is None
    assert (await _run(rig, UNITS[0], "server")).workload == "server"


async def only_known_names_are_taken(rig: WorkloadRig) -> None:
    """A command line, an unknown name or an unknown unit is refused."""
    await rig.driver.observe()
    for unit, workload in ((UNITS[0], "/bin/sh -c true"), (UNITS[0], "unknown"), ("b200/0", "miner")):
        with pytest.raises(NotFound):
            await rig.driver.start(unit, workload)
    with pytest.raises(NotFound):
        await rig.driver.stop("b200/0")


Promise = Callable[[WorkloadRig], Awaitable[None]]
PROMISES: tuple[Promise, ...] = (
    unit_that_nothing_ran_on_is_idle,
    started_workload_is_ready_when_it_is_there_and_no_sooner,
    starting_again_what_runs_changes_nothing,
    second_workload_on_a_unit_is_refused,
    stopped_workload_holds_its_unit_until_it_is_gone,
    only_known_names_are_taken,
)


def name_of(promise: Promise) -> str:
    """Return what a test of this promise is called."""
    return getattr(promise, "__name__", "promise")
