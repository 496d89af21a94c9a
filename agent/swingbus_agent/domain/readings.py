"""What one sampling round saw, in columns, and what the host has.

Decides nothing. Invariant: a missing reading is `None`, never 0 and never a sentinel; a bank's columns are row-major and
exactly rows x fields long, in the order of the inventory that was announced with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from swingbus_agent.domain.orders import Mode


class Condition(IntEnum):
    """How one device answered; values are the wire's numbers, a greater one is worse news."""

    OK = 1
    UNAVAILABLE = 2
    HUNG = 3
    LOST = 4
    UNSUPPORTED = 5


class Kind(Enum):
    """What a bank's devices are; values are the wire's numbers."""

    GPU = 1
    ASIC = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """One row of a bank."""

    device: str
    model: str = ""
    firmware: str = ""
    serial_number: str = ""
    address: str = ""
    unsupported_fields: tuple[str, ...] = ()
    unit: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PointSpec:
    """One way to run one device."""

    point: str
    mode: Mode
    power_w: float
    hashrate_ths: float | None = None
    throughput_ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BankSpec:
    """The devices of one class behind this agent."""

    bank: str
    kind: Kind
    device_class: str
    unit_size: int
    devices: tuple[DeviceSpec, ...]
    value_fields: tuple[str, ...]
    counter_fields: tuple[str, ...]
    points: tuple[PointSpec, ...]
    workloads: tuple[str, ...] = ()
    meter: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterSpec:
    """One power meter that this agent reads."""

    meter: str
    feeder: str
    window_s: float
    lag_s: float
    error_ratio: float
    quantum_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What this agent has."""

    version: str
    hostname: str
    banks: tuple[BankSpec, ...]
    meters: tuple[MeterSpec, ...]
    host_fields: tuple[str, ...]
    unsupported: tuple[str, ...]
    writes_enabled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BankRound:
    """One bank in one round; all sequences have one entry per row, `values`/`counters` rows x fields."""

    bank_index: int
    values: tuple[float | None, ...]
    counters: tuple[float | None, ...]
    conditions: tuple[Condition, ...]
    modes: tuple[Mode, ...]
    read_boottime_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterRound:
    """One reading of one meter; the window is already corrected for the meter's lag."""

    meter_index: int
    window_start_boottime_ns: int
    window_end_boottime_ns: int
    marker: int
    measurement_count: int | None = None
    power_w: float | None = None
    energy_j: float | None = None
    voltage_v: float | None = None
    current_a: float | None = None
    power_factor: float | None = None
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentEvent:
    """Something that happened once; `message` tells a person what, where and the next step."""

    kind: str
    message: str
    at_unix_s: float
    bank: str = ""
    device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one sampling round saw; `thinned` where it is the mean of several."""

    sample_unix_s: float
    sample_boottime_ns: int
    boot_id: str
    banks: tuple[BankRound, ...] = ()
    meters: tuple[MeterRound, ...] = ()
    host_values: tuple[float | None, ...] = ()
    events: tuple[AgentEvent, ...] = ()
    thinned: bool = False
