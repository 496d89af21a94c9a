"""What the agent may run on a unit of GPUs, and what it knows of what runs there.

Decides nothing; a workload is known by a name of the agent's own file (promise S7). Invariant: a unit with `has_process` is not
free, whatever its phase; only a unit without one is released.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from swingbus_agent.domain.orders import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSpec:
    """One program of the agent's file.

    In `command`, `environment` values, `ready_url` and `ready_command` these are filled in per unit: `{unit}` (its number),
    `{gpus}` (the driver's numbers, comma-separated), `{gpu_uuids}` and `{port}` (`port` + the unit's number).
    """

    name: str
    mode: Mode
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    folder: str = ""
    port: int = 0
    ready_url: str = ""  # answers 200 when ready
    ready_command: tuple[str, ...] = ()  # ends with 0 when ready
    ready_after_s: float = 1.0  # with neither: ready when alive for so long
    start_timeout_s: float = 300.0  # from start to ready, else it failed
    stop_timeout_s: float = 30.0  # from SIGTERM to SIGKILL


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUnit:
    """GPUs that move together; `name` is unique in the agent, for instance `h100/2` for unit 2 of bank h100."""

    name: str
    number: int
    gpu_indices: tuple[int, ...]
    gpu_uuids: tuple[str, ...]


class WorkloadPhase(Enum):
    """Where a unit's workload is."""

    IDLE = "idle"  # nothing was asked for, or what ran was stopped and is gone
    STARTING = "starting"  # runs, not ready yet by its own probe
    READY = "ready"  # ready by its own probe
    UNREADY = "unready"  # was ready, its probe fails now
    STOPPING = "stopping"  # told to end
    FAILED = "failed"  # ended by itself, could not be started, or was not ready in time
    UNKNOWN = "unknown"  # whoever could say does not answer, or cannot tell: neither free nor running


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadStatus:
    """What is known of one unit now.

    `since_boottime_s` is when the phase began. `pids` are the living processes of the workload (its whole process group). `has_process`
    is also true while nobody can say: what is not known to be free counts as held.
    """

    unit: str
    phase: WorkloadPhase
    has_process: bool
    since_boottime_s: float
    workload: str | None = None
    mode: Mode | None = None
    reason: str = ""
    exit_code: int | None = None  # negative: the signal; None while it lives, or where another process had to reap it
    last_output: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    holders: tuple[str, ...] | None = None  # pods, as namespace/name; None where pods are not the workloads
