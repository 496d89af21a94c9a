"""What the simulator's wire servers need of its physics, and the other way round.

The physics room knows nothing of sockets or shared memory; the protocol rooms know nothing of watts and heat.
All times are seconds on one monotonic axis that the simulator's main loop passes in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class AsicState(Enum):
    """What the machine is really doing; a lying one may *say* something else."""

    OFF = "off"
    BOOTING = "booting"
    MINING = "mining"
    SLEEPING = "sleeping"


class NetworkFault(Enum):
    """How a miner's socket misbehaves."""

    NONE = "none"
    LATE = "late"  # answers, but only after `delay_s`
    HUNG = "hung"  # accepts TCP, never answers
    TRUNCATED = "truncated"  # closes in the middle of the JSON
    REFUSED = "refused"  # nobody listens (controller board rebooting)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkWeather:
    """The socket fault in force for one request."""

    fault: NetworkFault = NetworkFault.NONE
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AsicProfile:
    """One operating point of the firmware's own table."""

    name: str
    frequency_mhz: int
    power_w: float
    hashrate_ths: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AsicReading:
    """What the miner says over its API; `None` where that firmware cannot say."""

    state: AsicState
    power_w: float | None
    hashrate_ths: float
    expected_hashrate_ths: float
    board_hashrates_ths: tuple[float, ...]
    board_temperatures_c: tuple[float, ...]
    chip_temperatures_c: tuple[float, ...]
    inlet_temperature_c: float
    fan_speeds_rpm: tuple[int, ...]
    uptime_s: int
    profile: str | None
    power_limit_w: float | None
    pool_is_alive: bool
    accepted_shares: int
    rejected_shares: int


class Asic(Protocol):
    """One simulated miner as its protocol server sees it."""

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def mac(self) -> str: ...
    @property
    def serial_number(self) -> str: ...
    @property
    def profiles(self) -> tuple[AsicProfile, ...]: ...

    def weather(self, now_s: float) -> NetworkWeather: ...
    def reading(self, now_s: float) -> AsicReading: ...

    # Commands return nothing: the reply to the caller says "OK" whether or not the machine obeys.
    def sleep(self, now_s: float) -> None: ...
    def wake(self, now_s: float) -> None: ...
    def set_profile(self, now_s: float, profile: str) -> None: ...
    def set_power_limit(self, now_s: float, power_w: float) -> None: ...
    def reboot(self, now_s: float) -> None: ...


class GpuHealth(Enum):
    """How the GPU answers its driver."""

    OK = "ok"
    LOST = "lost"  # every call answers NVML_ERROR_GPU_IS_LOST
    HUNG = "hung"  # the call never returns


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """What one GPU's driver answers now, in the project's units (the stand-in library converts)."""

    health: GpuHealth
    power_average_w: float
    power_instant_w: float
    energy_j: float
    enforced_limit_w: float
    requested_limit_w: float
    default_limit_w: float
    min_limit_w: float
    max_limit_w: float
    temperature_c: float
    memory_temperature_c: float | None
    sm_clock_mhz: int
    memory_clock_mhz: int
    utilisation_ratio: float
    memory_used_bytes: int
    memory_total_bytes: int
    throttle_reasons: int
    ecc_corrected_count: int
    ecc_uncorrected_count: int
    remapped_rows_count: int
    pcie_replay_count: int
    nvlink_error_count: int
    xid: int
    recovery_action: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A living local process that says it uses a GPU."""

    pid: int
    gpu: int
    kind: str  # "mining" or "inference"
    load_ratio: float  # 0 idle .. 1 full
    memory_used_bytes: int


class GpuShelf(Protocol):
    """One GPU host's shared state: the physics writes readings, the driver stand-in writes requests."""

    def requested_limits_w(self) -> tuple[float | None, ...]:
        """Return what the host's tools last asked for, per GPU; None where nobody asked since boot."""
        ...

    def processes(self) -> tuple[GpuProcess, ...]:
        """Return the workloads that are alive on this host now (dead ones are dropped)."""
        ...

    def publish(self, readings: Sequence[GpuReading]) -> None:
        """Make these readings what every later driver call answers."""
        ...

    def clear_requests(self) -> None:
        """Forget requested limits: the host rebooted or its driver was reloaded."""
        ...
