"""What one GPU answered, what one round of a host's GPUs held, and which GPUs the host has.

Decides nothing; `fields.GPU_FIELDS` is the list of what there is to say. Knows nothing of the driver that answers. Invariant:
a field is in `values`, or in `unsupported`, or in `failures`, or was not asked for in this round; it is never a zero that
means "unknown".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from swingbus_agent.domain.readings import Condition


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
    condition: Condition
    started_boottime_ns: int
    finished_boottime_ns: int
    reason: str | None = None
    since_boottime_ns: int | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    unsupported: frozenset[str] = frozenset()
    failures: Mapping[str, str] = field(default_factory=dict)
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
    notes: tuple[str, ...] = ()  # for the log: a child restarted, a GPU let back in
