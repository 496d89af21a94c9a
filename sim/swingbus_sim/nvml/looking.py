"""A look at a host's shared file from outside: which GPUs it has and whether they answer, without holding it open.

For whoever watches a host beside the simulator and the driver, such as the device plugin. Decides nothing. Invariant: half a reading is
never taken for one (its checksum must match); a host that cannot be read is None, not a host without GPUs.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

from swingbus_sim.nvml import layout
from swingbus_sim.ports import GpuHealth

_HEALTH_FIELD = 16  # of `layout.READING`: behind the fifteen counters and the XID
_HEALTHS = {0: GpuHealth.OK, 1: GpuHealth.LOST, 2: GpuHealth.HUNG, layout.HUNG_AT_OPEN_CODE: GpuHealth.HUNG}


@dataclass(frozen=True, slots=True)
class SeenGpu:
    """One GPU; `health` is None before the simulator said anything of it."""

    uuid: str
    health: GpuHealth | None


def look_at_shelf(path: Path) -> tuple[SeenGpu, ...] | None:
    """Return a host's GPUs in their order; None where there is no shelf of this version at `path`."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if len(content) != layout.SHELF_SIZE:
        return None
    magic, version, gpu_count, *_ = layout.HEADER.unpack_from(content, 0)
    if magic != layout.MAGIC or version != layout.LAYOUT_VERSION:
        return None
    return tuple(_look_at_gpu(content, layout.gpu_offset(index)) for index in range(gpu_count))


def _look_at_gpu(content: bytes, offset: int) -> SeenGpu:
    uuid = layout.IDENTITY.unpack_from(content, offset)[0].rstrip(b"\0").decode("ascii")
    sequence = int.from_bytes(content[offset + layout.SEQUENCE_OFFSET :][:8], "little")
    # The copy in force first; it may be written over while the file is read, then the other one is whole.
    for parity in (sequence & 1, ~sequence & 1):
        start = offset + layout.COPIES_OFFSET + parity * layout.COPY_SIZE
        body = content[start : start + layout.READING.size]
        check, said = layout.CHECK.unpack_from(content, start + layout.READING.size)
        if said != 0 and check == zlib.crc32(body):
            return SeenGpu(uuid, _HEALTHS.get(layout.READING.unpack(body)[_HEALTH_FIELD], GpuHealth.LOST))
    return SeenGpu(uuid, None)
