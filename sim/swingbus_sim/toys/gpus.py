"""The GPUs that the device plugin gave to this container, and a toy's seat on them.

Refuses to guess: without a shelf and UUIDs in the environment there is no GPU, and a toy without a GPU ends with what to do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from swingbus.faults import NotFound
from swingbus_sim.nvml.build import SHELF_VARIABLE
from swingbus_sim.nvml.processes import Seat
from swingbus_sim.nvml.shelf import Shelf
from swingbus_sim.workloads import MEMORY_BYTES, find_visible

VISIBLE_VARIABLE = "NVIDIA_VISIBLE_DEVICES"


def take_given(kind: str, *, load_ratio: float, environment: Mapping[str, str] = os.environ) -> tuple[Seat, list[str]]:
    """Take a seat on all GPUs of this container; return it with their UUIDs.

    Raises:
        NotFound: the container was given no simulated GPU.
    """
    shelf_path, uuids = environment.get(SHELF_VARIABLE), environment.get(VISIBLE_VARIABLE, "")
    if not shelf_path or not uuids:
        raise NotFound(
            "this container was given no simulated GPU: ask for nvidia.com/gpu in the pod's limits, on a node with "
            "`swingbus-sim device-plugin`"
        )
    path = Path(shelf_path)
    gpus = find_visible(path, uuids)
    seat = Shelf(path).process_table.take_seat(
        kind=kind, gpus=gpus, memory_used_bytes=MEMORY_BYTES[kind], load_ratio=load_ratio
    )
    return seat, uuids.split(",")


def parse_ratio(text: str) -> float:
    """Parse a share from 0 to 1, for argparse."""
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{text} is not from 0 to 1")
    return value


def parse_seconds(text: str) -> float:
    """Parse a number of seconds from 0 to a day, for argparse."""
    value = float(text)
    if not 0.0 <= value <= 86_400.0:
        raise ValueError(f"{text} is not from 0 to 86400")
    return value
