"""The driver stand-in as the real binding sees it: built here, loaded by name, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swingbus.faults import NotFound
from swingbus_sim.nvml import build, layout
from swingbus_sim.ports import GpuHealth
from tests.fakes.gpu_host import READING, GpuHost, gpu_uuid


@pytest.fixture
def host(tmp_path: Path) -> Iterator[GpuHost]:
    """Return a host with two GPUs."""
    made = GpuHost(tmp_path / "shelf", 2)
    yield made
    made.close()


def ask(environment: Mapping[str, str], body: str) -> Any:
    """Run lines that use `n` (pynvml) and `h` (GPU 1) and return what they put into `out`."""
    code = f"""
import json, pynvml as n
n.nvmlInit()
h = n.nvmlDeviceGetHandleByIndex(1)
{body}
print(json.dumps(out))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=dict(environment), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_both_descriptions_of_the_layout_agree(host: GpuHost) -> None:
    """The C structures and the Python ones place every word alike."""
    sizes = ask(host.environment, "out = [n.nvmlLib.swingbus_shelf_layout(i) for i in range(10)]")
    assert sizes == [
        layout.SHELF_SIZE,
        layout.PROCESSES_OFFSET,
        layout.PROCESS.size,
        layout.GPUS_OFFSET,
        layout.GPU_SIZE,
        layout.SEQUENCE_OFFSET,
        layout.REQUEST_OFFSET,
        layout.COPIES_OFFSET,
        layout.COPY_SIZE,
        layout.READING.size,
    ]


def test_readings_are_in_the_driver_units(host: GpuHost) -> None:
    """Milliwatts, millijoules, whole degrees; average and instant differ; a field it lacks answers 3 by itself."""
    out = ask(
        host.environment,
        """
fields = n.nvmlDeviceGetFieldValues(h, [83, 185, 186, 190, 82, 230, 94, (186, 1), 9999])
out = [[f.nvmlReturn, f.value.ullVal] for f in fields] + [n.nvmlDeviceGetUUID(h), n.nvmlDeviceGetPciInfo(h).busId]
""",
    )
    assert out[:7] == [[0, 12_345_678], [0, 612_000], [0, 640_500], [0, 700_000], [0, 77], [0, 1], [0, 14]]
    assert [each[0] for each in out[7:9]] == [3, 3]
    assert out[9:] == [gpu_uuid(1), "00000000:02:00.0"]


def test_requested_limit_reaches_the_simulator_and_is_forgotten_on_reload(host: GpuHost) -> None:
    """Only the asked GPU has a request; out of range is refused; a driver reload forgets."""
    out = ask(
        host.environment,
        """
n.nvmlDeviceSetPowerManagementLimit(h, 350000)
try: n.nvmlDeviceSetPowerManagementLimit(h, 1000)
except n.NVMLError as e: refused = e.value
out = [n.nvmlDeviceGetPowerManagementLimit(h), n.nvmlDeviceGetEnforcedPowerLimit(h), refused]
""",
    )
    assert out == [350_000, 700_000, 2]  # asked for, not yet in force: that is the physics' part
    assert host.shelf.requested_limits_w() == (None, 350.0)
    host.shelf.clear_requests()
    assert host.shelf.requested_limits_w() == (None, None)


def test_lost_gpu_answers_lost_and_keeps_its_name(host: GpuHost) -> None:
    """Readings answer 15; identity is the driver's and stays."""
    host.change(1, health=GpuHealth.LOST)
    out = ask(
        host.environment,
        """
try: n.nvmlDeviceGetPowerUsage(h)
except n.NVMLError as e: out = [e.value, n.nvmlDeviceGetUUID(h)]
""",
    )
    assert out == [15, gpu_uuid(1)]


def test_hung_gpu_never_answers(host: GpuHost) -> None:
    """The call is still out when patience ends; the other GPU answers."""
    host.change(1, health=GpuHealth.HUNG)
    assert ask(host.environment, "out = n.nvmlDeviceGetPowerUsage(n.nvmlDeviceGetHandleByIndex(0))") == 612_000
    code = "import pynvml as n\nn.nvmlInit()\nn.nvmlDeviceGetPowerUsage(n.nvmlDeviceGetHandleByIndex(1))"
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", code], env=dict(host.environment), timeout=1.0)


def test_function_left_out_is_not_found_by_name(tmp_path: Path) -> None:
    """An older driver lacks symbols: the binding raises FunctionNotFound, as with a real one."""
    host = GpuHost(tmp_path / "shelf", 2, without=("nvmlDeviceGetTemperatureV",))
    out = ask(
        host.environment,
        """
try: n.nvmlDeviceGetTemperatureV(h, 0)
except n.NVMLError as e: out = [e.value, n.nvmlDeviceGetTemperature(h, 0)]
""",
    )
    assert out == [13, 61]
    host.close()


def test_readers_never_see_half_a_reading(host: GpuHost) -> None:
    """While the simulator publishes as fast as it can, power and energy of one call always belong together."""
    done = threading.Event()

    def publish() -> None:
        number = 0
        while not done.is_set():
            number = (number + 1) % 100_000
            reading = replace(READING, power_average_w=float(number), energy_j=float(number))
            host.shelf.publish([reading, reading])

    host.shelf.publish([replace(READING, power_average_w=0.0, energy_j=0.0)] * 2)
    writer = threading.Thread(target=publish)
    writer.start()
    try:
        out = ask(
            host.environment,
            """
import time
seen, torn, ends = set(), 0, time.monotonic() + 5
while len(seen) < 50 and time.monotonic() < ends:
    a, b = n.nvmlDeviceGetFieldValues(h, [185, 83])
    seen.add(a.value.uiVal)
    torn += a.value.uiVal != b.value.ullVal
out = [torn, len(seen)]
""",
        )
    finally:
        done.set()
        writer.join()
    assert out[0] == 0
    assert out[1] == 50  # else too little was written meanwhile to show anything


def test_machine_without_compiler_gets_a_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names both ways to get one."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotFound, match=r"apt-get install.*pip install ziglang"):
        build.find_compiler()


def test_library_is_built_once_and_whole(tmp_path: Path) -> None:
    """A second call finds the first one's library; nothing half-built stays behind."""
    first = build.build_library(cache=tmp_path)
    stamp = (first / build.LIBRARY_NAME).stat().st_mtime_ns
    assert build.build_library(cache=tmp_path) == first
    assert (first / build.LIBRARY_NAME).stat().st_mtime_ns == stamp
    assert [each.name for each in tmp_path.iterdir()] == [first.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace takes root")
def test_process_in_a_pid_namespace_of_its_own_shows_by_our_number_for_it(host: GpuHost) -> None:
    """As in a pod, where everybody is number 1: simulator and driver see two of them, by the host's numbers, until they are dead."""
    toy = (sys.executable, "-m", "swingbus_sim.workloads", "mining", "--shelf", str(host.shelf.path), "--gpus", "1")
    unshare = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    pods = [subprocess.Popen([*unshare, *toy], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for pod in pods:
            assert pod.stdout is not None
            with pod.stdout as said:
                assert said.readline().startswith("mining: pid 1 on GPUs 1")
        inside = {int(Path(f"/proc/{pod.pid}/task/{pod.pid}/children").read_text()) for pod in pods}
        assert {(each.pid, each.gpu, each.kind) for each in host.shelf.processes()} == {
            (pid, 1, "mining") for pid in inside
        }
        listed = "out = [each.pid for each in n.nvmlDeviceGetComputeRunningProcesses_v3(h)]"
        assert set(ask(host.environment, listed)) == inside
        for pid in inside:
            os.kill(pid, signal.SIGKILL)
        for pod in pods:
            pod.wait(timeout=10)
        assert host.shelf.processes() == () and ask(host.environment, listed) == []
    finally:
        for pod in pods:
            pod.kill()
            pod.wait(timeout=10)
