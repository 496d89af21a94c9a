"""How one GPU host's shared file is laid out: the same facts as the structures at the top of `stand_in.c`.

Decides where each word lies and how a reading becomes the driver's integers (milliwatts, millijoules, per cent). Knows
nothing of files, locks or physics. Invariant: every text ends with a
zero byte and every reading carries its own checksum.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from swingbus_sim.ports import GpuHealth, GpuReading

MAGIC = b"SWBSHELF"
LAYOUT_VERSION = 1
MAX_GPUS = 16
PROCESS_SLOTS = 64

HEADER = struct.Struct("<8sIIII40s16I")
IDENTITY = struct.Struct("<64s64s32s32s32s")
READING = struct.Struct("<15Q9I2i5I")
CHECK = struct.Struct("<II")
PROCESS = struct.Struct("<QQQdII")

SEQUENCE_OFFSET = IDENTITY.size
REQUEST_OFFSET = SEQUENCE_OFFSET + 8
COPIES_OFFSET = REQUEST_OFFSET + 8
COPY_SIZE = READING.size + CHECK.size
GPU_SIZE = COPIES_OFFSET + 2 * COPY_SIZE
PROCESSES_OFFSET = HEADER.size
GPUS_OFFSET = PROCESSES_OFFSET + PROCESS_SLOTS * PROCESS.size
SHELF_SIZE = GPUS_OFFSET + MAX_GPUS * GPU_SIZE

WORKLOAD_KINDS = ("mining", "inference")

# The bits of NVML's clock event reasons whose time the driver also counts, in the order of `throttle_ns`.
COUNTED_THROTTLE_BITS = (0x04, 0x10, 0x20, 0x40, 0x80)

_HEALTH_CODES = {GpuHealth.OK: 0, GpuHealth.LOST: 1, GpuHealth.HUNG: 2}
HUNG_AT_OPEN_CODE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuIdentity:
    """What a GPU says about itself and never changes."""

    uuid: str
    name: str
    bus_id: str
    serial: str = ""
    vbios: str = "96.00.74.00.1A"


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverCounters:
    """What the driver itself counts from one reading to the next."""

    throttle_ns: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    xid_sequence: int = 0


def gpu_offset(index: int) -> int:
    """Return where GPU `index` begins."""
    return GPUS_OFFSET + index * GPU_SIZE


def pack_header(*, gpu_count: int, driver_version: str, unsupported_fields: tuple[int, ...]) -> bytes:
    """Return the file's first bytes; `unsupported_fields` are NVML field ids that answer "not supported"."""
    padded = unsupported_fields + (0,) * (16 - len(unsupported_fields))
    text = _text(driver_version, 40)
    return HEADER.pack(MAGIC, LAYOUT_VERSION, gpu_count, len(unsupported_fields), 0, text, *padded)


def pack_identity(identity: GpuIdentity) -> bytes:
    """Return a GPU's fixed texts."""
    return IDENTITY.pack(
        _text(identity.uuid, 64),
        _text(identity.name, 64),
        _text(identity.bus_id, 32),
        _text(identity.serial, 32),
        _text(identity.vbios, 32),
    )


def pack_copy(reading: GpuReading, counters: DriverCounters, sequence: int, *, hangs_at_open: bool = False) -> bytes:
    """Return one reading in NVML's units with its checksum, to be laid down before `sequence` is moved on."""
    health = HUNG_AT_OPEN_CODE if hangs_at_open else _HEALTH_CODES[reading.health]
    memory_temperature_c = reading.memory_temperature_c
    body = READING.pack(
        _milli(reading.energy_j),
        reading.memory_used_bytes,
        reading.memory_total_bytes,
        reading.throttle_reasons,
        *counters.throttle_ns,
        reading.ecc_corrected_count,
        reading.ecc_uncorrected_count,
        reading.remapped_rows_count,
        reading.pcie_replay_count,
        reading.nvlink_error_count,
        counters.xid_sequence,
        reading.xid,
        health,
        _milli(reading.power_average_w),
        _milli(reading.power_instant_w),
        _milli(reading.enforced_limit_w),
        _milli(reading.requested_limit_w),
        _milli(reading.default_limit_w),
        _milli(reading.min_limit_w),
        _milli(reading.max_limit_w),
        round(reading.temperature_c),
        0 if memory_temperature_c is None else round(memory_temperature_c),
        0 if memory_temperature_c is None else 1,
        reading.sm_clock_mhz,
        reading.memory_clock_mhz,
        round(min(1.0, max(0.0, reading.utilisation_ratio)) * 100),
        reading.recovery_action,
    )
    return body + CHECK.pack(zlib.crc32(body), sequence & 0xFFFFFFFF)


def _milli(value: float) -> int:
    return max(0, round(value * 1000))


def _text(text: str, size: int) -> bytes:
    raw = text.encode("ascii")
    if len(raw) >= size:
        raise ValueError(f"{text!r} is longer than the {size - 1} characters that a shelf holds: shorten it")
    return raw
