"""Workloads that outlive their agent, and toy workloads on simulated GPUs through the whole path of evidence."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from swingbus.faults import InvalidInput, WrongState
from swingbus_agent.adapters.local_workloads.driver import TOKEN_VARIABLE, LocalWorkloads
from swingbus_agent.adapters.local_workloads.processes import boot_id
from swingbus_agent.adapters.nvml.source import NvmlGpus, NvmlTimings
from swingbus_agent.domain.gpu import GpuRound
from swingbus_agent.domain.orders import Mode
from swingbus_agent.domain.workload import GpuUnit, WorkloadPhase, WorkloadSpec, WorkloadStatus
from tests.fakes.gpu_host import GpuHost

UNIT = GpuUnit(name="h100/0", number=0, gpu_indices=(0, 1), gpu_uuids=("GPU-a", "GPU-b"))
SLEEPER = (sys.executable, "-S", "-c", "import time; time.sleep(60)")
# A leader that leaves a child behind in its group, says the child's number and ends.
DESERTER = (
    sys.executable,
    "-S",
    "-c",
    "import subprocess, sys; print(subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)']).pid, flush=True)",
)

Build = Callable[..., LocalWorkloads]


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """Return what makes a driver on one folder (a second call is the agent after a restart); kill what is left at the end."""

    def make(*specs: WorkloadSpec, units: tuple[GpuUnit, ...] = (UNIT,)) -> LocalWorkloads:
        return LocalWorkloads(units=units, specs=specs, folder=tmp_path / "workloads", ready_probe_period_s=0.0)

    yield make
    record = tmp_path / "workloads" / "workloads.json"
    for run in json.loads(record.read_text())["runs"] if record.exists() else ():
        if run["pid"] is not None:
            try:
                os.killpg(run["pid"], signal.SIGKILL)
            except ProcessLookupError:
                continue


def spec(name: str, command: tuple[str, ...] = SLEEPER, **more: object) -> WorkloadSpec:
    """Return a workload that is ready at once unless told otherwise."""
    facts: dict[str, object] = {"mode": Mode.INFERENCE, "ready_after_s": 0.0, "stop_timeout_s": 0.3, **more}
    return WorkloadSpec(name=name, command=command, **facts)  # type: ignore[arg-type]  # facts of a test


async def until_seen(driver: LocalWorkloads, is_it: Callable[[WorkloadStatus], bool]) -> WorkloadStatus:
    """Look at the unit until it is as wanted; give up after twenty seconds."""
    async with asyncio.timeout(20):
        while True:
            status = (await driver.observe())[UNIT.name]
            if is_it(status):
                return status
            await asyncio.sleep(0.02)


async def until(driver: LocalWorkloads, phase: WorkloadPhase) -> WorkloadStatus:
    """Look until the unit is in this phase."""
    return await until_seen(driver, lambda status: status.phase is phase)


async def until_free(driver: LocalWorkloads) -> WorkloadStatus:
    """Look until no process holds the unit."""
    return await until_seen(driver, lambda status: not status.has_process)


def is_alive(pid: int) -> bool:
    """Tell whether a process lives (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def start_sleeper(token: str) -> subprocess.Popen[bytes]:
    """Start what an agent would have started just before it died."""
    return subprocess.Popen(SLEEPER, env={**os.environ, TOKEN_VARIABLE: token}, start_new_session=True)


async def test_restarted_agent_takes_over_what_runs(build: Build) -> None:
    """A new driver on the same folder knows the same process, refuses a second workload, and can end the first."""
    before = build(spec("vllm"), spec("miner"))
    await before.start(UNIT.name, "vllm")
    pid = (await until(before, WorkloadPhase.READY)).pids[0]
    after = build(spec("vllm"), spec("miner"))
    with pytest.raises(WrongState):
        await after.start(UNIT.name, "miner")
    await after.start(UNIT.name, "vllm")
    assert (await until(after, WorkloadPhase.READY)).pids == (pid,)
    await after.stop(UNIT.name)
    await until(after, WorkloadPhase.IDLE)
    assert not is_alive(pid)


def test_workload_outlives_a_killed_agent(tmp_path: Path) -> None:
    """SIGKILL of the agent's process (and of its whole group) leaves the customer's job running; the next agent adopts it."""
    code = f"""
import asyncio, sys, time
from pathlib import Path
from swingbus_agent.adapters.local_workloads.driver import LocalWorkloads
from swingbus_agent.domain.orders import Mode
from swingbus_agent.domain.workload import GpuUnit, WorkloadSpec
unit = GpuUnit(name="h100/0", number=0, gpu_indices=(0,), gpu_uuids=())
spec = WorkloadSpec(name="vllm", mode=Mode.INFERENCE, command={SLEEPER!r})
driver = LocalWorkloads(units=[unit], specs=[spec], folder=Path({str(tmp_path)!r}))
asyncio.run(driver.start("h100/0", "vllm"))
print(asyncio.run(driver.observe())["h100/0"].pids[0], flush=True)
time.sleep(60)
"""
    agent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert agent.stdout is not None
    with agent.stdout as output:
        pid = int(output.readline())
    os.killpg(agent.pid, signal.SIGKILL)
    agent.wait()
    try:
        time.sleep(0.1)
        assert is_alive(pid)
        after = LocalWorkloads(units=[UNIT], specs=[spec("vllm")], folder=tmp_path)
        status = asyncio.run(after.observe())[UNIT.name]
        assert status.phase is WorkloadPhase.READY and status.pids == (pid,)
    finally:
        os.killpg(pid, signal.SIGKILL)


async def test_crash_between_record_and_start_is_settled_by_the_token(build: Build, tmp_path: Path) -> None:
    """A record without a process number: the process is found by its token if it was started, else nothing ran."""
    folder = tmp_path / "workloads"
    folder.mkdir()
    run = {"unit": UNIT.name, "workload": "vllm", "token": "t0", "started_boottime_s": 1.0}
    record = {"version": 1, "boot_id": boot_id(), "runs": [run]}
    (folder / "workloads.json").write_text(json.dumps(record))
    assert (await build(spec("vllm")).observe())[UNIT.name].phase is WorkloadPhase.IDLE

    (folder / "workloads.json").write_text(json.dumps(record))
    process = start_sleeper("t0")
    try:
        driver = build(spec("vllm"))
        assert (await until(driver, WorkloadPhase.READY)).pids == (process.pid,)
    finally:
        process.kill()
        process.wait()


async def test_leader_that_deserts_its_children_frees_nothing_until_they_are_gone(build: Build) -> None:
    """A GPU may be held by a child of the dead leader: the unit is held until the whole group is dead."""
    driver = build(spec("deserter", DESERTER, stop_timeout_s=5.0))
    await driver.start(UNIT.name, "deserter")
    status = await until(driver, WorkloadPhase.FAILED)
    assert status.has_process
    orphan = int(driver.output_of(UNIT.name).read_text().split()[0])
    status = await until_free(driver)
    assert not is_alive(orphan)
    assert status.phase is WorkloadPhase.FAILED and status.exit_code == 0


async def test_workload_not_ready_in_time_is_ended_and_failed_with_the_probe_words(build: Build) -> None:
    """The failure names the deadline and the probe's last answer, and the process is gone."""
    with socket.socket() as taken:  # bound, not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/health/ready"
        driver = build(spec("slow", ready_url=url, start_timeout_s=0.2))
        await driver.start(UNIT.name, "slow")
        status = await until(driver, WorkloadPhase.FAILED)
        assert "not ready within 0.2 s" in status.reason and url in status.reason
        await until_free(driver)
    await driver.start(UNIT.name, "slow")  # a failed unit without a process can be used again


async def test_failure_keeps_the_last_words(build: Build) -> None:
    """Exit code and the end of the output are there for the operator."""
    talker = (sys.executable, "-S", "-c", "import sys; print('CUDA out of memory'); sys.exit(7)")
    driver = build(spec("talker", talker, ready_after_s=60.0))
    await driver.start(UNIT.name, "talker")
    status = await until(driver, WorkloadPhase.FAILED)
    assert status.exit_code == 7 and status.last_output == ("CUDA out of memory",)
    assert "code 7" in status.reason and "CUDA out of memory" in status.reason


async def test_workload_that_left_the_file_is_ended(build: Build) -> None:
    """What the agent's file no longer names must not go on unseen."""
    before = build(spec("old"))
    await before.start(UNIT.name, "old")
    pid = (await until(before, WorkloadPhase.READY)).pids[0]
    after = build(spec("new"))
    await until_free(after)
    assert not is_alive(pid)


def test_torn_record_stops_the_start(build: Build, tmp_path: Path) -> None:
    """With an unreadable record the agent does not guess: two workloads on a GPU would be worse."""
    folder = tmp_path / "workloads"
    folder.mkdir()
    (folder / "workloads.json").write_text('{"version": 1, "runs": [{"un')
    with pytest.raises(InvalidInput, match=r"workloads\.json"):
        build(spec("vllm"))
    (folder / "workloads.json").unlink()


@pytest.fixture
async def simulated(tmp_path: Path) -> AsyncIterator[tuple[GpuHost, NvmlGpus]]:
    """Return a simulated host with two GPUs and the agent's source on it."""
    host = GpuHost(tmp_path / "shelf", 2)
    source = NvmlGpus(timings=NvmlTimings(process_period_s=0.0), environment=host.environment)
    yield host, source
    await source.aclose()
    host.close()


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def test_toy_inference_is_seen_by_probe_and_by_the_driver_until_it_is_gone(
    build: Build, simulated: tuple[GpuHost, NvmlGpus]
) -> None:
    """Ready by its own probe after loading; the driver lists its process on both GPUs, and nobody once it is released."""
    host, source = simulated
    shelf = str(host.shelf.path)
    toy = (sys.executable, "-m", "swingbus_sim.workloads", "inference", "--shelf", shelf, "--gpus", "{gpus}")
    driver = build(
        spec(
            "toy",
            (*toy, "--port", "{port}", "--load-s", "0.5"),
            port=free_port(),
            ready_url="http://127.0.0.1:{port}/health/ready",
            stop_timeout_s=5.0,
        )
    )
    await driver.start(UNIT.name, "toy")
    seen = set()
    async with asyncio.timeout(20):
        while (status := (await driver.observe())[UNIT.name]).phase is not WorkloadPhase.READY:
            seen.add(status.phase)
            await asyncio.sleep(0.02)
    assert seen == {WorkloadPhase.STARTING}
    answer = await source.sample()
    assert isinstance(answer, GpuRound)
    assert [[each.pid for each in gpu.processes or ()] for gpu in answer.gpus] == [list(status.pids)] * 2
    assert {each.kind for each in host.shelf.processes()} == {"inference"}
    await driver.stop(UNIT.name)
    await until(driver, WorkloadPhase.IDLE)
    answer = await source.sample()
    assert isinstance(answer, GpuRound)
    assert [gpu.processes for gpu in answer.gpus] == [(), ()]
    assert host.shelf.processes() == ()


async def test_toy_that_fails_ready_and_toy_miner_that_crashes_are_failures(
    build: Build, simulated: tuple[GpuHost, NvmlGpus]
) -> None:
    """The scenario's bad workloads fail for the reasons they were made for."""
    shelf = str(simulated[0].shelf.path)
    base = (sys.executable, "-m", "swingbus_sim.workloads")
    port = free_port()
    driver = build(
        spec(
            "never",
            (*base, "inference", "--shelf", shelf, "--gpus", "0", "--port", "{port}", "--load-s", "0", "--fail-ready"),
            port=port,
            ready_url="http://127.0.0.1:{port}/health/ready",
            start_timeout_s=1.5,
        ),
        spec("crash", (*base, "mining", "--shelf", shelf, "--gpus", "0", "--crash-after-s", "0.2"), ready_after_s=30.0),
    )
    await driver.start(UNIT.name, "never")
    assert "do not fit" in (await until(driver, WorkloadPhase.FAILED)).reason
    await until_free(driver)
    await driver.start(UNIT.name, "crash")
    status = await until_seen(driver, lambda status: status.exit_code is not None)
    assert status.phase is WorkloadPhase.FAILED and status.exit_code == 3
    assert "simulated crash" in status.reason
