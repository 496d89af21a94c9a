"""Reads the real GPUs of this machine, if there are any, through the agent's own path. Writes nothing."""

from __future__ import annotations

import asyncio
import ctypes
import os
import warnings
from collections.abc import AsyncIterator

import pytest

from swingbus_agent.adapters.nvml.source import NvmlGpus
from swingbus_agent.domain.fields import GPU_FIELDS
from swingbus_agent.domain.gpu import GpuInventory, GpuRound
from swingbus_agent.domain.readings import Condition

pytestmark = pytest.mark.hardware


def _why_not() -> str:
    if "SWINGBUS_SIM_SHELF" in os.environ:
        return "SWINGBUS_SIM_SHELF is set: these would be simulated GPUs"
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return "no NVIDIA driver library (libnvidia-ml.so.1) on this machine: NOTHING WAS SHOWN about real GPUs"
    return ""


@pytest.fixture
async def gpus() -> AsyncIterator[NvmlGpus]:
    """Return a read-only source on the real driver."""
    reason = _why_not()
    if reason:
        pytest.skip(reason)
    source = NvmlGpus()
    yield source
    await source.aclose()


async def test_real_gpus_tell_every_field_or_mark_it(gpus: NvmlGpus, capsys: pytest.CaptureFixture[str]) -> None:
    """Each field is read, unsupported by name or failed with a reason; the readings are printed for the note."""
    inventory = await gpus.inventory()
    assert isinstance(inventory, GpuInventory), inventory
    answer = await gpus.sample()
    assert isinstance(answer, GpuRound), answer
    assert inventory.gpus, "the driver is there but shows no GPU"
    names = {field.name for field in GPU_FIELDS}
    for found, gpu in zip(inventory.gpus, answer.gpus, strict=True):
        with capsys.disabled():
            print(f"\n{found.model} {found.bus_id} driver {inventory.driver_version} {gpu.condition.name}")
            for name in sorted(names):
                shown = gpu.values.get(name, "unsupported" if name in gpu.unsupported else gpu.failures.get(name))
                print(f"  {name:28} {shown}")
        if gpu.condition is not Condition.OK:
            warnings.warn(pytest.PytestWarning(f"{found.uuid} is {gpu.condition.name}: {gpu.reason}"), stacklevel=1)
            continue
        assert set(gpu.values) | gpu.unsupported | set(gpu.failures) == names
        assert 0 < gpu.values["power_w"] < 3000
        assert 0 < gpu.values["temperature_c"] < 120
        limit_w = gpu.values["power_limit_enforced_w"]
        assert gpu.values["power_limit_min_w"] <= limit_w <= gpu.values["power_limit_max_w"]


async def test_real_energy_counter_agrees_with_power(gpus: NvmlGpus) -> None:
    """Over five seconds the counter grows by about the power that was read meanwhile (within 15 %: sensors differ)."""
    watts: list[float] = []
    first = last = await gpus.sample()
    for _ in range(20):
        await asyncio.sleep(0.25)
        last = await gpus.sample()
        assert isinstance(last, GpuRound)
        watts.append(last.gpus[0].values["power_w"])
    assert isinstance(first, GpuRound) and isinstance(last, GpuRound)
    begin, end = first.gpus[0], last.gpus[0]
    if "energy_j" in begin.unsupported:
        pytest.skip("this GPU has no energy counter")
    spent_j = end.values["energy_j"] - begin.values["energy_j"]
    seconds = (end.started_boottime_ns - begin.started_boottime_ns) / 1e9
    assert spent_j / seconds == pytest.approx(sum(watts) / len(watts), rel=0.15)
