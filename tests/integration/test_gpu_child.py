"""The GPU source against everything that can go wrong between it, its child and the driver."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from swingbus.faults import Forbidden, TimedOut
from swingbus_agent.adapters.nvml.source import NvmlGpus, NvmlTimings
from swingbus_agent.domain.answers import Hung, Unavailable, Unsupported
from swingbus_agent.domain.gpu import GpuInventory, GpuRound
from swingbus_agent.domain.readings import Condition
from swingbus_sim.ports import GpuHealth
from tests.fakes.gpu_host import GpuHost, gpu_uuid

TIMINGS = NvmlTimings(
    call_deadline_s=0.8,
    open_deadline_s=2.0,
    first_probe_s=0.1,
    lost_reopen_s=0.1,
    first_backoff_s=0.05,
    slow_period_s=0.2,
)


@pytest.fixture
def host(tmp_path: Path) -> GpuHost:
    """Return a host with four GPUs."""
    return GpuHost(tmp_path / "shelf", 4)


@pytest.fixture
async def gpus(host: GpuHost) -> AsyncIterator[NvmlGpus]:
    """Return the source on that host and close it."""
    source = NvmlGpus(writes=True, timings=TIMINGS, environment=host.environment)
    yield source
    await source.aclose()


async def conditions(source: NvmlGpus) -> list[Condition]:
    """Return how each GPU answered in one round."""
    answer = await source.sample()
    assert isinstance(answer, GpuRound), answer
    return [gpu.condition for gpu in answer.gpus]


async def until_ok(source: NvmlGpus, count: int) -> GpuRound:
    """Sample until `count` GPUs are all OK."""
    async with asyncio.timeout(30):
        while True:
            answer = await source.sample()
            if isinstance(answer, GpuRound) and [gpu.condition for gpu in answer.gpus] == [Condition.OK] * count:
                return answer
            await asyncio.sleep(0.05)


OK, HUNG, LOST = Condition.OK, Condition.HUNG, Condition.LOST


async def test_two_hung_gpus_are_both_named_in_one_round(host: GpuHost, gpus: NvmlGpus) -> None:
    """Each hung GPU costs one deadline; the others are read in the same round."""
    assert await conditions(gpus) == [OK] * 4
    host.change(0, health=GpuHealth.HUNG)
    host.change(2, health=GpuHealth.HUNG)
    assert await conditions(gpus) == [HUNG, OK, HUNG, OK]
    started = time.monotonic()
    assert await conditions(gpus) == [HUNG, OK, HUNG, OK]
    assert time.monotonic() - started < 0.7  # known ones cost nothing more


async def test_all_gpus_hung_are_told_one_by_one_and_come_back(host: GpuHost, gpus: NvmlGpus) -> None:
    """Even with every GPU hung a round ends; when they answer again they are OK again."""
    assert await conditions(gpus) == [OK] * 4
    for index in range(4):
        host.change(index, health=GpuHealth.HUNG)
    assert await conditions(gpus) == [HUNG] * 4
    for index in range(4):
        host.change(index, health=GpuHealth.OK)
    await until_ok(gpus, 4)  # their first probes may have hung too, so this takes the second ones


async def test_gpu_that_hangs_while_it_is_opened_is_listed_as_unknown(host: GpuHost, gpus: NvmlGpus) -> None:
    """The first start finds a wedged GPU: three are read, the fourth is there by number and hung, later by name."""
    host.shelf.hang_at_open(1, True)
    host.change(1, health=GpuHealth.HUNG)
    inventory = await gpus.inventory()
    assert isinstance(inventory, GpuInventory)
    assert sorted(gpu.uuid for gpu in inventory.gpus) == sorted(
        [gpu_uuid(0), "unknown-gpu-1", gpu_uuid(2), gpu_uuid(3)]
    )
    answer = await gpus.sample()
    assert isinstance(answer, GpuRound)
    assert {gpu.uuid: gpu.condition for gpu in answer.gpus}["unknown-gpu-1"] is HUNG
    assert sum(gpu.condition is OK for gpu in answer.gpus) == 3
    host.shelf.hang_at_open(1, False)
    host.change(1, health=GpuHealth.OK)
    healed = await until_ok(gpus, 4)
    assert healed.inventory_revision > inventory.revision
    assert sorted(gpu.uuid for gpu in healed.gpus) == [gpu_uuid(index) for index in range(4)]


async def test_hung_and_lost_together_are_told_apart(host: GpuHost, gpus: NvmlGpus) -> None:
    """One of each: each has its own condition, the rest is read."""
    await gpus.sample()
    host.change(1, health=GpuHealth.LOST)
    host.change(3, health=GpuHealth.HUNG)
    assert await conditions(gpus) == [OK, LOST, OK, HUNG]
    for _ in range(10):  # through re-opening for the lost one and probing the hung one
        assert await conditions(gpus) == [OK, LOST, OK, HUNG]
        await asyncio.sleep(0.06)


async def test_killed_child_is_unavailable_once_and_replaced(gpus: NvmlGpus) -> None:
    """A child that dies between rounds costs one round at most."""
    await gpus.sample()
    assert gpus.child_pid is not None
    os.kill(gpus.child_pid, signal.SIGKILL)
    answer = await gpus.sample()
    assert isinstance(answer, GpuRound)
    assert {gpu.condition for gpu in answer.gpus} == {Condition.UNAVAILABLE}
    assert all(not gpu.values for gpu in answer.gpus)
    assert isinstance(await gpus.sample(), Unavailable)  # waits out the backoff
    await until_ok(gpus, 4)


async def test_stopped_child_is_replaced_within_its_deadline(gpus: NvmlGpus) -> None:
    """SIGSTOP looks like a hang at the first GPU; it is let back in as soon as a probe of its own answers."""
    await gpus.sample()
    assert gpus.child_pid is not None
    os.kill(gpus.child_pid, signal.SIGSTOP)
    started = time.monotonic()
    assert (await conditions(gpus))[1:] == [OK] * 3
    assert time.monotonic() - started < 5.0
    await until_ok(gpus, 4)


async def test_cancelled_round_does_not_mix_up_the_next(host: GpuHost, gpus: NvmlGpus) -> None:
    """A caller that gives up half way leaves no old answers for the next one."""
    await gpus.sample()
    host.change(2, health=GpuHealth.HUNG)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await gpus.sample()
    host.change(2, health=GpuHealth.OK)
    await until_ok(gpus, 4)


async def test_limit_on_a_gpu_that_hangs_times_out_and_names_the_doubt(host: GpuHost, gpus: NvmlGpus) -> None:
    """The write may or may not have happened, and is said so; the other GPUs go on."""
    await gpus.sample()
    host.change(1, health=GpuHealth.HUNG)
    with pytest.raises(TimedOut, match="may or may not"):
        await gpus.set_power_limit(gpu_uuid(1), 300.0)
    assert await conditions(gpus) == [OK, HUNG, OK, OK]


async def test_child_started_read_only_has_no_way_to_write(host: GpuHost) -> None:
    """Below CONTROL neither the agent's side nor the child takes a limit."""
    source = NvmlGpus(timings=TIMINGS, environment=host.environment)
    await source.sample()
    with pytest.raises(Forbidden):
        await source.set_power_limit(gpu_uuid(0), 300.0)
    source._writes = True  # even a bug on our side of the pipe meets a child that refuses
    with pytest.raises(Forbidden, match="writing is off"):
        await source.set_power_limit(gpu_uuid(0), 300.0)
    assert host.shelf.requested_limits_w() == (None,) * 4
    await source.aclose()


async def test_driver_that_refuses_this_user_is_forbidden(host: GpuHost) -> None:
    """NO_PERMISSION from the driver is told with what it needs."""
    source = NvmlGpus(
        writes=True, timings=TIMINGS, environment={**host.environment, "SWINGBUS_SIM_NVML_READ_ONLY": "1"}
    )
    with pytest.raises(Forbidden, match="CAP_SYS_ADMIN"):
        await source.set_power_limit(gpu_uuid(0), 300.0)
    await source.aclose()


async def test_old_driver_marks_fields_unsupported_by_name(tmp_path: Path) -> None:
    """Missing functions and fields are named; those with another way to read them are read that way."""
    host = GpuHost(
        tmp_path / "old",
        1,
        unsupported_fields=(83, 185, 186, 190, 192, 230),
        without=("nvmlDeviceGetTemperatureV", "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetClockInfo"),
    )
    host.change(0, memory_temperature_c=None)
    source = NvmlGpus(timings=TIMINGS, environment=host.environment)
    answer = await source.sample()
    assert isinstance(answer, GpuRound)
    gpu = answer.gpus[0]
    assert gpu.unsupported == {
        "power_instant_w", "recovery_action", "memory_temperature_c", "sm_clock_mhz", "memory_clock_mhz"
    }  # fmt: skip
    assert gpu.values["energy_j"] == 12345.678 and gpu.values["power_w"] == 612.0
    assert gpu.values["power_limit_enforced_w"] == 700.0 and gpu.values["temperature_c"] == 61.0
    inventory = await source.inventory()
    assert isinstance(inventory, GpuInventory) and inventory.gpus[0].unsupported_fields == gpu.unsupported
    await source.aclose()
    host.close()


async def test_host_without_a_driver_is_unsupported_and_keeps_no_child() -> None:
    """A bare host has no driver library: nothing runs, and the reason says what is missing."""
    environment = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
    source = NvmlGpus(timings=TIMINGS, environment=environment)
    answer = await source.sample()
    if isinstance(answer, GpuRound):
        await source.aclose()
        pytest.skip("this machine has a real NVIDIA driver")
    assert isinstance(answer, Unsupported) and "libnvidia-ml" in answer.reason
    assert source.child_pid is None


async def test_host_whose_driver_is_not_loaded_is_unavailable(host: GpuHost) -> None:
    """A library without its driver may come later: that is not the same as never."""
    source = NvmlGpus(timings=TIMINGS, environment={**host.environment, "SWINGBUS_SIM_SHELF": "/nonexistent"})
    answer = await source.sample()
    assert isinstance(answer, Unavailable) and "not loaded" in answer.reason
    await source.aclose()


async def test_driver_that_hangs_at_the_start_is_hung_for_the_whole_host(tmp_path: Path, host: GpuHost) -> None:
    """When not even the library's own start comes back there is nobody to blame but the driver."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "pynvml.py").write_text(
        "import time\ndef nvmlInit(): time.sleep(600)\nclass NVMLError(Exception): pass\n"
    )
    source = NvmlGpus(timings=TIMINGS, environment={**host.environment, "PYTHONPATH": str(package)})
    answer = await source.sample()
    assert isinstance(answer, Hung) and answer.since_boottime_ns > 0
    await source.aclose()


def test_child_dies_with_its_agent_even_in_a_hung_call(host: GpuHost, tmp_path: Path) -> None:
    """SIGKILL of the agent leaves no child behind, though that one is stuck in the driver."""
    host.change(0, health=GpuHealth.HUNG)
    pid_file = tmp_path / "pid"
    code = f"""
import asyncio
from pathlib import Path
from swingbus_agent.adapters.nvml.source import NvmlGpus
async def main():
    gpus = NvmlGpus()
    async with asyncio.TaskGroup() as group:
        group.create_task(gpus.sample())
        while gpus.child_pid is None:
            await asyncio.sleep(0.01)
        Path({str(pid_file)!r}).write_text(str(gpus.child_pid))
asyncio.run(main())
"""
    agent = subprocess.Popen([sys.executable, "-c", code], env=dict(host.environment))
    try:
        child = _wait_for(lambda: pid_file.read_text() if pid_file.exists() else "")
        time.sleep(0.5)  # into the hung call
        assert Path(f"/proc/{child}").exists()
    finally:
        agent.kill()
        agent.wait()
    assert _wait_for(lambda: "gone" if not _is_alive(int(child)) else "") == "gone"


async def test_child_is_small_and_cheap(tmp_path: Path) -> None:
    """Eight GPUs: the child and a round of it stay within their share of 64 MB and 1 % of a core (with room for a slow host)."""
    host = GpuHost(tmp_path / "eight", 8)
    source = NvmlGpus(environment=host.environment)
    await until_ok(source, 8)
    pid = source.child_pid
    assert pid is not None
    child_before_s, own_before_s = _cpu_s(pid), time.process_time()
    rounds = 100
    for _ in range(rounds):
        await source.sample()
    per_round_s = (_cpu_s(pid) - child_before_s + time.process_time() - own_before_s) / rounds
    pss_kb = _pss_kb(pid)
    await source.aclose()
    host.close()
    assert pss_kb < 24_000
    assert per_round_s < 0.010  # 1 % of a core at 1 Hz, child and client together


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _pss_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def _wait_for(look: Callable[[], str]) -> str:
    ends = time.monotonic() + 10.0
    while time.monotonic() < ends:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen within ten seconds")
