"""The words between readings, execution and drivers: what is seen of a device, what is asked of it, what is worth telling.

Decides nothing. Times are CLOCK_BOOTTIME in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from swingbus_agent.domain.orders import Mode
from swingbus_agent.domain.readings import Condition
from swingbus_agent.domain.selection import Target
from swingbus_agent.domain.workload import WorkloadPhase


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionTimes:
    """How patient to be; see the configuration keys of the same names."""

    verify_s: float
    boot_s: float
    attempts: int
    backoff_max_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """What the newest reading says of one device; times are CLOCK_BOOTTIME."""

    device: str
    unit: int
    condition: Condition
    mode: Mode  # UNKNOWN where it does not say
    enforced_w: float | None  # limit or target in force
    read_started_s: float
    is_booting: bool = False
    has_restarted: bool = False  # its uptime fell since the reading before
    process_count: int | None = None  # processes on a GPU at `processes_read_s`; None where not known
    processes_read_s: float = 0.0
    power_w: float | None = None
    hashrate_ths: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitView:
    """What runs on one unit of GPUs; `since_s` is when the phase began, `has_process` whether anything of it lives.

    `holders` are pods, as namespace/name; None where pods are not the workloads. `mode` is what the workload makes its GPUs do.
    """

    unit: int
    workload: str = ""
    mode: Mode | None = None
    phase: WorkloadPhase = WorkloadPhase.IDLE
    has_process: bool = False
    reason: str = ""
    since_s: float = 0.0
    holders: tuple[str, ...] | None = None


class Verb(Enum):
    """What can be asked of a device or unit."""

    SLEEP = "sleep"
    WAKE = "wake"
    SET_POWER = "set_power"
    STOP_WORKLOAD = "stop_workload"
    START_WORKLOAD = "start_workload"


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One thing to ask. `device` is a device id, or empty where it concerns the workload of `unit`."""

    verb: Verb
    device: str
    unit: int
    target: Target
    is_raise: bool
    counted_w: float  # what the device counts at while this is under way
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something to tell the controller and the log."""

    kind: str
    device: str
    message: str
