"""Simulated GPUs at the level of the driver's library: a shared file per host and a library that reads it."""

from __future__ import annotations

from swingbus_sim.nvml.build import build_library, driver_environment
from swingbus_sim.nvml.layout import GpuIdentity
from swingbus_sim.nvml.shelf import Shelf

__all__ = ["GpuIdentity", "Shelf", "build_library", "driver_environment"]
