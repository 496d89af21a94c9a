"""What the agent knows of GPUs: the list of every field, one sample, one round, and what the host has.

Decides the names, units and tiers of GPU readings. Knows nothing of the driver that answers them. Invariant: a field is in
`values`, or in `unsupported`, or in `failures`, or was not asked for in this round; it is never a zero that means "unknown".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

NOTHING: Mapping[str, float] = MappingProxyType({})
NO_FAILURES: Mapping[str, str] = MappingProxyType({})


class Tier(Enum):
    """How often a field is read."""

    FAST = "fast"  # every round: evidence and protection need it
    SLOW = "slow"  # every tenth second: health


class FieldKind(Enum):
    """How a field travels."""

    VALUE = "value"  # a float reading
    COUNTER = "counter"  # counts up, or must stay exact


class GpuCondition(Enum):
    """How one GPU answered in one round."""

    OK = "ok"
    UNAVAILABLE = "unavailable"  # refused or failed; `reason` says how
    HUNG = "hung"  # a call into it has not come back
    LOST = "lost"  # its driver says that it is gone


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuField:
    """One thing that a GPU may say of itself."""

    name: str
    kind: FieldKind
    tier: Tier
    meaning: str


def _fields(kind: FieldKind, tier: Tier, meanings: Mapping[str, str]) -> tuple[GpuField, ...]:
    return tuple(GpuField(name=name, kind=kind, tier=tier, meaning=meaning) for name, meaning in meanings.items())


GPU_FIELDS: tuple[GpuField, ...] = (
    *_fields(
        FieldKind.VALUE,
        Tier.FAST,
        {
            "power_average_w": "board power, the driver's one-second average",
            "power_instant_w": "board power, newest sensor sample",
            "power_usage_w": "board power, the driver's plain reading; its window depends on the model",
            "enforced_limit_w": "power limit in force: the evidence of a cap",
            "requested_limit_w": "power limit last asked for",
            "temperature_c": "temperature of the chip",
            "memory_temperature_c": "temperature of the memory",
            "sm_clock_mhz": "clock of the compute units",
            "memory_clock_mhz": "clock of the memory",
            "utilisation_ratio": "share of time in which a kernel ran, 0 to 1",
            "memory_utilisation_ratio": "share of time in which memory was read or written, 0 to 1",
            "memory_used_bytes": "memory in use",
        },
    ),
    *_fields(
        FieldKind.COUNTER,
        Tier.FAST,
        {
            "energy_j": "energy since the driver was loaded",
            "throttle_reasons_bits": "why the clocks are held down: NVML's clock event reason bits",
        },
    ),
    *_fields(
        FieldKind.VALUE,
        Tier.SLOW,
        {
            "default_limit_w": "power limit after a reboot",
            "min_limit_w": "lowest limit that can be asked for",
            "max_limit_w": "highest limit that can be asked for",
            "memory_total_bytes": "memory of the board",
            "row_remap_pending_count": "1 if a row remap waits for a reset",
            "row_remap_failed_count": "1 if a row remap failed",
            "pcie_generation_count": "PCIe generation in use",
            "pcie_width_count": "PCIe lanes in use",
            "recovery_action_code": "0 none, 1 reset, 2 reboot, 3 drain P2P, 4 drain and reset, 5 recover IMEX",
        },
    ),
    *_fields(
        FieldKind.COUNTER,
        Tier.SLOW,
        {
            "throttle_power_s": "time held down by the power limit",
            "throttle_sync_boost_s": "time held down by a neighbour's clock",
            "throttle_software_heat_s": "time slowed by software for heat",
            "throttle_hardware_heat_s": "time slowed by hardware for heat",
            "throttle_power_brake_s": "time slowed by the external power brake",
            "ecc_corrected_count": "corrected memory errors in the board's life",
            "ecc_uncorrected_count": "uncorrected memory errors in the board's life",
            "remapped_rows_corrected_count": "memory rows replaced after corrected errors",
            "remapped_rows_uncorrected_count": "memory rows replaced after uncorrected errors",
            "pcie_replay_count": "PCIe packets sent again",
            "nvlink_crc_flit_error_count": "NVLink flow control CRC errors, all links",
            "nvlink_crc_data_error_count": "NVLink data CRC errors, all links",
            "nvlink_replay_error_count": "NVLink packets sent again, all links",
            "nvlink_recovery_error_count": "NVLink recoveries, all links",
        },
    ),
    # These two are counted by the agent from the driver's events.
    GpuField(
        name="xid_count", kind=FieldKind.COUNTER, tier=Tier.FAST, meaning="XID errors since the agent started to watch"
    ),
    GpuField(
        name="xid_last_code",
        kind=FieldKind.COUNTER,
        tier=Tier.FAST,
        meaning="newest XID error; absent while there is none",
    ),
    GpuField(
        name="process_count",
        kind=FieldKind.VALUE,
        tier=Tier.FAST,
        meaning="processes with a compute context on the GPU",
    ),
)
GPU_VALUE_FIELDS: tuple[str, ...] = tuple(each.name for each in GPU_FIELDS if each.kind is FieldKind.VALUE)
GPU_COUNTER_FIELDS: tuple[str, ...] = tuple(each.name for each in GPU_FIELDS if each.kind is FieldKind.COUNTER)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuIdentity:
    """One GPU as it was found; `None` where it does not say."""

    uuid: str  # "unknown-gpu-3" for one that hung before it could say
    index: int  # the driver's number when it was found
    model: str | None
    bus_id: str | None
    serial_number: str | None
    vbios: str | None
    default_limit_w: float | None
    min_limit_w: float | None
    max_limit_w: float | None
    memory_total_bytes: int | None
    is_mig_enabled: bool | None
    unsupported_fields: frozenset[str] = frozenset()  # fields of GPU_FIELDS that it can never say


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuInventory:
    """The host's GPUs, in the order of every round until `revision` changes."""

    revision: int
    driver_version: str | None
    gpus: tuple[GpuIdentity, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that holds a compute context on a GPU."""

    pid: int
    memory_used_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One GPU in one round.

    `started_boottime_ns` is CLOCK_BOOTTIME before the first call into this GPU: a change in force by then is in the values.
    `since_boottime_ns` says since when it is not OK. `processes` is None in rounds that did not ask, never empty for unknown.
    """

    uuid: str
    condition: GpuCondition
    started_boottime_ns: int
    finished_boottime_ns: int
    reason: str | None = None
    since_boottime_ns: int | None = None
    values: Mapping[str, float] = NOTHING
    unsupported: frozenset[str] = frozenset()
    failures: Mapping[str, str] = NO_FAILURES
    processes: tuple[GpuProcess, ...] | None = None
    new_xids: tuple[int, ...] = ()

    def row(self, fields: Sequence[str]) -> tuple[float | None, ...]:
        """Return the readings in the order of `fields`; None where there is none now."""
        return tuple(self.values.get(name) for name in fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRound:
    """What all GPUs answered in one round, in inventory order."""

    inventory_revision: int
    gpus: tuple[GpuSample, ...]
    notes: tuple[str, ...] = field(default=())  # for the log: a child restarted, a GPU let back in
