"""`swingbus-agent floor`: every GPU at its least limit before anything runs, told only when read back. The real program and binding."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from swingbus_agent.adapters.nvml.source import NvmlGpus
from swingbus_agent.floor import set_floors
from swingbus_agent.settings import load_settings
from swingbus_sim.nvml.build import READ_ONLY_VARIABLE
from swingbus_sim.ports import GpuHealth
from tests.fakes.gpu_host import GpuHost, gpu_uuid

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "swingbus-floor.service"


@pytest.fixture
def host(tmp_path: Path) -> GpuHost:
    """Return a host with three GPUs at their default of 700 W; the least is 200 W."""
    return GpuHost(tmp_path / "shelf", 3)


def config(folder: Path, *, gpus: tuple[str, ...] = (), writes: bool = True, bank: bool = True) -> Path:
    """Write the agent's file."""
    path = folder / "agent.toml"
    text = f'name = "n"\nstate_dir = "{folder / "state"}"\nwrites = {str(writes).lower()}\n'
    if bank:
        text += f'[[bank]]\nname = "h100"\nkind = "gpu"\nclass = "h100-sxm"\ngpus = {list(gpus)}\n'
    path.write_text(text, encoding="utf-8")
    return path


@asynccontextmanager
async def obeying(host: GpuHost, *, but: int | None = None) -> AsyncIterator[None]:
    """Let GPUs enforce what was asked of them, all but one."""

    async def obey() -> None:
        while True:
            for index, limit_w in enumerate(host.shelf.requested_limits_w()):
                if limit_w is not None and index != but and host.readings[index].enforced_limit_w != limit_w:
                    host.change(index, enforced_limit_w=limit_w, requested_limit_w=limit_w)
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(obey())
        try:
            yield
        finally:
            task.cancel()


async def floor(path: Path, environment: Mapping[str, str], *, wait_s: float = 0.0) -> tuple[int, str]:
    """Run the program; return its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "swingbus_agent.main", "floor", "--config", str(path), "--wait-s", str(wait_s)),
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_every_gpu_of_the_banks_is_brought_to_its_floor_and_read_back(host: GpuHost, tmp_path: Path) -> None:
    """Exit code 0, a line for each with what it was; the GPU of no bank keeps its limit; no state is written."""
    async with obeying(host):
        code, text = await floor(config(tmp_path, gpus=(gpu_uuid(0), gpu_uuid(2))), host.environment)
    assert code == 0, text
    assert host.shelf.requested_limits_w() == (200.0, None, 200.0)
    assert f"ok  gpu        {gpu_uuid(0)}: 200 W, the least that it takes, read back; was 700 W" in text
    assert "All 2 GPUs are at their floor." in text and gpu_uuid(1) not in text
    assert not (tmp_path / "state").exists()


async def test_bank_of_all_gpus_means_all_and_again_changes_nothing(host: GpuHost, tmp_path: Path) -> None:
    """A second run finds them there."""
    async with obeying(host):
        for _ in range(2):
            code, text = await floor(config(tmp_path), host.environment)
            assert code == 0, text
    assert host.shelf.requested_limits_w() == (200.0,) * 3 and "was" not in text


async def test_gpu_that_does_not_enforce_it_is_wrong(host: GpuHost, tmp_path: Path) -> None:
    """An answer of the driver is no evidence: exit code 1, the GPU and what to look at, the others are set."""
    async with obeying(host, but=1):
        code, text = await floor(config(tmp_path), host.environment)
    assert code == 1
    assert f"!!  gpu        {gpu_uuid(1)}: set to 200 W, but enforces 700 W" in text and "persistence" in text
    assert text.count("ok  gpu") == 2 and "1 of 3 lines are wrong" in text


async def test_driver_that_forgets_with_its_last_user_is_found_out(host: GpuHost, tmp_path: Path) -> None:
    """Read back within the session that set it, all would look well."""

    class Forgetful(NvmlGpus):
        async def set_power_limit(self, uuid: str, power_w: float) -> None:
            await super().set_power_limit(uuid, power_w)
            host.change([gpu_uuid(index) for index in range(3)].index(uuid), enforced_limit_w=power_w)

        async def aclose(self) -> None:
            await super().aclose()
            for index in range(3):
                host.change(index, enforced_limit_w=700.0)

    settings = load_settings(config(tmp_path))
    findings = await set_floors(
        settings, wait_s=0.0, make_source=lambda writes: Forgetful(writes=writes, environment=host.environment)
    )
    assert [finding.is_wrong for finding in findings] == [True] * 3


async def test_gpu_that_is_lost_keeps_no_other_up(host: GpuHost, tmp_path: Path) -> None:
    """The others are at their floor, and it is named."""
    host.change(1, health=GpuHealth.LOST)
    async with obeying(host):
        code, text = await floor(config(tmp_path, gpus=(gpu_uuid(0), gpu_uuid(1), gpu_uuid(2))), host.environment)
    assert code == 1 and host.shelf.requested_limits_w() == (200.0, None, 200.0)
    assert f"!!  gpu        {gpu_uuid(1)}" in text


async def test_driver_that_comes_late_is_waited_for(host: GpuHost, tmp_path: Path) -> None:
    """A host that boots: the driver is there two seconds later, within the time given."""
    (tmp_path / "shelf").rename(tmp_path / "later")

    async def come() -> None:
        await asyncio.sleep(2.0)
        (tmp_path / "later").rename(tmp_path / "shelf")

    async with obeying(host), asyncio.TaskGroup() as group:
        group.create_task(come())
        code, text = await floor(config(tmp_path), host.environment, wait_s=30.0)
    assert code == 0, text


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"gpus": ("GPU-gone",)}, "GPU-gone is not on this host"),
        ({"writes": False}, "writes = false"),
        ({"bank": False}, "no bank of GPUs"),
    ],
)
async def test_file_that_allows_nothing_sets_nothing(
    host: GpuHost, tmp_path: Path, change: dict[str, object], part: str
) -> None:
    """Said with its next step, exit code 1, no limit is touched."""
    code, text = await floor(config(tmp_path, **change), host.environment)  # type: ignore[arg-type]  # one of the three
    assert code == 1 and part in text and host.shelf.requested_limits_w() == (None,) * 3


async def test_user_whom_the_driver_refuses_is_told(host: GpuHost, tmp_path: Path) -> None:
    """As somebody without root meets it."""
    code, text = await floor(config(tmp_path), {**host.environment, READ_ONLY_VARIABLE: "1"})
    assert code == 1 and text.count("no permission: this needs root or CAP_SYS_ADMIN") == 3


async def test_host_without_a_driver_is_told(host: GpuHost, tmp_path: Path) -> None:
    """The library is there, the driver is not loaded."""
    code, text = await floor(config(tmp_path), {**host.environment, "SWINGBUS_SIM_SHELF": str(tmp_path / "none")})
    assert code == 1 and "the NVIDIA driver is not loaded; nothing was set" in text


def test_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    """Verified by systemd's own program, on a program that is there; it runs before the kubelet, once."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("NOT TESTED HERE: there is no systemd-analyze on this machine")
    text = UNIT.read_text(encoding="utf-8")
    assert "Before=kubelet.service" in text and "Type=oneshot" in text
    assert "/opt/swingbus/bin/swingbus-agent" in text
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("/opt/swingbus/bin/swingbus-agent", sys.executable), encoding="utf-8")
    done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False, timeout=60)
    said = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert done.returncode == 0 and not said, done.stderr
