"""A simulated GPU host for tests: the driver stand-in, its shared file, and one call per thing that can happen to a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from swingbus_sim.nvml.build import build_library, driver_environment
from swingbus_sim.nvml.layout import GpuIdentity
from swingbus_sim.nvml.shelf import Shelf
from swingbus_sim.ports import GpuHealth, GpuReading

READING = GpuReading(
    health=GpuHealth.OK,
    power_average_w=612.0,
    power_instant_w=640.5,
    energy_j=12345.678,
    enforced_limit_w=700.0,
    requested_limit_w=700.0,
    default_limit_w=700.0,
    min_limit_w=200.0,
    max_limit_w=700.0,
    temperature_c=61.0,
    memory_temperature_c=77.0,
    sm_clock_mhz=1980,
    memory_clock_mhz=2619,
    utilisation_ratio=0.97,
    memory_used_bytes=7 << 30,
    memory_total_bytes=80 << 30,
    throttle_reasons=4,
    ecc_corrected_count=11,
    ecc_uncorrected_count=12,
    remapped_rows_count=13,
    pcie_replay_count=14,
    nvlink_error_count=15,
    xid=0,
    recovery_action=1,
)


def gpu_uuid(index: int) -> str:
    """Return the name of GPU `index` of a test host."""
    return f"GPU-{index:08x}-0000-4000-8000-000000000000"


class GpuHost:
    """One host: change a reading, and every later driver call answers it."""

    def __init__(
        self, path: Path, count: int, *, unsupported_fields: tuple[int, ...] = (), without: tuple[str, ...] = ()
    ) -> None:
        identities = [
            GpuIdentity(
                uuid=gpu_uuid(index),
                name="NVIDIA H100 80GB HBM3",
                bus_id=f"00000000:{index + 1:02X}:00.0",
                serial=f"16520230{index:05d}",
            )
            for index in range(count)
        ]
        self.shelf = Shelf.create(path, identities, unsupported_fields=unsupported_fields)
        self.readings = [READING] * count
        self._library = build_library(without=without)
        self.shelf.publish(self.readings)

    @property
    def environment(self) -> Mapping[str, str]:
        """What a program needs to find these GPUs."""
        return driver_environment(self.shelf.path, library=self._library)

    def change(self, index: int, **changes: Any) -> None:
        """Change fields of one GPU's reading."""
        self.readings[index] = replace(self.readings[index], **changes)
        self.shelf.publish(self.readings)

    def close(self) -> None:
        """Let go of the file."""
        self.shelf.close()
