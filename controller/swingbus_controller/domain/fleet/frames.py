"""Decoded telemetry: one frame per bank and per meter reading, columns kept as they came.

Invariant: no object per sample; `values` and `counters` are row-major sequences (numpy arrays in practice) in which NaN
means "no reading", and nothing here turns a missing reading into a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """One row of a bank."""

    device: str
    model: str
    firmware: str
    serial_number: str
    address: str
    unsupported_fields: tuple[str, ...]
    unit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PointSpec:
    """One way to run one device, as the agent offers it."""

    point: str
    mode: int  # wire number, see orders.Mode
    power_w: float
    hashrate_ths: float | None
    throughput_ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BankInventory:
    """What an agent says of one bank."""

    bank: str
    kind: str  # "gpu" or "asic"
    device_class: str
    unit_size: int
    devices: tuple[DeviceSpec, ...]
    value_fields: tuple[str, ...]
    counter_fields: tuple[str, ...]
    points: tuple[PointSpec, ...]
    workloads: tuple[str, ...]
    meter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterInventory:
    """What an agent says of one meter."""

    meter: str
    feeder: str
    window_s: float
    lag_s: float
    error_ratio: float
    quantum_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentInventory:
    """What an agent has."""

    agent: str
    version: str
    hostname: str
    banks: tuple[BankInventory, ...]
    meters: tuple[MeterInventory, ...]
    host_fields: tuple[str, ...]
    unsupported: tuple[str, ...]
    writes_enabled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BankFrame:
    """One sampling round of one bank."""

    bank: str  # short id, unique in the agent
    values: Sequence[float]  # rows x value_fields
    counters: Sequence[float]  # rows x counter_fields
    conditions: Sequence[int]  # per row, wire numbers of DeviceCondition
    modes: Sequence[int]  # per row, wire numbers of Mode
    read_boottime_ns: Sequence[int]  # per row


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterFrame:
    """One reading of one meter; the window is already corrected for the meter's lag."""

    meter: str
    feeder: str
    measurement_count: int | None
    window_start_boottime_s: float
    window_end_boottime_s: float
    marker: int
    marker_epoch: int
    power_w: float | None
    energy_j: float | None
    voltage_v: float | None
    current_a: float | None
    power_factor: float | None
    fault: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEvent:
    """Something that happened once at an agent."""

    kind: str
    bank: str
    device: str
    message: str
    event_unix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFrame:
    """One numbered batch of one agent; it stands for the numbers from `first_sequence` on, which its spool merged into it."""

    agent: str
    sequence: int
    first_sequence: int
    boot_id: str
    sample_unix_s: float
    sample_boottime_s: float
    banks: tuple[BankFrame, ...]
    meters: tuple[MeterFrame, ...]
    host_values: Sequence[float]
    events: tuple[DeviceEvent, ...]
    is_live: bool  # False for backlog that is older than what was seen already
