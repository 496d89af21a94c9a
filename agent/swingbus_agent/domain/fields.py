"""The one list of telemetry fields: what each is, in which unit, and where it comes from.

A bank announces these names once per session; matrices then carry numbers only. A device that can never say a field lists
it as unsupported, a reading that is missing now is absent: neither becomes a zero. The golden test walks this list.
"""

from __future__ import annotations

from dataclasses import dataclass

from swingbus_agent.domain.readings import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One column. `is_counter` fields only grow (but for resets) and travel as 64-bit floats."""

    name: str
    unit: str
    meaning: str
    is_counter: bool = False


def _value(name: str, unit: str, meaning: str) -> Field:
    return Field(name=name, unit=unit, meaning=meaning)


def _counter(name: str, unit: str, meaning: str) -> Field:
    return Field(name=name, unit=unit, meaning=meaning, is_counter=True)


GPU_FIELDS: tuple[Field, ...] = (
    _value("power_w", "W", "mean board power over the driver's window (about 1 s)"),
    _value("power_instant_w", "W", "instantaneous board power"),
    _value("power_limit_enforced_w", "W", "limit in force, out-of-band limits included (NVML field 190)"),
    _value("power_limit_requested_w", "W", "limit last asked for on this host (NVML field 192)"),
    _value("power_limit_default_w", "W", "limit after a reboot"),
    _value("power_limit_min_w", "W", "lowest limit that can be asked for"),
    _value("power_limit_max_w", "W", "highest limit that can be asked for"),
    _value("temperature_c", "°C", "GPU core"),
    _value("memory_temperature_c", "°C", "high-bandwidth memory"),
    _value("sm_clock_mhz", "MHz", "streaming multiprocessors"),
    _value("memory_clock_mhz", "MHz", "memory"),
    _value("utilisation_ratio", "0-1", "share of time with a kernel running"),
    _value("memory_utilisation_ratio", "0-1", "share of time with memory read or written"),
    _value("memory_used_bytes", "B", "device memory in use"),
    _value("memory_total_bytes", "B", "device memory"),
    _value("throttle_reasons", "bits", "NVML clock event reasons now"),
    _value("pcie_generation", "", "current link generation"),
    _value("pcie_width", "lanes", "current link width"),
    _value("row_remap_pending", "0/1", "a memory row waits for a reset to be replaced"),
    _value("row_remap_failed", "0/1", "a memory row could not be replaced"),
    _value("recovery_action", "", "NVML recovery action: 0 none, 1 reset, 2 reboot, 3 drain P2P, 4 drain and reset"),
    _value("process_count", "", "processes that hold the GPU"),
    _value("xid", "", "last XID error, 0 if none since the agent started"),
    _counter("energy_j", "J", "energy since the driver was loaded"),
    _counter("throttle_power_s", "s", "time throttled by the power cap"),
    _counter("throttle_thermal_s", "s", "time throttled by heat"),
    _counter("throttle_sync_boost_s", "s", "time held down by a neighbour's clock"),
    _counter("throttle_power_brake_s", "s", "time slowed by the external power brake"),
    _counter("ecc_corrected_count", "", "corrected memory errors, volatile"),
    _counter("ecc_uncorrected_count", "", "uncorrected memory errors, volatile"),
    _counter("remapped_rows_count", "", "rows remapped after errors"),
    _counter("pcie_replay_count", "", "PCIe replays"),
    _counter("nvlink_error_count", "", "NVLink errors over all links"),
    _counter("xid_count", "", "XID errors since the agent started"),
)

ASIC_FIELDS: tuple[Field, ...] = (
    _value("power_w", "W", "wall power as the firmware says (an estimate on most models)"),
    _value("power_target_w", "W", "power limit or profile in force as the firmware says"),
    _value("hashrate_ths", "TH/s", "mean hashrate over the firmware's shortest window"),
    _value("expected_hashrate_ths", "TH/s", "what the firmware aims at"),
    _value("board_temperature_c", "°C", "hottest board"),
    _value("chip_temperature_c", "°C", "hottest chip"),
    _value("inlet_temperature_c", "°C", "air or coolant entering"),
    _value("fan_speed_rpm", "rpm", "slowest turning fan"),
    _value("pool_is_alive", "0/1", "whether the active pool answers"),
    _counter("uptime_s", "s", "since the firmware started: a drop is a reboot"),
    _counter("accepted_share_count", "", "shares that the pool took"),
    _counter("rejected_share_count", "", "shares that the pool refused"),
)

HOST_FIELDS: tuple[Field, ...] = (
    _value("cpu_ratio", "0-1", "share of all cores busy since the round before"),
    _value("memory_used_bytes", "B", "memory in use"),
    _value("memory_total_bytes", "B", "memory"),
    _value("load_1m", "", "load average over one minute"),
    _value("disk_free_bytes", "B", "free where the state directory lies"),
    _value("temperature_c", "°C", "hottest sensor that the kernel shows"),
    _value("uptime_s", "s", "since the kernel booted"),
    _value("agent_memory_bytes", "B", "resident memory of the agent's main process"),
)


def fields_of(kind: Kind) -> tuple[Field, ...]:
    """Return the fields of one kind of bank in column order, values first."""
    return GPU_FIELDS if kind is Kind.GPU else ASIC_FIELDS


def value_fields(kind: Kind) -> tuple[str, ...]:
    """Return the names of the float columns."""
    return tuple(field.name for field in fields_of(kind) if not field.is_counter)


def counter_fields(kind: Kind) -> tuple[str, ...]:
    """Return the names of the counter columns."""
    return tuple(field.name for field in fields_of(kind) if field.is_counter)
